"""The results of a check as one Markdown page: where it ran, a table for each question, what failed or is missing."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpu.measure import Row


def page(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """All parts that have results, in order; card, versions and command stand before each part where they change."""
    lines: list[str] = []
    heading = ""
    for name, part in parts.items():
        own = "\n".join(f"- {key}: {value}" for key, value in part["environment"].items())
        if own != heading:
            lines += [own, ""]
            heading = own
        lines += [f"## {name}", "", f"{part['seconds']:.0f} s.", ""]
        tables: dict[str, list[Row]] = {}
        for row in part["rows"]:
            tables.setdefault(row["table"], []).append({key: value for key, value in row.items() if key != "table"})
        for title, rows in tables.items():
            lines += [f"### {title}", "", *table(rows), ""]
        if part["problems"]:
            lines += ["| not measured | why |", "|---|---|"]
            lines += [f"| {what} | {why.replace('|', '/')} |" for what, why in part["problems"].items()] + [""]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> list[str]:
    """Rows of one kind; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [key for key in columns if any(row.get(key) is not None for row in rows)]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(text(row.get(column)) for column in columns)} |" for row in rows]


def text(value: Any) -> str:
    """A cell: three or four digits of a number."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        if value == 0 or 0.01 <= abs(value) < 1000:
            return f"{value:.3g}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"
    return str(value)
