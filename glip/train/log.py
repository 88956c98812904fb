"""What a run counts and reports: lines to read, rows of ``metrics.jsonl``, and curves and images for TensorBoard."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from glip.data.sets import SkipCounter
from glip.errors import ConfigError
from glip.files import append_jsonl, read_jsonl, write_jsonl
from glip.train.step import TERMS, Outcome

_MEANS = (*TERMS, "loss", "gradient_norm")


@runtime_checkable
class Validation(Protocol):
    """The result of a validation."""

    @property
    def figures(self) -> dict[str, float]:
        """By name, such as "bccd_val/AP50"."""

    @property
    def best(self) -> float:
        """The figure that the best checkpoint is chosen by; higher is better."""

    @property
    def images(self) -> dict[str, Image.Image]:
        """Predictions beside ground truth, by name."""

    @property
    def skipped(self) -> SkipCounter:
        """Images that could not be used, by reason."""


@dataclass
class Progress:
    """What a run counts, the same in all processes.

    ``step`` steps are done; ``skipped_steps`` had numbers that were not finite (``bad_in_row`` of them last), of which
    ``overflows`` had too large a loss scale. ``best`` is the highest validation figure so far, of ``best_step``;
    ``validated`` is the step of the last validation. Of ``tried`` samples ``broken`` could not be used; ``skipped``
    counts boxes and captions by reason; ``window`` sums what the next log line reports.
    """

    step: int = 0
    skipped_steps: int = 0
    bad_in_row: int = 0
    overflows: int = 0
    best: float | None = None
    best_step: int = 0
    validated: int = 0
    tried: int = 0
    broken: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count a step."""
        self.step += 1
        self.skipped_steps += not outcome.stepped
        self.overflows += outcome.overflow
        self.bad_in_row = self.bad_in_row + 1 if outcome.bad else 0
        sums = {"skipped_steps": float(not outcome.stepped)}
        if outcome.stepped:  # a mean with one nan would be nan
            sums |= {**outcome.losses, "gradient_norm": outcome.norm, "count": 1.0}
        for name, value in sums.items():
            self.window[name] = self.window.get(name, 0.0) + value

    def summary(self) -> list[str]:
        """Lines about what the run skipped."""
        lines = []
        if self.skipped:
            listed = ", ".join(f"{count} x {reason}" for reason, count in self.skipped.items())
            lines.append(f"boxes skipped in this run: {listed}")
        if self.broken:
            lines.append(f"samples that could not be used: {self.broken} of {self.tried} tried")
        if self.skipped_steps:
            scaled = f", {self.overflows} of them to lower the loss scale" if self.overflows else ""
            lines.append(f"steps skipped: {self.skipped_steps} of {self.step}{scaled}")
        return lines


class RunLog:
    """Writes the metrics of the main process.

    Args:
        folder: of the run.
        steps: how many the run has.
        progress: of the run so far; rows that will be repeated are cut.
        device: whose memory is reported.
        tensorboard: whether to write curves for TensorBoard too.
    """

    def __init__(
        self, folder: Path, steps: int, progress: Progress, device: torch.device, *, tensorboard: bool
    ) -> None:
        self.path, self.steps, self.device = folder / "metrics.jsonl", steps, device
        self.began = self.since = time.monotonic()
        self.start, self.images = progress.step, 0
        self.board: Any = None
        if tensorboard:
            self.board = summary_writer()(str(folder / "tensorboard"), purge_step=self.start + 1)
        if self.path.is_file():
            cut_rows(self.path, progress)

    def row(self, progress: Progress, lr: float) -> str:
        """Write a row about the steps in the window; gives the line to show."""
        window, step = progress.window, progress.step
        count = window.get("count", 0.0)
        means = {name: window.get(name, 0.0) / count if count else None for name in _MEANS}
        now = time.monotonic()
        speed, memory = self.images / max(now - self.since, 1e-9), peak_memory(self.device)
        self.since, self.images = now, 0
        row = {
            "step": step,
            "lr": lr,
            **means,
            "skipped_steps": int(window.get("skipped_steps", 0)),
            "skipped": dict(sorted(progress.skipped.items())),
            "broken": progress.broken,
            "images_per_second": speed,
            "memory_mb": memory,
        }
        append_jsonl(self.path, row)
        self._scalars("train", {key: value for key, value in row.items() if isinstance(value, float)}, step)
        shown = [f"{name} {_number(means[name])}" for name in _MEANS[:-1]]
        shown += [f"lr {lr:.1e}", f"gradient {_number(means['gradient_norm'])}", f"{speed:.1f} images/s"]
        shown += [f"{memory / 1000:.1f} GB"]
        shown += [f"{progress.skipped_steps} skipped"] if progress.skipped_steps else []
        left = timedelta(seconds=int((now - self.began) / (step - self.start) * (self.steps - step)))
        return "  ".join([f"step {step}/{self.steps}", *shown, f"{left} left"])

    def validated(self, step: int, found: Validation, *, best: bool) -> str:
        """Write the row of a validation; gives the line to show."""
        figures = {name: value if math.isfinite(value) else None for name, value in found.figures.items()}
        skipped = found.skipped
        append_jsonl(self.path, {"step": step, "validation": figures, "best": best, "skipped": skipped.counts})
        self._scalars("validation", found.figures, step)
        for name, image in found.images.items() if self.board else ():
            self.board.add_image(name, np.array(image.convert("RGB")), step, dataformats="HWC")
        shown = [f"{name} {_number(value)}" for name, value in figures.items()]
        shown += ["(best so far)"] * best + [f"skipped: {skipped}"] * bool(skipped)
        return "  ".join([f"step {step}/{self.steps}", "validation", *shown])

    def flush(self) -> None:
        """Write all curves up to now to the disk, as with every checkpoint."""
        if self.board:
            self.board.flush()

    def _scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items() if self.board else ():
            self.board.add_scalar(f"{group}/{name}", value, step)


def summary_writer() -> Any:
    """TensorBoard's class of writers.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "train.tensorboard needs the package tensorboard: pip install 'glip[tensorboard]', or set "
            "train.tensorboard=false (metrics.jsonl has the same figures)"
        ) from None
    return SummaryWriter


def cut_rows(path: Path, progress: Progress) -> None:
    """Cut from the metrics the steps and validations that will be repeated, and a line that a kill cut off."""
    done = [
        row for row in read_jsonl(path) if row["step"] <= (progress.validated if "validation" in row else progress.step)
    ]
    write_jsonl(path, done)


def peak_memory(device: torch.device) -> float:
    """The most memory held so far, in MB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows, where the training has never run

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
