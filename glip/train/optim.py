"""The optimizer and its learning rates (AdamW, warm-up, step or cosine decay), and averages of weights."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from glip.config import TrainConfig
from glip.shapes import Tensor
from glip.train.distributed import local_shard

# What changes the tokens in the tower: the text layers, and the text's half of the fusion. A gate is one number that
# starts at 0: with the low rate of text layers it would hardly open.
_TEXT_PARTS = (".text.", "gamma_text", "out_text", "value_image", "norm_text")


def build_optimizer(
    model: nn.Module, *, lr: float, bert_lr: float, text_lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW for the parameters that require gradients; norms, biases and embeddings have no weight decay.

    ``bert_lr`` is the learning rate of the language model, ``text_lr`` that of the tower's layers that change the
    tokens, ``lr`` that of all others.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        writes_text = any(part in name for part in _TEXT_PARTS)
        rate = bert_lr if name.startswith("language.") else text_lr if writes_text else lr
        decay = 0.0 if parameter.ndim <= 1 or "bias" in name or "embeddings" in name else weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": found, "lr": rate, "base_lr": rate, "weight_decay": decay}
            for (rate, decay), found in groups.items()
        ],
        fused=True,  # one pass over the weights instead of ten
    )


def rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """What the base learning rate is multiplied by at a step of a run of ``steps`` steps.

    Linear warm-up, then a tenth after each drop, or half a cosine to zero.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(steps - config.warmup, 1)))
    return float(0.1 ** sum(step >= drop * steps for drop in config.drops))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class EMA:
    """The exponential moving average of a model's parameters; buffers, such as statistics, are the model's own.

    After n updates the decay is at most (1 + n) / (10 + n), so that the random weights of the first steps are soon
    forgotten (as in TensorFlow's ExponentialMovingAverage). ``decay`` is the share of the average that an update keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + self.updates) / (10 + self.updates)))
        now = [local_shard(value.detach()) for value in model.parameters()]
        average([local_shard(value) for value in self.weights.values()], now, self.updates)
        self.updates += 1


def wise_ft(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """``share`` of the starting weights and the rest of the trained ones, so that a fine-tuned model forgets less.

    Wortsman et al. 2022 (WiSE-FT, arXiv 2109.01903). Floating-point weights and statistics are averaged; weights that
    are equal in both stay exactly as they are; other buffers are the trained ones.
    """
    return {
        name: torch.lerp(value, start[name].to(value.device), share) if value.is_floating_point() else value
        for name, value in trained.items()
    }
