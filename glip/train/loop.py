"""Training: batches -> losses -> a stepped model, with checkpoints, from one Experiment."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from glip.config import Experiment, to_yaml
from glip.loss import Criterion, Losses
from glip.model.glip import GLIP
from glip.structures import Batch
from glip.train.checkpoint import NAME, load_state, save_state
from glip.train.optim import build_optimizer, rate_factor, set_rates

_MAX_BAD_STEPS = 20


class TrainingError(ValueError):
    """A run that cannot go on; the message says why."""


def train(
    experiment: Experiment,
    model: GLIP,
    batches: Callable[[int], Iterator[Batch]],
    *,
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = print,
) -> GLIP:
    """Train a model; a run found in the output folder is resumed where it stopped.

    Args:
        experiment: the resolved config; its ``train`` part is used here and all of it is written to the output.
        model: the model, moved to ``device``.
        batches: gives the batches from a step on; step n's batch must depend on n alone.
        device: where to compute.
        report: receives a line every ``log_every`` steps.

    Raises:
        TrainingError: losses stayed non-finite.
        ValueError: the output folder holds a run of another model.
    """
    settings = experiment.train
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "experiment.yaml").write_text(to_yaml(experiment), encoding="utf-8")
    model = model.to(device).train()
    keep_frozen_still(model)
    optimizer = build_optimizer(
        model, lr=settings.lr, bert_lr=settings.bert_lr, text_lr=settings.text_lr, weight_decay=settings.weight_decay
    )
    start = load_state(output / NAME, model, optimizer) if (output / NAME).is_file() else 0
    if start:
        report(f"resumed {output / NAME} at step {start}")
    else:
        torch.manual_seed(settings.seed)
    forget_after(output / "metrics.jsonl", start)
    log = ProgressLog(output / "metrics.jsonl", steps=settings.steps, start=start, every=settings.log_every)
    bad_steps = 0
    for step, batch in enumerate(batches(start), start=start):
        factor = rate_factor(
            step, steps=settings.steps, warmup=settings.warmup, schedule=settings.schedule, drops=settings.drops
        )
        set_rates(optimizer, factor)
        losses, stepped = _step(model, optimizer, batch.to(device), clip=settings.clip, precision=settings.precision)
        bad_steps = 0 if stepped else bad_steps + 1
        if bad_steps > _MAX_BAD_STEPS:
            raise TrainingError(
                f"losses or gradients were not finite in the {bad_steps} steps up to step {step + 1}: lower train.lr "
                f"(now {settings.lr:g}), or lengthen train.warmup, and run the same command again"
            )
        line = log.add(step, losses, len(batch.targets), settings.lr * factor)
        if line:
            report(line)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save_state(output, model, optimizer, step + 1)
    return model.eval()


def keep_frozen_still(model: GLIP) -> None:
    """Parts without a trainable parameter run in eval mode, so that dropout does not blur what cannot adapt."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def forget_after(path: Path, step: int) -> None:
    """Cut from a run's metrics the steps that are about to be repeated, because their checkpoint was not reached."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


def _step(
    model: GLIP, optimizer: torch.optim.Optimizer, batch: Batch, *, clip: float, precision: str
) -> tuple[Losses, bool]:
    """One step; where a gradient is not finite weights and running means stay, so a bad batch breaks nothing."""
    device = batch.images.pixels.device.type
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        outputs = model(batch)
    losses = Criterion()(outputs, batch.targets, batch.text.attention_mask)
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), clip)
    stepped = bool(torch.isfinite(norm) & torch.isfinite(losses.total))
    if stepped:
        optimizer.step()
    else:
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return losses, stepped


class ProgressLog:
    """Means over the last steps as a line with speed and time left, and as a line of ``metrics.jsonl``."""

    def __init__(self, path: Path, *, steps: int, start: int, every: int) -> None:
        self.path, self.steps, self.every = path, steps, every
        self.began, self.start = time.monotonic(), start
        self.rows: list[dict[str, float]] = []
        self.pictures = 0

    def add(self, step: int, losses: Losses, pictures: int, lr: float) -> str:
        """Note a step; gives a line to show when one is due, else nothing."""
        terms = {"token": losses.token, "box": losses.box, "centerness": losses.centerness, "loss": losses.total}
        self.rows.append({name: float(value.detach()) for name, value in terms.items()})
        self.pictures += pictures
        if (step + 1) % self.every and step + 1 != self.steps:
            return ""
        means = {name: math.fsum(row[name] for row in self.rows) / len(self.rows) for name in terms}
        self.rows = []
        seconds = time.monotonic() - self.began
        left = seconds / (step + 1 - self.start) * (self.steps - step - 1)
        speed = self.pictures / seconds
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step + 1, "lr": lr, **means, "pictures_per_second": speed}) + "\n")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        return f"step {step + 1}/{self.steps}  {shown}  lr {lr:.1e}  {speed:.1f} pictures/s  {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
