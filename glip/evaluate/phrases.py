"""Phrase grounding: how often a caption's phrase finds one of its boxes among the first k (recall@k, any-box)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from glip.geometry.boxes import iou
from glip.shapes import Float, Tensor
from glip.structures import Detections, Sample

RANKS = (1, 5, 10)


@dataclass(frozen=True)
class PhraseRecall:
    """Share of the phrases that were found: ``at[k]`` with the first k boxes, ``upper_bound`` with all of them."""

    phrases: int
    at: dict[int, float]
    upper_bound: float


def phrase_recall(pairs: Iterable[tuple[Sample, Detections]], *, ranks: Sequence[int] = RANKS) -> PhraseRecall:
    """Recall over all phrases that have a box; the others are not asked for (Plummer et al. 2015, any-box protocol).

    Raises:
        ValueError: a sample without prompt, or no phrase with a box.
    """
    hits: list[int | None] = []
    for sample, found in pairs:
        hits += _hits(sample, found)
    if not hits:
        raise ValueError("no phrase has a box: there is nothing to score; check the captions with glip data check")
    ranked = {rank: sum(hit is not None and hit < rank for hit in hits) / len(hits) for rank in ranks}
    return PhraseRecall(len(hits), ranked, sum(hit is not None for hit in hits) / len(hits))


def first_hit(ranked: Float[Tensor, "det 4"], truth: Float[Tensor, "box 4"], *, overlap: float = 0.5) -> int | None:
    """The place, from 0, of the first box that overlaps one of the true ones by at least ``overlap``; None if none."""
    right = (iou(ranked.double(), truth.double(), inclusive=False) >= overlap).any(1).nonzero()
    return int(right[0]) if len(right) else None


def _hits(sample: Sample, found: Detections) -> list[int | None]:
    if sample.prompt is None:
        raise ValueError(
            f"picture {sample.image_id} has no caption: recall is for grounding sets, lists of names have AP"
        )
    owners: dict[int, list[int]] = {}
    for box, phrases in enumerate(sample.box_phrases):
        for phrase in phrases if box not in sample.crowd else ():
            owners.setdefault(phrase, []).append(box)
    return [
        first_hit(found.boxes[found.labels == phrase], sample.boxes[torch.tensor(boxes)])
        for phrase, boxes in sorted(owners.items())
    ]
