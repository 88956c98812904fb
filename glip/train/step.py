"""One optimizer step of all processes together, for training and for tuning.

It equals one step on one big batch, however the images are divided into micro-batches and processes; where numbers are
not finite it changes nothing. Assignment needs no network, so what the losses are divided by is known before the first
forward pass: the totals of all micro-batches of all processes. Gradients are then sums.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from glip.config import StepConfig
from glip.errors import ConfigError, TrainingError
from glip.geometry.anchors import grid_anchors, level_sizes
from glip.loss import Matching, Totals, compute_losses, match
from glip.model.glip import GLIP
from glip.structures import Batch
from glip.train.distributed import Group, gradient_sync, is_sharded, local_shard

TERMS = ("token", "box", "centerness")
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALLEST_SCALE = 1.0  # of the loss under float16; where gradients overflow even so, the step is a bad one


def prepare(model: GLIP, config: StepConfig) -> None:
    """Turn on gradient checkpointing and torch.compile where the config says so."""
    model.checkpoint_gradients(config.checkpointing)
    if config.compile:
        model.vision.compile()
        for stage in model.tower:
            stage.get_submodule("image").compile()


def frozen_to_eval(model: GLIP) -> None:
    """Set parts without a trainable parameter to eval mode, so that dropout does not blur what cannot adapt."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@dataclass(frozen=True)
class Outcome:
    """The result of a step, the same in every process.

    ``losses`` holds the three terms and their sum, ``norm`` is the gradient norm before clipping. A step that was not
    ``stepped`` changed nothing: it was bad, or under float16 an ``overflow`` that a smaller loss scale repairs.
    ``stopping``: some process was asked to stop.
    """

    losses: dict[str, float]
    norm: float
    images: int
    stepped: bool
    overflow: bool
    stopping: bool

    @property
    def bad(self) -> bool:
        """Whether losses or gradients were not finite for another reason than the loss scale."""
        return not (self.stepped or self.overflow)


@dataclass
class Stepper:
    """Takes optimizer steps.

    Raises:
        ConfigError: float16 on a CPU or with FSDP.
    """

    model: nn.Module  # what is trained; called with a batch it gives Outputs
    module: nn.Module  # the model as it is called: itself, or wrapped so that it shares gradients between processes
    optimizer: torch.optim.Optimizer
    config: StepConfig  # precision, gradient clipping, and how many bad steps in a row are too many
    group: Group

    def __post_init__(self) -> None:
        half = self.config.precision == "float16"
        if half and (self.group.device.type == "cpu" or is_sharded(self.module)):
            raise ConfigError("precision float16 needs a GPU, and not FSDP: give bfloat16 or float32")
        self.scaler = torch.amp.GradScaler(self.group.device.type, enabled=half)

    def __call__(self, batches: Sequence[Batch], *, stop: bool = False) -> Outcome:
        """Step once on micro-batches; ``stop`` lets all processes know that this one was asked to stop.

        Where a loss or a gradient is not finite, weights, optimizer and running statistics stay, in all processes.
        """
        device = self.group.device
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        matchings = [self._match(batch) for batch in batches]
        own = [[one.totals.num_positive, one.totals.centerness, len(one.targets)] for one in matchings]
        counts = self.group.sum(torch.tensor(own, dtype=torch.float64, device=device).sum(0)).tolist()
        self.optimizer.zero_grad(set_to_none=True)
        terms = torch.zeros(len(TERMS), dtype=torch.float64, device=device)
        for number, (batch, matching) in enumerate(zip(batches, matchings, strict=True), start=1):
            with gradient_sync(self.module, last=number == len(batches)):
                terms += self._backward(batch.to(device), matching, Totals(*counts[:2]))
        self.scaler.unscale_(self.optimizer)
        losses, norm, stopping = self._all_reduce(terms, stop)
        good_losses = all(map(math.isfinite, losses.values()))
        stepped = good_losses and math.isfinite(norm)
        if stepped:
            factor = self.config.clip / (norm + 1e-6)
            for parameter in self.model.parameters() if factor < 1 else ():
                if parameter.grad is not None:
                    local_shard(parameter.grad).mul_(factor)
            self.scaler.step(self.optimizer)
        else:
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        overflow = not stepped and good_losses and self.scaler.is_enabled() and self.scale > _SMALLEST_SCALE
        self.scaler.update()
        return Outcome(losses, norm, int(counts[2]), stepped, overflow, stopping)

    @property
    def scale(self) -> float:
        """What losses are multiplied by under float16, so that small gradients do not vanish."""
        return self.scaler.get_scale()

    def stop_if_bad(self, outcome: Outcome, in_row: int, rate: float) -> None:
        """End a run after too many bad steps, with what was not finite and each part's largest gradient.

        Raises:
            TrainingError: ``in_row`` steps, of which the outcome is the last, are as many as ``max_bad_steps``.
        """
        if in_row < self.config.max_bad_steps:
            return
        largest: dict[str, float] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and parameter.grad.numel():
                part = name.removeprefix("model.").split(".")[0]  # a Tuner holds its model
                value = local_shard(parameter.grad).abs().max().item()  # max() gives nan where there is one
                before = largest.get(part, 0.0)
                largest[part] = value if math.isnan(value) or value > before else before
        terms = [f"{name} {value:g}" for name, value in outcome.losses.items() if not math.isfinite(value)]
        gradients = ", ".join(f"{part} {value:.3g}" for part, value in largest.items())
        scale = f", loss scale {self.scale:g}" if self.scaler.is_enabled() else ""
        raise TrainingError(
            f"losses or gradients were not finite in {in_row} steps in a row ({', '.join(terms) or 'losses are finite'}"
            f"; largest gradients: {gradients}; learning rate {rate:.2g}{scale}). They were skipped: start over in "
            "another folder with a lower learning rate, a longer warm-up or precision float32; the same command goes "
            "on after the last checkpoint"
        )

    def _match(self, batch: Batch) -> Matching:
        sizes = level_sizes(*batch.images.pixels.shape[2:])
        device = self.group.device
        return match([target.to(device) for target in batch.targets], grid_anchors(sizes, device=device), sizes)

    def _backward(self, batch: Batch, matching: Matching, totals: Totals) -> torch.Tensor:
        """Add the gradients of a micro-batch; gives its losses, which are shares of those of the step."""
        dtype = _TYPES[self.config.precision]
        with torch.autocast(self.group.device.type, dtype=dtype, enabled=dtype != torch.float32):
            outputs = self.module(batch)
        losses = compute_losses(outputs, matching, batch.text.attention_mask, totals=totals)
        # Processes average their gradients; the totals ask for the sum.
        self.scaler.scale(losses.total * self.group.size).backward()  # type: ignore[no-untyped-call]
        return torch.stack([losses.token, losses.box, losses.centerness]).detach().double()

    def _all_reduce(self, terms: torch.Tensor, stop: bool) -> tuple[dict[str, float], float, bool]:
        """The losses, the gradient norm, and whether to stop: one exchange, one wait for the GPU."""
        squares = [local_shard(p.grad).norm().double().square() for p in self.model.parameters() if p.grad is not None]
        square = torch.stack(squares).sum() / (1 if is_sharded(self.module) else self.group.size)
        met = self.group.sum(torch.cat([terms, torch.stack([square, square.new_tensor(float(stop))])]))
        token, box, centerness, square_sum, stops = met.tolist()
        losses = {"token": token, "box": box, "centerness": centerness, "loss": token + box + centerness}
        return losses, math.sqrt(square_sum), stops > 0
