"""Tuning for one task: epochs over its images, each followed by a validation, with nothing to watch over.

The schedule is the release's (``USE_AUTOSTEP``): the learning rate drops to a tenth after some epochs without
improvement, tuning ends after some more, and the best state is kept. Each step is that of training (``train/step.py``).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from glip.config import TuneConfig
from glip.console import ProgressBar, counted
from glip.detector import Detector
from glip.experiment import to_dict
from glip.files import refuse_other_run
from glip.model.adapt import Adaptation
from glip.shapes import Tensor
from glip.signals import AGAIN, GracefulStop
from glip.train.checkpoint import LAST, read_progress, read_state, restore, save_state
from glip.train.distributed import ONE, Group, copy_into, full_tensor, main_only, wrap_model
from glip.train.optim import build_optimizer
from glip.train.step import Outcome, Stepper, prepare
from glip.train.tuner import Images, TaskBatch, Tuner, by_size

_FEWEST_IMAGES = 64  # of an epoch: few shots are shown often
_MAY_CHANGE = (
    *("epochs", "patience", "micro_batch", "checkpointing", "compile", "max_bad_steps"),
    *("cache_gb", "thresholds"),
)
LORA_ONLY = ("rank", "alpha", "targets")  # settings of no meaning to the other modes
_RATES = {  # learning rate and weight decay; of the release, but lora's
    **{"prompt": (0.05, 0.25), "linear": (1e-4, 0.05), "text": (1e-5, 0.05), "full": (1e-4, 0.05)},
    "lora": (1e-3, 0.05),
}


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


@dataclass
class TuneRun:
    """One tuning, new or as its state file has it; called, it tunes to the end.

    Under torchrun every process makes one; the main one writes.

    Raises:
        GlipError: the folder holds another tuning, or a state that cannot be read.
    """

    tuner: Tuner  # on the device of this process
    images: Images
    config: TuneConfig  # its mode is the tuner's
    validate: Callable[[Detector], float]  # higher is better; called in all processes
    folder: Path  # where the state is written after each epoch
    group: Group = ONE
    inputs: str = ""  # identifies data and model; a state of another tuning is refused

    def __post_init__(self) -> None:
        tuner, config = self.tuner, self.config
        lr, decay = _RATES[config.mode]
        lr = lr if config.lr is None else config.lr
        decay = decay if config.weight_decay is None else config.weight_decay
        self.config = config = replace(config, lr=lr, weight_decay=decay)
        self.group = replace(self.group, device=torch.device(tuner.detector.device))
        self.path, self.state = self.folder / LAST, TuneState()
        self.made_from = {**to_dict(config), "prompt": tuner.prompt.caption, "inputs": self.inputs}
        prepare(tuner.model, config)
        module = wrap_model(tuner, self.group)
        if tuner.offsets is not None:
            optimizer = torch.optim.AdamW([tuner.offsets], lr=lr, weight_decay=decay)
        else:
            bert_lr = config.bert_lr if config.mode == "full" else lr
            optimizer = build_optimizer(tuner.model, lr=lr, bert_lr=bert_lr, text_lr=lr, weight_decay=decay)
        self.stepper = Stepper(tuner, module, optimizer, config, self.group)
        if self.path.is_file():
            stored = read_state(self.path)
            may_change = _MAY_CHANGE if config.mode == "lora" else (*_MAY_CHANGE, *LORA_ONLY)
            refuse_other_run(self.folder, stored["made_from"], self.made_from, may_change=may_change)
            restore(self.path, stored, self.stepper, tuner.learned())
            self.state = read_progress(self.path, stored, TuneState)

    def __call__(self, report: Callable[[str], None] = print) -> Adaptation:
        """Tune to the end; the result is the best state by validation.

        Raises:
            TrainingError: losses stayed non-finite.
            Interrupted: a signal came; the same call resumes.
            OSError: the state cannot be written.
        """
        state, report = self.state, main_only(self.group, report)
        with GracefulStop() as signals:
            if not state.history:
                self._judge(0.0, 0.0)
                report(f"before: AP {state.figure:.3f} on validation")
            elif self._ended_by:
                done = f"this tuning has finished after {counted(state.epochs, 'epoch')}"
                report(f"{done}; to tune longer give a larger --{self._ended_by}")
            while not self._ended_by:
                began = time.monotonic()
                loss = self._epoch(signals)
                state.epochs += 1
                self._judge(loss, time.monotonic() - began)
                save_state([self.path], self.stepper, self.tuner.learned(), state, self.made_from)
                report(self._line())
        copy_into(self.tuner.learned(), state.best)
        before = state.history[0]["validation"]
        if state.figure == before:
            report(
                "no epoch was better on validation: the task is the untuned model, but for thresholds; give more "
                "images, or another --lr"
            )
        return self.tuner.adaptation(figures={"validation": state.figure, "validation before": before}).to("cpu")

    def step(self, batches: Sequence[TaskBatch], *, stop: bool = False) -> Outcome:
        """One step on a few images, each padded size in a pass of its own."""
        outcome, state = self.stepper(list(by_size(batches, self.config.micro_batch)), stop=stop), self.state
        state.bad_in_row = state.bad_in_row + 1 if outcome.bad else 0
        self.stepper.stop_if_bad(outcome, state.bad_in_row, self.rate)
        return outcome

    @property
    def _ended_by(self) -> str:
        """The option that ends the tuning now; "" while it goes on."""
        is_last, is_stalled = self.state.epochs >= self.config.epochs, self.state.waited >= self.config.patience
        return "epochs" if is_last else "patience" if is_stalled else ""

    @property
    def rate(self) -> float:
        """The learning rate now."""
        return float(self.stepper.optimizer.param_groups[0]["lr"])

    def _epoch(self, signals: GracefulStop) -> float:
        """Show the next images; gives the mean loss of the steps. A stopped epoch starts over when it is resumed."""
        number, seed, rank = self.state.epochs, self.config.seed, self.group.rank
        torch.manual_seed(seed * 100_003 + number + (rank << 32))  # a resumed run draws the same
        rng = np.random.default_rng([seed, number, rank])
        losses = []
        hidden = not self.group.main
        for batch in ProgressBar(self._batches(), desc=f"epoch {number + 1}", unit="step", disable=hidden):
            share = len(batch) // self.group.size
            own = batch[rank * share : (rank + 1) * share]
            outcome = self.step([self.images.get(index, rng) for index in own], stop=signals.number > 0)
            losses.append(outcome.losses["loss"])
            signals.stop_if(outcome.stopping, f"{counted(number, 'epoch')} done and saved; {AGAIN}")
        finite = [loss for loss in losses if math.isfinite(loss)]
        return sum(finite) / max(len(finite), 1)

    def _batches(self) -> list[Sequence[int]]:
        """The next images of an endless row of passes over all, each in an order of its own."""
        usable, size = self.images.usable, self.config.batch_size
        count = self.config.images_per_epoch or max(_FEWEST_IMAGES, len(usable))
        count = math.ceil(count / self.group.size) * self.group.size  # equal shares for all processes
        first, shown = divmod(self.state.epochs * count, len(usable))
        passes = range(first, first + math.ceil((shown + count) / len(usable)))
        row = np.concatenate([np.random.default_rng([self.config.seed, 1, e]).permutation(usable) for e in passes])
        order = row[shown : shown + count].tolist()
        return [order[start : start + size] for start in range(0, count, size)]

    def _judge(self, loss: float, seconds: float) -> None:
        """Validate, keep the best, lower the learning rate where it has stalled."""
        state = self.state
        self.tuner.model.eval()
        figure = self.group.gather(self.validate(self.tuner.detector.adapted(self.tuner.adaptation())))[0]
        self.tuner.set_modes()
        state.history.append({"validation": figure, "loss": loss, "rate": self.rate, "seconds": seconds})
        if figure > state.figure:
            state.figure, state.waited, state.stalled = figure, 0, 0
            state.best = {name: full_tensor(value).clone() for name, value in self.tuner.learned().items()}
            return
        state.waited += 1
        state.stalled += 1
        if state.stalled >= self.config.drop_after:
            state.stalled = 0
            for group in self.stepper.optimizer.param_groups:
                group["lr"] *= 0.1

    def _line(self) -> str:
        """The last epoch, and how many are left; an improvement may add more, up to ``epochs``."""
        state, last = self.state, self.state.history[-1]
        more, waiting = self.config.epochs - state.epochs, self.config.patience - state.waited
        mean = sum(row["seconds"] for row in state.history) / state.epochs
        left = f"epochs left: {min(more, waiting)} ({min(more, waiting) * mean:.0f} s and validations)"
        outlook = f"{left} unless it improves" if 0 < waiting < more else left
        return (
            f"epoch {state.epochs}  loss {last['loss']:.3f}  validation AP {last['validation']:.3f}  best "
            f"{state.figure:.3f}  lr {last['rate']:.1e}  {last['seconds']:.1f} s  {outlook}"
        )
