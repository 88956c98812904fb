"""The report of an evaluation: JSON for programs, Markdown for people."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

from glip.console import counted, printable
from glip.data.sets import SkipCounter
from glip.evaluate.coco import Score
from glip.files import atomic_write, write_json
from glip.provenance import made

NOTHING = -1.0  # a figure over nothing: no category of that kind has a box
HEADLINES = (
    *("NMS-AP", "AP", "AP50", "Fixed AP", "Fixed APr", "AP at false positive rate 0.01", "R@1", "R@5", "R@10"),
    *("P@1 (GIoU)", "P@5 (GIoU)", "P@10 (GIoU)", "P@1 (IoU)", "F1=1", "N_acc", "T_acc"),
    *("cgF1", "IL_MCC", "IL_F1", "IL_FPR", "positive_micro_F1", "AP presence", "AP absence", "AP categ", "AP descr"),
)
_COMPARED = (
    *("NMS-AP", "AP", "AP50", "Fixed AP", "AP at false positive rate 0.01", "R@1", "P@1 (GIoU)", "P@1 (IoU)"),
    *("F1=1", "N_acc", "T_acc", "cgF1", "IL_MCC", "positive_micro_F1"),
)
ENDS = ("low (95 %)", "high (95 %)")
_MARKUP = re.compile(r"[\\`*\[\]|]|@(?=[\w-]+\.)|(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE)  # and addresses
Variant = tuple[str, str, str]  # a model, its task file, and the file of prompts that it is asked with
Row = Mapping[str, str | int | float]
TrainedOn = Literal["yes", "validated on", "same dataset by name", "no", "unknown"]  # by name: maybe another split


@dataclass
class Report:
    """The evaluation of one model, or of one file of predictions, on one set; scoring fills in figures and tables.

    Args:
        samples: how many samples the set has; skipped ones are noted, and count as having no detection.
        figures: shares of 1 by name, ``NOTHING`` where there is nothing to average; the first one is the headline.
        tables: by title, such as "Per category".
        thresholds: of best F1, by class name (COCO's protocol).
        noted: what was not scored, or is odd, by reason, with the first few ``places`` of each.
        score: what COCO's protocol gave, to compare with; it is not written.
    """

    model: str
    dataset: str
    protocol: str
    samples: int
    trained_on: TrainedOn
    figures: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Sequence[Row]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    plots: list[str] = field(default_factory=list)
    noted: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)
    score: Score | None = None

    def write(self, folder: Path, skipped: SkipCounter) -> None:
        """Add what was skipped, and write ``report.json`` and ``report.md``."""
        self.noted, self.places = skipped.counts, skipped.places
        plain = {key: value for key, value in vars(self).items() if key != "score"}
        write_json(folder / "report.json", {**plain, "made": made()})
        plots = [f"\n![{name}]({name})\n" for name in self.plots]
        with atomic_write(folder / "report.md") as file:
            file.write("".join([self.markdown(), *plots, made_line()]))

    def markdown(self) -> str:
        """The report as a page."""
        lines = [f"# {markdown_text(self.model)} on {markdown_text(self.dataset)}", ""]
        lines += [f"{self.protocol}; {counted(self.samples, 'sample')}; trained on this set: {self.trained_on}.", ""]
        lines += markdown_table([{"figure": name, "value": value} for name, value in self.figures.items()])
        for reason, count in self.noted.items():
            places = "; ".join(self.places.get(reason, ()))
            lines += ["", f"Noted: {count} x {markdown_text(f'{reason} ({places})' if places else reason)}."]
        for title, rows in self.tables.items():
            lines += ["", f"## {title}", "", *markdown_table(rows)]
        return "\n".join(lines) + "\n"


def made_line() -> str:
    """Date, command and versions as the last line of a page."""
    known = made()
    command = printable(known.pop("command")).replace("`", "'")
    return "\nMade on {date} by `{command}` with {versions}.\n".format(command=command, **known)


def markdown_text(text: str) -> str:
    """A name or a caption of a file as plain words of a page: no markup, HTML, link or line end in it has an effect."""
    words = re.sub(r"&(?=[#\w]+;)", "&amp;", printable(" ".join(text.split()))).replace("<", "&lt;")
    return _MARKUP.sub(r"\\\g<0>", words)


def for_terminal(page: str) -> str:
    """A page as a terminal shows it: what ``markdown_text`` escapes is as it was."""
    page = re.sub(r"\\([\\`*\[\]|@:.])", r"\1", page)
    return page.replace("&lt;", "<").replace("&amp;", "&")


def markdown_table(rows: Sequence[Row]) -> list[str]:
    """Rows of equal columns as the lines of a Markdown table."""
    if not rows:
        return []
    names = list(rows[0])
    lines = ["| " + " | ".join(map(_cell, names)) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value == NOTHING else f"{value:.3f}"
    return markdown_text(str(value))


def overview(reports: Sequence[Report]) -> list[Row]:
    """The main figures of one model, a row for each set."""
    shown, rows = [name for name in HEADLINES if any(name in one.figures for one in reports)], list[Row]()
    for one in reports:
        figures = {name: one.figures.get(name, "") for name in shown}
        rows.append({"set": one.dataset, **figures, "samples": one.samples, "trained on": one.trained_on})
    return rows


def parts_page(name: str, reports: Sequence[Report], parts: Sequence[str]) -> str:
    """The main figures of each part of a benchmark as Markdown, their mean and median; missing parts are in the title.

    Where a model was trained on some parts, the others have a mean of their own. A figure that a part lacks has none.
    """
    rows, missing = overview(reports), [part for part in parts if part not in {one.dataset for one in reports}]
    over = f"{len(reports)} of {len(parts)}" if missing else str(len(parts))
    averages = [(f"mean of {over}", mean, reports), (f"median of {over}", median, reports)]
    unseen = [one for one in reports if one.trained_on == "no"]
    if 0 < len(unseen) < len(reports):
        averages.append((f"mean of {len(unseen)} not trained on", mean, unseen))
    shared = [figure for figure in HEADLINES if all(figure in one.figures for one in reports)]
    for title, average, chosen in averages:
        columns = {key: [one.figures[key] for one in chosen if one.figures[key] != NOTHING] for key in shared}
        figures = {key: average(column) if column else NOTHING for key, column in columns.items()}
        rows.append(dict.fromkeys(rows[0], "") | {"set": title, **figures})
    note = f"; missing, and not in the mean: {', '.join(missing)}" if missing else ""
    title = f"# {name}, {len(reports)} of {len(parts)} parts{note}"
    return "\n".join([title, "", *markdown_table(rows), ""])


def comparison(reports: Mapping[Variant, Sequence[Report]]) -> list[Row]:
    """For each set and figure a row for each variant, with its difference from the first one.

    The differences of AP and AP50 have a 95 % interval (``Score.interval``) where COCO's protocol scores.
    """
    first, rows = next(iter(reports.values())), list[Row]()
    named = _differing(reports)
    for place, figure, (variant, own) in product(range(len(first)), _COMPARED, reports.items()):
        before, one = first[place], own[place]
        value, compared = one.figures.get(figure, NOTHING), dict.fromkeys(("difference", *ENDS), "")
        if value == NOTHING:
            continue
        if own is not first:
            compared["difference"] = f"{value - before.figures[figure]:+.3f}"
            paired = one.score.interval(figure, less=before.score) if figure in ("AP", "AP50") and one.score else None
            compared |= dict(zip(ENDS, (f"{end:+.3f}" for end in paired or ()), strict=False))
        rows.append({"set": one.dataset, **named[variant], "figure": figure, "value": value, **compared})
    return rows


def compared_categories(reports: Mapping[Variant, Sequence[Report]]) -> list[Row]:
    """The same for AP of each category, where a set has it."""
    named, first, rows = _differing(reports), next(iter(reports.values())), list[Row]()
    for place, (variant, own) in product(range(len(first)), reports.items()):
        for before, row in zip(*(one[place].tables.get("Per category", ()) for one in (first, own)), strict=True):
            value = float(row["AP"])
            gain = "" if own is first or value == NOTHING else f"{value - float(before['AP']):+.3f}"
            about = {"boxes": row["boxes"], "AP": value, "difference": gain}
            rows.append({"set": own[place].dataset, "name": row["name"], **named[variant], **about})
    return sorted(rows, key=lambda row: (str(row["set"]), str(row["name"])))


def _differing(reports: Mapping[Variant, Sequence[Report]]) -> dict[Variant, dict[str, str]]:
    """In what each variant differs from the others, by column."""
    varied = [place for place in range(3) if len({variant[place] for variant in reports}) > 1]
    return {one: {("model", "task", "prompts")[place]: one[place] for place in varied} for one in reports}
