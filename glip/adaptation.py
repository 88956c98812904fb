"""Adaptation: what a model has learned for one task, small enough to keep, share and load on top of the model.

Paper section 5.2: with deep fusion, tuning only the prompt's embedding comes close to tuning everything, so that one
frozen model serves every task. On disk: ``model/adapt.py``; used by ``Detector.adapted``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from glip.errors import GlipError
from glip.shapes import Float, Tensor
from glip.structures import Prompt

Mode = Literal["prompt", "linear", "full", "text"]
MODES: tuple[Mode, ...] = get_args(Mode)
ENCODER = ("vision.", "pyramid.")  # what the weights of a model's image encoder begin with


@dataclass(frozen=True)
class Adaptation:
    """A task: its words, and what was tuned for them.

    Args:
        mode: what was tuned: "prompt" (offsets to the prompt's token features), "linear" (the heads' projections),
            "text" (the language model) or "full" (everything).
        model: name of the model it belongs to.
        fingerprint: of that model's weights; on others it means nothing.
        names: the task's classes; label ``i`` of a detection is ``names[i]``.
        prompt: what is asked; phrase ``i`` stands for ``names[i]``.
        offsets: mode "prompt": added to the features of each token of the caption, [CLS] and [SEP] included.
        weights: the other modes: the weights that changed, by their name in the model.
        thresholds: lowest score shown, for each name; () for the model's own.
        figures: what was measured, such as "AP50 on chess_val".
        about: how it was made: set, shots, seed.
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
        if self.mode not in MODES:
            raise GlipError(f"mode {self.mode!r} is not known: give one of {', '.join(MODES)}")
        if len(self.names) != len(self.prompt.phrases):
            raise GlipError(f"{len(self.names)} names for {len(self.prompt.phrases)} phrases: give a name for each")
        if len(self.thresholds) not in (0, len(self.names)):
            raise GlipError(f"{len(self.thresholds)} thresholds for {len(self.names)} names: give one for each")
        for name, threshold in zip(self.names, self.thresholds, strict=False):
            if not 0 <= threshold <= 1:
                raise GlipError(f"threshold {threshold} of {name!r} is outside [0, 1]: scores are probabilities")
        if (self.mode == "prompt") != (self.offsets is not None):
            raise GlipError(f"mode {self.mode!r}: offsets belong to mode prompt, and only there")

    def to(self, device: torch.device | str) -> "Adaptation":
        """The same with its tensors on another device."""
        offsets = None if self.offsets is None else self.offsets.to(device)
        return replace(self, offsets=offsets, weights={name: value.to(device) for name, value in self.weights.items()})

    @property
    def keeps_encoder(self) -> bool:
        """Whether images are encoded as by the model itself."""
        return not any(name.startswith(ENCODER) for name in self.weights)
