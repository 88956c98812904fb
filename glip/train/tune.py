"""Tuning for one task: epochs over its images, each followed by a validation, that need no babysitting.

The schedule is the release's (``USE_AUTOSTEP``): the rate falls to a tenth when the validation has not risen for some
epochs, the tuning ends when it has not for some more, and the best state is what is kept.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from glip.adaptation import Adaptation, Mode
from glip.detector import Detector
from glip.errors import ConfigError, TrainingError
from glip.geometry.anchors import grid_anchors, level_sizes
from glip.loss import Totals, compute_losses, match
from glip.shapes import Tensor
from glip.signals import GracefulStop, Interrupted
from glip.train.checkpoint import remove_written, write_state
from glip.train.optim import build_optimizer
from glip.train.tuning import Images, Prepared, Tuner, by_size

STATE = "last.pt"
_FEWEST_VIEWS = 64


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How a task is tuned; ``usual_settings`` gives the release's rates of each mode.

    Args:
        lr: rate of what is tuned.
        bert_lr: of the language model in mode full.
        weight_decay: of matrices; of prompt offsets too, which it draws back to the untuned prompt.
        batch_size: images of a step.
        epochs: at most.
        images_per_epoch: images shown in a epoch, 0 for each of them once but 64 at least (few shots are shown often).
        drop_after: epochs without a rise after which the rate falls to a tenth.
        patience: epochs without a rise after which the tuning ends.
        clip: largest norm of a gradient.
        precision: what the network computes in.
        max_bad_steps: steps in a row whose numbers are not finite, after which the tuning fails.
        seed: of the order of the images.
    """

    lr: float
    bert_lr: float = 1e-5
    weight_decay: float
    batch_size: int = 4
    epochs: int = 100
    images_per_epoch: int = 0
    drop_after: int = 3
    patience: int = 8
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    max_bad_steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("batch_size", "epochs", "drop_after", "patience"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}: got {getattr(self, key)}: give 1 or more")
        if self.images_per_epoch < 0:
            raise ConfigError(f"images_per_epoch: got {self.images_per_epoch}: give 1 or more, or 0 for all images")
        for key in ("lr", "bert_lr", "weight_decay"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) >= 0):
                raise ConfigError(f"{key}: got {getattr(self, key)}: give a number from 0 on")


def remove_state(folder: Path) -> None:
    """Remove what a tuning goes on from, once its result is safe."""
    remove_written(folder / STATE)


def usual_settings(mode: Mode, **changed: Any) -> TuneSettings:
    """The release's rates of a mode: for prompts 0.05 with decay 0.25, else 1e-4 and for BERT 1e-5 with decay 0.05."""
    rates = {
        "prompt": {"lr": 0.05, "weight_decay": 0.25},
        "linear": {"lr": 1e-4, "weight_decay": 0.05},
        "full": {"lr": 1e-4, "weight_decay": 0.05},
        "text": {"lr": 1e-5, "weight_decay": 0.05},
    }
    return TuneSettings(**{**rates[mode], **changed})


@dataclass
class TuneState:
    """A tuning on its way; ``history`` has the validation before it and after each epoch, ``figure`` the best."""

    epochs: int = 0
    figure: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0  # epochs since the best
    stalled: int = 0  # epochs since the best or the last drop of the rate
    bad_in_row: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class TuneRun:
    """One tuning, new or as its state file has it.

    Args:
        tuner: what is tuned.
        images: what it is tuned on.
        settings: how.
        validate: the figure of a detector, higher is better.
        folder: where the state is written after each epoch; made if missing.
        of: what this tuning is of; a state of another one is refused.

    Raises:
        ValueError: the folder holds another tuning, or a state that cannot be read.
    """

    def __init__(
        self,
        tuner: Tuner,
        images: Images,
        settings: TuneSettings,
        *,
        validate: Callable[[Detector], float],
        folder: Path,
        of: str = "",
    ) -> None:
        self.tuner, self.images, self.settings, self.validate = tuner, images, settings, validate
        same = asdict(replace(settings, epochs=1))  # more epochs may be asked for later
        self.folder, self.of = folder, f"{of} {tuner.mode} {tuner.prompt.caption!r} {same}"
        folder.mkdir(parents=True, exist_ok=True)
        self.trained = tuner.trained()
        self.optimizer = build_tuning_optimizer(tuner, settings)
        self.state = TuneState()
        if (folder / STATE).is_file():
            self._resume(folder / STATE)

    def __call__(self, report: Callable[[str], None] = print) -> Adaptation:
        """Tune to the end; the best state by validation is what comes out.

        Raises:
            TrainingError: losses stayed non-finite.
            Interrupted: a signal came; the same call goes on.
            OSError: the state cannot be written.
        """
        state, settings = self.state, self.settings
        with GracefulStop() as wish:
            if not state.history:
                self._judge(0.0, 0.0)
                report(f"before: {state.figure:.3f} on validation")
            while state.epochs < settings.epochs and state.waited < settings.patience:
                began = time.monotonic()
                loss = self._epoch(wish)
                state.epochs += 1
                self._judge(loss, time.monotonic() - began)
                write_state(self.folder / STATE, self._captured())
                report(self._line())
                self._stop_if_asked(wish)
        with torch.no_grad():
            for name, value in state.best.items():
                self._target(name).copy_(value)
        found = self.tuner.adaptation(figures={"validation": state.figure, "validation before": self.before})
        return found.to("cpu")

    @property
    def before(self) -> float:
        """The validation of the untuned model."""
        return self.state.history[0]["validation"]

    # ---- one epoch

    def _stop_if_asked(self, wish: GracefulStop) -> None:
        if wish.number:
            raise Interrupted(wish.number, f"stopped after epoch {self.state.epochs}")

    def _epoch(self, wish: GracefulStop) -> float:
        """Show the next images; gives the mean loss of the steps. A stopped epoch begins anew."""
        number, settings = self.state.epochs, self.settings
        torch.manual_seed(settings.seed * 100_003 + number)  # a resumed run draws the same
        rng = np.random.default_rng([settings.seed, number])
        losses = []
        for batch in tqdm(self._batches(), desc=f"epoch {number + 1}", unit="step", disable=None, leave=False):
            losses.append(self.step([self.images.get(index, rng) for index in batch]))
            self._stop_if_asked(wish)
        finite = [loss for loss in losses if math.isfinite(loss)]
        return sum(finite) / max(len(finite), 1)

    def _batches(self) -> list[Sequence[int]]:
        """The next images of an endless row of passes over all, each in an order of its own."""
        usable, size = self.images.usable, self.settings.batch_size
        images_per_epoch = self.settings.images_per_epoch or max(_FEWEST_VIEWS, len(usable))
        first, shown = divmod(self.state.epochs * images_per_epoch, len(usable))
        passes = range(first, first + math.ceil((shown + images_per_epoch) / len(usable)))
        row = np.concatenate([np.random.default_rng([self.settings.seed, 1, e]).permutation(usable) for e in passes])
        order = row[shown : shown + images_per_epoch].tolist()
        return [order[start : start + size] for start in range(0, images_per_epoch, size)]

    def step(self, prepared: Sequence[Prepared]) -> float:
        """One step on a few images, each padded size in a pass of its own, over the totals of all; gives the loss."""
        groups = list(by_size(prepared))
        device = self.tuner.detector.device
        matchings = []
        for group in groups:
            sizes = level_sizes(*group.batch.images.pixels.shape[2:])
            targets = [target.to(device) for target in group.batch.targets]
            matchings.append(match(targets, grid_anchors(sizes, device=device), sizes))
        own = [matching.totals for matching in matchings]
        totals = Totals(sum(one.num_positive for one in own), sum(one.centerness for one in own))
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for group, matching in zip(groups, matchings, strict=True):
            with self._precision():
                levels = group.levels or self.tuner.encode(group.batch)
                outputs = self.tuner(tuple(level.to(device) for level in levels))
            mask = self.tuner.text.attention_mask.expand(len(group.batch.targets), -1)
            losses = compute_losses(outputs, matching, mask, totals=totals)
            losses.total.backward()  # type: ignore[no-untyped-call]
            total += float(losses.total.detach())
        norm = float(nn.utils.clip_grad_norm_(self.trained.values(), self.settings.clip))
        self._count_bad(math.isfinite(total) and math.isfinite(norm))
        return total

    def _count_bad(self, good: bool) -> None:
        if good:
            self.optimizer.step()
        self.state.bad_in_row = 0 if good else self.state.bad_in_row + 1
        if self.state.bad_in_row >= self.settings.max_bad_steps:
            raise TrainingError(
                f"losses or gradients were not finite in {self.state.bad_in_row} steps in a row at rate "
                f"{self.rate:.2g}: tune anew in another folder with a lower rate, or with precision float32"
            )

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self.settings.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.tuner.detector.device.type, dtype=torch.bfloat16)

    # ---- after a epoch

    def _judge(self, loss: float, seconds: float) -> None:
        """Validate, keep the best, lower the rate where it has stalled."""
        state, settings = self.state, self.settings
        self.tuner.model.eval()
        figure = self.validate(self.tuner.detector.adapted(self.tuner.adaptation()))
        self.tuner.set_modes()
        state.history.append({"validation": figure, "loss": loss, "rate": self.rate, "seconds": seconds})
        if figure > state.figure:
            state.figure, state.waited, state.stalled = figure, 0, 0
            state.best = {name: self._target(name).detach().cpu().clone() for name in self._names()}
            return
        state.waited += 1
        state.stalled += 1
        if state.stalled >= settings.drop_after:
            state.stalled = 0
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.1

    @property
    def rate(self) -> float:
        """The rate now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _line(self) -> str:
        state, last = self.state, self.state.history[-1]
        return (
            f"epoch {state.epochs}  loss {last['loss']:.3f}  validation {last['validation']:.3f}  best "
            f"{state.figure:.3f}  rate {last['rate']:.1e}  {last['seconds']:.1f} s  {self._outlook()}"
        )

    def _outlook(self) -> str:
        """How long it goes on, which a rise may lengthen up to the epochs that were asked for."""
        state = self.state
        more, waiting = self.settings.epochs - state.epochs, self.settings.patience - state.waited
        left = min(more, waiting)
        if left == 0:
            return "the last epoch"
        mean = sum(row["seconds"] for row in state.history) / state.epochs
        ends = f"{left} more epoch{'s' if left > 1 else ''} ({left * mean:.0f} s and validations)"
        return f"ends after {ends}" + (" unless it rises" if waiting < more else "")

    # ---- on disk

    def _names(self) -> list[str]:
        parameters = dict(self.tuner.model.named_parameters())
        buffers = [name for name in self.tuner.model.state_dict() if name not in parameters]
        return [*self.trained, *(buffers if self.tuner.mode == "full" else ())]

    def _target(self, name: str) -> Tensor:
        found = self.trained.get(name)
        return self.tuner.model.get_buffer(name) if found is None else found

    def _captured(self) -> dict[str, Any]:
        now = {name: self._target(name).detach().cpu().clone() for name in self._names()}
        return {"of": self.of, "now": now, "optimizer": self.optimizer.state_dict(), "state": asdict(self.state)}

    def _resume(self, path: Path) -> None:
        try:
            tree = torch.load(path, map_location="cpu", weights_only=True)
            of = tree["of"]
        except Exception as error:  # a broken file makes torch raise almost anything
            raise ConfigError(
                f"{str(path)!r} cannot be read ({type(error).__name__}): remove it to tune anew, or give another folder"
            ) from None
        if of != self.of:
            raise ConfigError(
                f"{str(path.parent)!r} holds another tuning (other images, settings, words or weights): give another "
                "--out, or remove it to tune anew"
            )
        with torch.no_grad():
            for name, value in tree["now"].items():
                self._target(name).copy_(value)
        self.optimizer.load_state_dict(tree["optimizer"])
        self.state = TuneState(**tree["state"])


def build_tuning_optimizer(tuner: Tuner, settings: TuneSettings) -> torch.optim.AdamW:
    """The ordinary training's optimizer of the weights that train, or one for the prompt's offsets."""
    if tuner.offsets is not None:
        return torch.optim.AdamW([tuner.offsets], lr=settings.lr, weight_decay=settings.weight_decay)
    return build_optimizer(
        tuner.model,
        lr=settings.lr,
        bert_lr=settings.bert_lr if tuner.mode == "full" else settings.lr,
        text_lr=settings.lr,
        weight_decay=settings.weight_decay,
    )
