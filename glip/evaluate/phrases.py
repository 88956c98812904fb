"""Phrase grounding: how often a caption's phrase finds its box among the first k (recall@k, Plummer et al. 2015).

As the evaluator of Flickr30K Entities counts (MDETR's and the release's ``flickr_eval.py``): an overlap of exactly a
half is a hit, and every phrase's boxes end with a box of nothing, which takes a rank and never hits.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from glip.errors import DataError
from glip.geometry.boxes import iou
from glip.shapes import Float, Tensor
from glip.structures import Detections, Sample

PROTOCOLS = ("any-box", "merged-boxes")
RANKS = (1, 5, 10)
_OVERLAP = 0.5
_LIMITS = (*RANKS, None)  # None: all boxes, the upper bound
_ID = re.compile(r"(.+):([0-9]{1,9})", re.DOTALL)  # of a caption: its image and its sentence
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class PhraseTruth:
    """The boxes of one phrase (xyxy in pixels, at least one) and its kinds; a kind written twice counts twice."""

    boxes: Float[Tensor, "box 4"]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionTruth:
    """The phrases of one caption that are asked for, in the caption's order: those that have a box.

    Captions count from 0 in their image; ``image`` is a number where the id is written as one.
    """

    image: int | str
    sentence: int
    phrases: tuple[PhraseTruth, ...]


@dataclass(frozen=True)
class PhraseRecall:
    """Share of the phrases that were found: ``at[k]`` with the first k boxes, ``upper_bound`` with all of them.

    ``kinds`` holds the same of the phrases of each kind, by name; a phrase of several kinds counts in each.
    """

    phrases: int
    at: dict[int, float]
    upper_bound: float
    kinds: dict[str, "PhraseRecall"] = field(default_factory=dict)


def phrase_recall(pairs: Iterable[tuple[Sample, Detections]], *, protocol: str = "any-box") -> PhraseRecall:
    """Recall over all phrases of the samples that have a box; the others are not asked for.

    Raises:
        ValueError: as ``caption_truth``, ``ranked_boxes`` and ``caption_recall``.
    """
    return caption_recall(
        ((caption_truth(sample), ranked_boxes(sample, found)) for sample, found in pairs), protocol=protocol
    )


def caption_recall(
    pairs: Iterable[tuple[CaptionTruth, Sequence[Float[Tensor, "_rank 4"]]]], *, protocol: str = "any-box"
) -> PhraseRecall:
    """Recall of the boxes that were found for each phrase of each caption, best first.

    Args:
        pairs: captions, and for each of their phrases its boxes, at least one.
        protocol: "any-box": a phrase is found by any one of its boxes. "merged-boxes": by the one box around them all.

    Raises:
        ValueError: an unknown protocol, boxes of another number of phrases, or no phrase with a box.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}: give one of these")
    everything, kinds = _Count(), dict[str, _Count]()
    for truth, boxes in pairs:
        if len(boxes) != len(truth.phrases):
            raise DataError(
                f"sentence {truth.sentence} of image {truth.image}: boxes of {len(boxes)} phrases, but it has "
                f"{len(truth.phrases)} with a box: give boxes for each of these"
            )
        for phrase, ranked in zip(truth.phrases, boxes, strict=True):
            hits = phrase_hits(phrase, ranked, protocol=protocol)
            everything.add(hits)
            for kind in phrase.kinds:
                kinds.setdefault(kind, _Count()).add(hits)
    if not everything.phrases:
        raise DataError("no phrase has a box: there is nothing to score; check the captions with glip data check")
    return replace(everything.recall(), kinds={kind: kinds[kind].recall() for kind in sorted(kinds)})


def phrase_hits(truth: PhraseTruth, ranked: Float[Tensor, "rank 4"], *, protocol: str) -> tuple[bool, ...]:
    """Whether a phrase is found with the first 1, 5 and 10 boxes, and with all of them.

    Two boxes without area have no overlap (0 / 0). As in the evaluator, where a true box meets one, the phrase counts
    as not found from that rank on, whatever was found before.
    """
    boxes = truth.boxes.double()
    if protocol == "merged-boxes":
        boxes = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])[None]
    best = iou(ranked.double(), boxes, inclusive=False).amax(1)  # not a number wins
    return tuple(bool(best[:limit].amax() >= _OVERLAP) for limit in _LIMITS)


def caption_truth(sample: Sample) -> CaptionTruth:
    """What is asked for in a sample with a prompt; boxes of a crowd are no phrase's box.

    An id "<image>:<sentence>", as the reader of Flickr30K gives it, is taken apart; any other is of sentence 0.

    Raises:
        ValueError: a sample without prompt, or kinds that are not of its phrases.
    """
    if sample.prompt is None:
        raise DataError(f"image {sample.image_id} has no caption: recall is for grounding sets, lists of names have AP")
    if sample.kinds and len(sample.kinds) != len(sample.prompt.phrases):
        raise DataError(
            f"image {sample.image_id}: kinds of {len(sample.kinds)} phrases for {len(sample.prompt.phrases)}: give "
            "kinds for each phrase, or none"
        )
    parts = _ID.fullmatch(str(sample.image_id))
    image, sentence = parts.groups() if parts else (str(sample.image_id), "0")
    phrases = [
        PhraseTruth(sample.boxes[boxes], sample.kinds[phrase] if sample.kinds else ())
        for phrase, boxes in _asked(sample).items()
    ]
    is_number = _NUMBER.fullmatch(image) is not None  # as the official files write it
    return CaptionTruth(int(image) if is_number else image, int(sentence), tuple(phrases))


def ranked_boxes(sample: Sample, found: Detections) -> tuple[Float[Tensor, "_rank 4"], ...]:
    """For each phrase that ``caption_truth`` asks for the boxes found for it, best first, and the box of nothing.

    Raises:
        ValueError: detections of other phrases than the sample's.
    """
    if sample.prompt is None or found.prompt.texts != sample.prompt.texts:
        raise DataError(
            f"image {sample.image_id}: detections are of {found.prompt.texts[:3]}..., which are not the phrases of "
            "its caption: look for the sample's own prompt"
        )
    order = found.scores.argsort(descending=True, stable=True)
    boxes, labels = found.boxes[order], found.labels[order]
    nothing = boxes.new_zeros(1, 4)
    return tuple(torch.cat([boxes[labels == phrase], nothing]) for phrase in _asked(sample))


def _asked(sample: Sample) -> dict[int, list[int]]:
    """The phrases that have a box, in order, and the places of their boxes."""
    owners: dict[int, list[int]] = {}
    for box, phrases in enumerate(sample.box_phrases):
        for phrase in phrases if box not in sample.crowd else ():
            owners.setdefault(phrase, []).append(box)
    return dict(sorted(owners.items()))


class _Count:
    """Phrases, and how many of them were found at each limit."""

    def __init__(self) -> None:
        self.phrases, self.found = 0, [0] * len(_LIMITS)

    def add(self, hits: Sequence[bool]) -> None:
        self.phrases += 1
        self.found = [count + hit for count, hit in zip(self.found, hits, strict=True)]

    def recall(self) -> PhraseRecall:
        shares = [count / self.phrases for count in self.found]
        return PhraseRecall(self.phrases, dict(zip(RANKS, shares, strict=False)), shares[-1])
