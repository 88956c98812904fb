"""The nouns of glip: what travels between files is one of these frozen records, never a bare dict.

In the order data flows: Phrase and Prompt (words, from text/prompt.py), Sample (one annotated image), Batch and Target
(what the network reads), Outputs (what it computes), Detections (what a person receives, from results.py).
Boxes are absolute xyxy pixels everywhere; masks are Bool with True = keep; sizes are (height, width) unless said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from glip.results import Detections as Detections  # "as" for those that are imported from here
from glip.shapes import Bool, Float, Int, Tensor
from glip.shapes import Size as Size
from glip.text.phrases import Span as Span
from glip.text.prompt import Phrase as Phrase
from glip.text.prompt import Prompt as Prompt


@dataclass(frozen=True)
class TarMember:
    """An image inside a tar: the bytes [start, start + length) of the archive, and the member's name."""

    archive: Path
    name: str
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


@dataclass(frozen=True)
class Sample:
    """One annotated image, from a reader to the processor.

    A detection set gives ``vocabulary`` (all its names) and no prompt; the prompt is written for training. A grounding
    set gives the prompt. ``box_phrases[i]`` lists what names box ``i``: indices into the prompt's phrases when there
    is a prompt, else into the vocabulary.

    Args:
        image: a file, a member of an archive, or the loaded image.
        boxes: xyxy in pixels of the image.
        box_phrases: what names each box.
        vocabulary: all names of a detection set.
        prompt: caption and phrases of a grounding set.
        caption: a caption whose phrases are not found yet; such a sample has no boxes.
        image_id: the image's id in its set.
        size: (width, height) as the annotations state it, when they do.
        crowd: indices of boxes that mark a group, not a thing; nothing is learned from them.
        absent: names (indices) verified as absent; None where every name without a box is absent.
        incomplete: names (indices) whose things do not all have boxes, so that they are never in a prompt.
        scores: the score of each box of a pseudo-label, which weights its losses; empty for boxes that people drew.
        box_loss: whether box regression is trained on the boxes, or only the alignment with words.
        kinds: for each phrase of the prompt its groups in tables, such as Flickr30K's people; empty where unknown.
        masks: the mask of each box as COCO's run lengths, or empty.
    """

    image: Path | TarMember | Image.Image
    boxes: Float[Tensor, "box 4"]
    box_phrases: tuple[tuple[int, ...], ...]
    vocabulary: tuple[str, ...] = ()
    prompt: Prompt | None = None
    caption: str = ""
    image_id: int | str = 0
    size: tuple[int, int] | None = None
    crowd: tuple[int, ...] = ()
    absent: tuple[int, ...] | None = None
    incomplete: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    box_loss: bool = True
    kinds: tuple[tuple[str, ...], ...] = ()
    masks: tuple[Mapping[str, Any], ...] = ()

    def keep(self, chosen: Sequence[int]) -> "Sample":
        """The sample with only some of its boxes, by index, in that order."""
        place = {index: number for number, index in enumerate(chosen)}
        return replace(
            self,
            boxes=self.boxes[list(chosen)],
            box_phrases=tuple(self.box_phrases[index] for index in chosen),
            crowd=tuple(place[index] for index in self.crowd if index in place),
            scores=tuple(self.scores[index] for index in chosen) if self.scores else (),
            masks=tuple(self.masks[index] for index in chosen) if self.masks else (),
        )

    def renumbered(self, place: Mapping[int, int]) -> "Sample":
        """The sample with its boxes pointing at ``place[name]``; a box is dropped when none of its names is there."""
        named = [tuple(dict.fromkeys(place[name] for name in own if name in place)) for own in self.box_phrases]
        kept = self.keep([box for box, own in enumerate(named) if own])
        return replace(kept, box_phrases=tuple(own for own in named if own))


@dataclass(frozen=True)
class Target:
    """What should be found in one image: boxes in resized pixels and the tokens that name each.

    ``weights`` scale the losses of each box, None for 1; without ``box_loss`` only the alignment with words is trained.
    """

    boxes: Float[Tensor, "box 4"]
    positive_map: Bool[Tensor, "box tok"]
    weights: Float[Tensor, " box"] | None = None
    box_loss: bool = True

    def to(self, device: torch.device | str) -> "Target":
        """The same target on another device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Target(self.boxes.to(device), self.positive_map.to(device), weights, self.box_loss)


@dataclass(frozen=True)
class TextBatch:
    """Tokenized captions, padded to the longest of the batch, and which tokens name which phrase.

    ``phrase_tokens[i]`` holds for each phrase of caption ``i`` the weight of every token in the phrase's score: rows
    sum to one, so a phrase's score is the (weighted) mean over its tokens.
    """

    input_ids: Int[Tensor, "batch tok"]
    attention_mask: Bool[Tensor, "batch tok"]
    phrase_tokens: tuple[Float[Tensor, "_phrase tok"], ...]
    prompts: tuple[Prompt, ...]

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same captions on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            phrase_tokens=tuple(row.to(device) for row in self.phrase_tokens),
        )


@dataclass(frozen=True)
class ImageBatch:
    """Normalized images, zero-padded right and bottom to one size; sizes are (height, width) in pixels."""

    pixels: Float[Tensor, "batch 3 height width"]
    resized: tuple[Size, ...]
    original: tuple[Size, ...]

    def to(self, device: torch.device | str) -> "ImageBatch":
        """The same images on another device."""
        return replace(self, pixels=self.pixels.to(device))


@dataclass(frozen=True)
class Batch:
    """What the network reads: images, captions and, in training, one target per image."""

    images: ImageBatch
    text: TextBatch
    targets: tuple[Target, ...] = ()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.images.to(device), self.text.to(device), tuple(t.to(device) for t in self.targets))


@dataclass(frozen=True)
class Outputs:
    """Predictions at each location; levels P3..P7 are flattened (y, x) and concatenated.

    ``level_sizes`` are the (height, width) of each level, so that ``sum(h * w)`` is the length of axis ``loc``.
    """

    token_logits: Float[Tensor, "batch loc tok"]
    box_deltas: Float[Tensor, "batch loc 4"]
    centerness: Float[Tensor, "batch loc"]
    anchors: Float[Tensor, "loc 4"]
    level_sizes: tuple[Size, ...]
