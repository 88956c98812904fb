"""What an evaluation says, as json for programs and as Markdown for people."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glip.files import atomic_write

NOTHING = -1.0  # a figure over nothing: no category of that kind has a box
Row = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Table:
    """Rows that share their columns, under a title."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Report:
    """The evaluation of one model on one set.

    Args:
        model: its name.
        dataset: name of the set.
        protocol: what was counted, and how the model was asked.
        samples: how many it has; those passed over are noted, and have found nothing.
        trained_on: whether the model was trained on this set, as its config says.
        figures: shares of 1 by name, ``NOTHING`` where there is nothing to average over; the first one is the headline.
        tables: per category or kind.
        noted: what was not scored, or is odd, by reason.
        places: for each reason where it was, at most a few.
    """

    model: str
    dataset: str
    protocol: str
    samples: int
    trained_on: bool
    figures: Mapping[str, float]
    tables: tuple[Table, ...] = ()
    noted: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md``."""
        tree = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        for name, text in (("report.json", tree), ("report.md", self.markdown())):
            with atomic_write(folder / name) as file:
                file.write(text)

    def markdown(self) -> str:
        """The report as a page."""
        seen = "; it was trained on this set" if self.trained_on else ""
        lines = [f"# {self.model} on {self.dataset}", "", f"{self.protocol}; {self.samples} samples{seen}.", ""]
        lines += markdown_table([{"figure": name, "value": value} for name, value in self.figures.items()])
        for reason, count in self.noted.items():
            places = "; ".join(self.places.get(reason, ()))
            lines += ["", f"Noted: {count} x {reason}{f' ({places})' if places else ''}."]
        for table in self.tables:
            lines += ["", f"## {table.title}", "", *markdown_table(table.rows)]
        return "\n".join(lines) + "\n"


def summary(reports: Iterable[Report], figures: Sequence[str]) -> list[str]:
    """One table of many sets: a row for each, with those of the figures that it has."""
    rows = []
    for report in reports:
        shown = {name: report.figures.get(name, "") for name in figures}
        seen = "yes" if report.trained_on else "no"
        rows.append({"set": report.dataset, **shown, "samples": report.samples, "trained on": seen})
    return markdown_table(rows)


def markdown_table(rows: Sequence[Row]) -> list[str]:
    """Rows of equal columns as the lines of a Markdown table."""
    if not rows:
        return []
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value == NOTHING else f"{value:.3f}"
    return " ".join(str(value).split()).replace("|", "\\|")
