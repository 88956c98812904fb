"""The report of an evaluation: JSON for programs, Markdown for people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from glip.console import counted
from glip.data.sets import SkipCounter
from glip.files import atomic_write, write_json

NOTHING = -1.0  # a figure over nothing: no category of that kind has a box
Row = Mapping[str, str | int | float]
TrainedOn = Literal["yes", "no", "unknown"]


@dataclass
class Report:
    """The evaluation of one model on one set; scoring fills in figures and tables.

    Args:
        model: name of the model, or of the file of predictions.
        dataset: name of the set.
        protocol: which metrics were computed.
        samples: how many samples the set has; skipped ones are noted, and count as having no detection.
        trained_on: whether the model was trained on this set.
        figures: shares of 1 by name, ``NOTHING`` where there is nothing to average; the first one is the headline.
        tables: by title, such as "Per category".
        noted: what was not scored, or is odd, by reason.
        places: for each reason the first few places.
    """

    model: str
    dataset: str
    protocol: str
    samples: int
    trained_on: TrainedOn
    figures: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Sequence[Row]] = field(default_factory=dict)
    noted: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def write(self, folder: Path, skipped: SkipCounter) -> None:
        """Add what was skipped, and write ``report.json`` and ``report.md``."""
        self.noted, self.places = skipped.counts, skipped.places
        write_json(folder / "report.json", asdict(self))
        with atomic_write(folder / "report.md") as file:
            file.write(self.markdown())

    def markdown(self) -> str:
        """The report as a page."""
        lines = [f"# {self.model} on {self.dataset}", ""]
        lines += [f"{self.protocol}; {counted(self.samples, 'sample')}; trained on this set: {self.trained_on}.", ""]
        lines += markdown_table([{"figure": name, "value": value} for name, value in self.figures.items()])
        for reason, count in self.noted.items():
            places = "; ".join(self.places.get(reason, ()))
            lines += ["", f"Noted: {count} x {reason}{f' ({places})' if places else ''}."]
        for title, rows in self.tables.items():
            lines += ["", f"## {title}", "", *markdown_table(rows)]
        return "\n".join(lines) + "\n"


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
