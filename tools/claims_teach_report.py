"""The table and the figure of docs/claims.md about teacher and student, from the rows of tools/claims_teach.py."""

from typing import Any

from claims import PAGE, ROOT, spread, write_between

FIGURE = ROOT / "docs" / "images" / "claims_teach.png"
FIGURES = ("unseen AP50", "seen AP50", "unseen recall@1", "seen recall@1")
BEGIN, END = "<!-- made by tools/claims_teach.py report -->", "<!-- end of what tools/claims_teach.py makes -->"
Row = dict[str, Any]
Key = tuple[str, int, float, int]


def write_report(rows: list[Row]) -> None:
    """Write the table into the page, between its markers, and draw the figure."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["captioned"], row["threshold"], row["round"]), []).append(row)
    header = "| | captioned images | threshold | runs | " + " | ".join(FIGURES) + " |"
    lines = [header, "|" + "---|" * header.count(" | ") + "---|"]
    for (arm, size, threshold, number), own in sorted(groups.items(), key=_place):
        name = f"{arm}, round {number}" if number > 1 else arm
        cells = " | ".join(spread([row["figures"][figure] for row in own]) for figure in FIGURES)
        shown = f"{size:,} | {threshold:g}" if size else "– | –"
        lines.append(f"| {name} | {shown} | {len(own)} | {cells} |")
    write_between(PAGE, BEGIN, END, [*lines, "", "![figures](images/claims_teach.png)"])
    draw(groups)


def _place(group: tuple[Key, list[Row]]) -> tuple[bool, bool, str, int, int, float]:
    """The line of a group: the teacher, what went on without captions, then the students."""
    arm, size, threshold, number = group[0]
    return arm != "teacher", arm != "gold only", arm, number, -size, threshold


def draw(groups: dict[Key, list[Row]]) -> None:
    """Over the threshold, captioned images (0: gold only) and rounds, seed 0; dashed: the teacher."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(13, 4.2), layout="tight")
    panels = canvas.subplots(1, 3)
    students = [row for own in groups.values() for row in own if row["arm"] == "student" and row["seed"] == 0]
    first = [row for row in students if row["round"] == 1]
    most = max((row["captioned"] for row in first), default=0)
    teacher = next(
        (row for own in groups.values() for row in own if row["arm"] == "teacher" and row["seed"] == 0), None
    )
    for number, figure in enumerate(FIGURES):
        colour = f"C{number}"
        over = sorted((row["threshold"], row["figures"][figure]) for row in first if row["captioned"] == most)
        panels[0].plot([x for x, _ in over], [y for _, y in over], "o-", color=colour, label=figure)
        gold = [row for own in groups.values() for row in own if row["arm"] == "gold only" and row["seed"] == 0]
        usual = [row for row in first if row["threshold"] == 0.3]
        sizes = sorted((row["captioned"], row["figures"][figure]) for row in gold + usual)
        panels[1].plot([x for x, _ in sizes], [y for _, y in sizes], "o-", color=colour)
        rounds = sorted(
            (row["round"], row["figures"][figure])
            for row in [*students, *([teacher] if teacher else [])]
            if row["arm"] == "teacher" or (row["captioned"] == most and row["threshold"] == 0.3)
        )
        panels[2].plot([x for x, _ in rounds], [y for _, y in rounds], "o-", color=colour)
        for panel in panels[:2]:
            if teacher:
                panel.axhline(teacher["figures"][figure], color=colour, linestyle="--", linewidth=0.8)
    for panel, label in zip(panels, ("score from which boxes are believed", "captioned images", "round"), strict=True):
        panel.set(xlabel=label, ylim=(0, 1))
    panels[2].set_xticks(range(1 + max((row["round"] for row in students), default=0)))
    panels[0].legend(fontsize="small")
    canvas.savefig(FIGURE, dpi=90)
