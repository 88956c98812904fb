"""What a run tells: a live line, rows of ``metrics.jsonl``, and curves and images for TensorBoard where asked for."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from glip.data.sets import SkipCounter
from glip.errors import ConfigError
from glip.train.checkpoint import Progress, write_atomically
from glip.train.step import Outcome


@runtime_checkable
class Validation(Protocol):
    """What a validation found.

    ``figures`` by name, such as "bccd_val/AP50"; ``best``, the figure by which the best checkpoint is chosen, higher is
    better; ``images`` to look at, by name; ``skipped``, what was passed over.
    """

    @property
    def figures(self) -> dict[str, float]:
        """By name."""
        ...

    @property
    def best(self) -> float:
        """What best.pt is chosen by."""
        ...

    @property
    def images(self) -> dict[str, Image.Image]:
        """Predictions beside targets, by name."""
        ...

    @property
    def skipped(self) -> SkipCounter:
        """Images passed over, by reason."""
        ...


class RunLog:
    """Writes what the main process tells.

    Args:
        folder: of the run.
        steps: how many the run has.
        start: how many are done; rows of later steps, which are about to be repeated, are cut.
        validated: the last step whose validation is done; rows of later ones are cut.
        device: whose memory is told.
        tensorboard: whether curves are written for TensorBoard too.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path, *, steps: int, start: int, validated: int, device: torch.device, tensorboard: bool
    ) -> None:
        self.path, self.steps, self.device = folder / "metrics.jsonl", steps, device
        self.began = self.since = time.monotonic()
        self.start, self.seen = start, 0
        self.board: Any = open_board(folder, start) if tensorboard else None
        forget_after(self.path, start, validated)

    def add(self, outcome: Outcome, progress: Progress) -> None:
        """Note a step; the sums are in ``progress``, so that a resumed run tells the same means."""
        self.seen += outcome.images
        window = progress.window
        window["skipped_steps"] = window.get("skipped_steps", 0) + (not outcome.stepped)
        if outcome.stepped:  # a mean with one nan would be none
            row = {**outcome.losses, "gradient_norm": outcome.norm, "count": 1.0}
            for name, value in row.items():
                window[name] = window.get(name, 0.0) + value

    def row(self, progress: Progress, lr: float) -> str:
        """Write a row of the steps in the window, counts being of all processes; gives the line to show."""
        window = progress.window
        count = window.get("count", 0.0)
        names = ("token", "box", "centerness", "loss", "gradient_norm")
        means = {name: window[name] / count if count else None for name in names}
        seconds, self.since = time.monotonic() - self.since, time.monotonic()
        speed, self.seen = self.seen / max(seconds, 1e-9), 0
        memory = peak_memory(self.device)
        row = {
            "step": progress.step,
            "lr": lr,
            **means,
            "skipped_steps": int(window.get("skipped_steps", 0)),
            "skipped": dict(sorted(progress.skipped.items())),
            "broken": progress.broken,
            "images_per_second": speed,
            "memory_mb": memory,
        }
        self._write(row)
        self._scalars("train", {key: value for key, value in row.items() if isinstance(value, float)}, progress.step)
        shown = [f"{name} {_number(means[name])}" for name in names[:4]]
        shown += [f"lr {lr:.1e}", f"gradient {_number(means['gradient_norm'])}", f"{speed:.1f} images/s"]
        shown += [f"{memory / 1000:.1f} GB"]
        shown += [f"{progress.skipped_steps} skipped"] if progress.skipped_steps else []
        left = (time.monotonic() - self.began) / (progress.step - self.start) * (self.steps - progress.step)
        return "  ".join([f"step {progress.step}/{self.steps}", *shown, f"{_clock(left)} left"])

    def validated(self, step: int, found: Validation, *, best: bool) -> str:
        """Write the row of a validation; gives the line to show."""
        figures = {name: value if math.isfinite(value) else None for name, value in found.figures.items()}
        self._write({"step": step, "validation": figures, "best": best, "passed_over": found.skipped.counts})
        self._scalars("validation", found.figures, step)
        for name, image in found.images.items() if self.board else ():
            self.board.add_image(name, np.array(image.convert("RGB")), step, dataformats="HWC")
        shown = "  ".join(f"{name} {_number(value)}" for name, value in figures.items())
        passed = f"  passed over: {found.skipped}" if found.skipped else ""
        return f"step {step}/{self.steps}  validation  {shown}{'  (best so far)' if best else ''}{passed}"

    def flush(self) -> None:
        """Have all curves up to now on the disk, as with every checkpoint."""
        if self.board:
            self.board.flush()

    def _write(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def _scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items() if self.board else ():
            self.board.add_scalar(f"{group}/{name}", value, step)


def open_board(folder: Path, start: int) -> Any:
    """TensorBoard's writer of a run; curves behind step ``start`` are written again.

    Raises:
        ImportError: it is not installed.
    """
    return summary_writer()(str(folder / "tensorboard"), purge_step=start + 1)


def summary_writer() -> Any:
    """TensorBoard's class of writers.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "train.tensorboard needs the package tensorboard: pip install 'glip[tensorboard]', or set "
            "train.tensorboard=false (metrics.jsonl has the same figures)"
        ) from None
    return SummaryWriter


def forget_after(path: Path, step: int, validated: int) -> None:
    """Cut from a run's metrics the steps and validations that are about to be repeated: no checkpoint holds them."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
        kept = [line for line, row in rows if row["step"] <= (validated if "validation" in row else step)]
        if kept != lines:
            write_atomically(path, lambda file: file.write("".join(kept).encode()))


def peak_memory(device: torch.device) -> float:
    """The most memory held so far, in MB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows, where the training has never run

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
