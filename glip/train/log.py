"""What a run counts and reports: lines to read, rows of ``metrics.jsonl``, and curves and images for loggers."""

import math
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch

from glip.console import printable
from glip.data.sets import Validation
from glip.files import append_jsonl, read_jsonl, write_jsonl
from glip.train.loggers import Loggers
from glip.train.step import TERMS, Outcome

_MEANS = (*TERMS, "loss", "gradient_norm")


@dataclass
class Progress:
    """What a run counts, the same in all processes."""

    step: int = 0  # steps done
    skipped_steps: int = 0  # steps with numbers that were not finite
    bad_in_row: int = 0  # how many of the last ones
    overflows: int = 0  # how many of them had too large a loss scale
    best: float | None = None  # the highest validation figure so far
    best_step: int = 0
    validated: int = 0  # the step of the last validation
    tried: int = 0  # samples
    broken: int = 0  # samples that could not be used
    skipped: dict[str, int] = field(default_factory=dict)  # boxes and captions, by reason
    window: dict[str, float] = field(default_factory=dict)  # sums for the next log line

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


@dataclass
class RunLog:
    """Writes the metrics of the main process; rows of steps and validations that will be repeated are cut."""

    folder: Path
    steps: int  # how many the run has
    progress: Progress
    device: torch.device  # whose memory is reported
    loggers: Loggers

    def __post_init__(self) -> None:
        self.path, progress = self.folder / "metrics.jsonl", self.progress
        self.began = self.since = time.monotonic()
        self.start, self.images = progress.step, 0
        if self.path.is_file():
            rows = list(read_jsonl(self.path))
            done = {True: progress.validated, False: progress.step}
            write_jsonl(self.path, [row for row in rows if row["step"] <= done["validation" in row]])

    def row(self, lr: float) -> str:
        """Write a row about the steps in the window; gives the line to show."""
        progress, window, step = self.progress, self.progress.window, self.progress.step
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
        numbers = {f"train/{name}": value for name, value in row.items() if isinstance(value, float)}
        self.loggers(lambda one: one.log(numbers, step, {}))
        shown = [f"{name} {_number(means[name])}" for name in _MEANS[:-1]]
        shown += [f"lr {lr:.1e}", f"gradient {_number(means['gradient_norm'])}", f"{speed:.1f} images/s"]
        shown += [f"{memory / 1000:.1f} GB"]
        shown += [f"{progress.skipped_steps} skipped"] if progress.skipped_steps else []
        left = timedelta(seconds=int((now - self.began) / (step - self.start) * (self.steps - step)))
        return "  ".join([f"step {step}/{self.steps}", *shown, f"{left} left"])

    def validated(self, found: Validation, *, best: bool) -> str:
        """Write the row of a validation; gives the line to show."""
        step = self.progress.step
        figures = {name: value if math.isfinite(value) else None for name, value in found.figures.items()}
        skipped = found.skipped
        append_jsonl(self.path, {"step": step, "validation": figures, "best": best, "skipped": skipped.counts})
        numbers = {f"validation/{name}": value for name, value in figures.items() if value is not None}
        self.loggers(lambda one: one.log(numbers, step, found.images))
        shown = [f"{name} {_number(value)}" for name, value in figures.items()]
        shown += ["(best so far)"] * best + [f"skipped: {skipped}"] * bool(skipped)
        return printable("  ".join([f"step {step}/{self.steps}", "validation", *shown]))

    def close(self) -> None:
        """End the loggers, with the final figures: those of the best validation where there was one."""
        progress = self.progress
        figures = {"final/steps": progress.step, "final/skipped_steps": progress.skipped_steps}
        best = {} if progress.best is None else {"final/best": progress.best, "final/best_step": progress.best_step}
        self.loggers(lambda one: one.close({**figures, **best}, progress.step >= self.steps))


def peak_memory(device: torch.device) -> float:
    """The most memory held so far, in MB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows, where the training has never run

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
