"""What is stepped, and how fast: AdamW with parameter groups, warm-up, and step or cosine decay."""

import math
from collections.abc import Sequence

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, *, lr: float, bert_lr: float, text_lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW; norms, biases and embeddings have no decay.

    Args:
        model: whose parameters with a gradient are stepped.
        lr: the rate of all but the text.
        bert_lr: of the language model.
        text_lr: of what changes the tokens in the tower.
        weight_decay: of matrices and kernels.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = bert_lr if name.startswith("language.") else text_lr if writes_text(name) else lr
        decay = 0.0 if parameter.ndim <= 1 or "bias" in name or "embeddings" in name else weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": found, "lr": rate, "base_lr": rate, "weight_decay": decay}
            for (rate, decay), found in groups.items()
        ],
        fused=True,  # one pass over the weights instead of ten
    )


def writes_text(name: str) -> bool:
    """Whether a parameter of the tower changes the tokens: the text layers, and the text's half of the fusion."""
    return any(part in name for part in (".text.", "gamma_text", "out_text", "value_image", "norm_text"))


def rate_factor(step: int, *, steps: int, warmup: int, schedule: str, drops: Sequence[float]) -> float:
    """The share of the base rate at a step: linear warm-up, then a tenth after each drop, or half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
    passed = sum(step >= drop * steps for drop in drops)
    return float(0.1**passed)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
