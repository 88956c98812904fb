"""Weights that are means: over the steps of a run (EMA), and of a run's end with its start (WiSE-FT)."""

from collections.abc import Mapping

import torch
from torch import nn

from glip.errors import ConfigError
from glip.shapes import Tensor
from glip.train.distributed import local_shard

State = dict[str, Tensor]


class RunningMean:
    """The exponential running mean of a model's parameters; buffers, such as batch norm's statistics, are the model's.

    After n updates the decay is at most (1 + n) / (10 + n), so that the random weights of the first steps are soon
    forgotten (as in TensorFlow's ExponentialMovingAverage).

    Args:
        model: whose parameters are averaged.
        decay: share of the mean that each update keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.means = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.named_parameters():
            local_shard(self.means[name]).lerp_(local_shard(value), 1 - decay)
        self.updates += 1


def wise_ft(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> State:
    """``share`` of the starting weights and the rest of the trained ones, so that a fine-tuned model forgets less.

    Wortsman et al. 2022 (WiSE-FT, arXiv 2109.01903). Floating weights and statistics are mixed; weights that are
    equal in both stay exactly as they are; other buffers are the trained ones.

    Args:
        start: state dict of the model that the training began with.
        trained: state dict of the same model, trained.
        share: of the start, 0 to 1.

    Raises:
        ValueError: a share outside 0..1, or other weights.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"train.wise_ft: got {share:g}: give a share of the starting weights, 0 to 1")
    if start.keys() != trained.keys():
        odd = sorted(start.keys() ^ trained.keys())[0]
        raise ConfigError(f"start and trained weights are not of one model: only one has {odd!r}: give its own start")
    return {
        name: torch.lerp(value, start[name].to(value.device), share) if value.is_floating_point() else value
        for name, value in trained.items()
    }
