"""Adaptation: what a model has learned for one task, small enough to keep, share and load on top of the model.

Paper section 5.2: with deep fusion, tuning only the prompt's embedding comes close to tuning everything, so that one
frozen model serves every task. On disk: ``model/adapt.py``; used by ``Detector.adapted``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

import torch

from glip.config import Mode, Share
from glip.errors import CheckpointError
from glip.schema import parse
from glip.shapes import Float, Tensor
from glip.text.prompt import Prompt

__all__ = ["ENCODER", "MODES", "Adaptation", "Mode"]

MODES: tuple[Mode, ...] = get_args(Mode)
ENCODER = ("vision.", "pyramid.")  # prefixes of the weights of a model's image encoder


@dataclass(frozen=True)
class Adaptation:
    """A task: its words, and what was tuned for them.

    Args:
        mode: what was tuned: "prompt" (offsets to the prompt's token features), "linear" (the heads' projections),
            "text" (the language model) or "full" (everything).
        model: name of the model it belongs to.
        fingerprint: fingerprint of that model's weights; it fits no others.
        names: the task's classes; label ``i`` of a detection is ``names[i]``.
        prompt: the caption; phrase ``i`` stands for ``names[i]``.
        offsets: mode "prompt": added to the features of each token of the caption, [CLS] and [SEP] included.
        weights: the other modes: the weights that changed, by their name in the model.
        thresholds: lowest score returned, for each name; () for the model's own.
        figures: what was measured, such as "AP50 on chess_val".
        about: how it was made: dataset, shots, seed.
    """

    mode: Mode
    model: str
    fingerprint: str
    names: tuple[str, ...]
    prompt: Prompt
    offsets: Float[Tensor, "tok chan"] | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parse(Mode, self.mode, at="mode", error=CheckpointError)
        parse(tuple[Share, ...], self.thresholds, at="thresholds", error=CheckpointError)
        count, phrases, thresholds = len(self.names), len(self.prompt.phrases), len(self.thresholds)
        if phrases != count or thresholds not in (0, count):
            raise CheckpointError(f"task of {count} names, {phrases} phrases, {thresholds} thresholds: tune again")
        if (self.mode == "prompt") != (self.offsets is not None):
            raise CheckpointError(f"task of mode {self.mode!r}: offsets belong to mode prompt, and only there")

    def to(self, device: torch.device | str) -> "Adaptation":
        """The same with its tensors on another device."""
        offsets = None if self.offsets is None else self.offsets.to(device)
        return replace(self, offsets=offsets, weights={name: value.to(device) for name, value in self.weights.items()})

    @property
    def keeps_encoder(self) -> bool:
        """Whether images are encoded as by the model itself."""
        return not any(name.startswith(ENCODER) for name in self.weights)
