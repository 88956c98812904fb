"""Outputs -> Detections: the only home of "what does a phrase score?", for detection, grounding and the teacher.

Follows the release's ``ATSSPostProcessor``: a phrase scores the mean of its tokens' probabilities; candidates pass a
threshold *before* centerness, are ranked with it, decoded, clipped, suppressed per class, capped.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from glip.config import InferenceConfig
from glip.geometry.anchors import decode
from glip.geometry.boxes import clip, scale, suppress
from glip.shapes import Float, Int, Tensor
from glip.structures import Detections, Outputs, Size, TextBatch
from glip.text.prompt import NEGATIVE

S = TypeVar("S", float, np.ndarray, Tensor)


def postprocess(
    outputs: Outputs,
    text: TextBatch,
    resized: Sequence[Size],
    original: Sequence[Size],
    config: InferenceConfig,
    *,
    token_scores: bool = False,
) -> list[Detections]:
    """Detections of every image of a batch, in original pixels, best first, on the CPU.

    A GPU is waited for where a number of boxes must be known: of candidates, after suppression, of the result.
    """
    found = []
    for index, (size, original_size) in enumerate(zip(resized, original, strict=True)):
        candidates, locations = find_candidates(outputs, index, text, size, config)
        if token_scores:
            length = int(text.attention_mask[index].sum())
            candidates = replace(candidates, token_scores=outputs.token_logits[index, locations, :length].float())
        kept = cap(suppress_classes(candidates, config.nms).to("cpu"), config.max_detections)
        scores = None if kept.token_scores is None else kept.token_scores.sigmoid()
        boxes = scale(kept.boxes, size, original_size)
        found.append(replace(kept, boxes=boxes, size=original_size, token_scores=scores))
    return found


def phrase_scores(
    logits: Float[Tensor, "loc tok"], phrase_tokens: Float[Tensor, "phrase tok"], aggregate: str
) -> Float[Tensor, "loc phrase"]:
    """Score of every phrase at every location from the token logits.

    For ``mean`` the tokens are summed one after the other, in float32, like the release's mean over a slice; ``power``
    is the geometric mean, ``max`` the best token.
    """
    if aggregate == "power":
        return (F.logsigmoid(logits.float()) @ phrase_tokens.T).exp()
    probabilities = logits.float().sigmoid()
    if aggregate == "mean":
        return probabilities @ phrase_tokens.T
    columns = [probabilities[:, row > 0].amax(1) for row in phrase_tokens]
    return torch.stack(columns, dim=1)


def compete(
    scores: Float[Tensor, "loc phrase"], classes: Sequence[int], strength: float
) -> Float[Tensor, "loc phrase"]:
    """Scores times (1 - the best score of another class at the location) ** ``strength``.

    A region that answers to two names is less certain to be either. Phrases of one class do not compete, negatives do.
    """
    numbers, own = torch.tensor(classes, device=scores.device).unique(return_inverse=True)
    if len(numbers) == 1:
        return scores
    best = scores.new_zeros(len(scores), len(numbers)).scatter_reduce(1, own.expand_as(scores), scores, "amax")
    top, winner = best.topk(2, dim=1)
    rival = torch.where(winner[:, :1] == own, top[:, 1:], top[:, :1])
    return scores * (1 - rival) ** strength


def tempered(scores: S, temperature: float) -> S:
    """Scores s as sigmoid(logit(s) / temperature), also of 0 and 1; their order stays."""
    if temperature == 1:
        return scores
    odds = scores ** (1 / temperature), (1 - scores) ** (1 / temperature)
    return odds[0] / (odds[0] + odds[1])


def find_candidates(
    outputs: Outputs, index: int, text: TextBatch, size: Size, config: InferenceConfig
) -> tuple[Detections, Int[Tensor, " det"]]:
    """(location, phrase) pairs over the threshold, best first, at most ``candidates_per_level`` of each level.

    Boxes are in resized pixels, not suppressed yet; the second result is the location of each.
    """
    scores = phrase_scores(outputs.token_logits[index], text.phrase_tokens[index], config.aggregate)
    if config.compete:
        scores = compete(scores, text.prompts[index].classes, config.compete)
    centerness = outputs.centerness[index].float().sigmoid()
    place, label = (scores > config.candidate_threshold).nonzero(as_tuple=True)
    rank = scores[place, label] * centerness[place]
    if len(rank) > config.candidates_per_level:  # else no level has too many, and a GPU need not be asked
        best = _best_of_levels(rank, place, outputs.level_sizes, config.candidates_per_level)
        rank, place, label = rank[best], place[best], label[best]
    rank, order = rank.sort(descending=True, stable=True)
    place, label = place[order], label[order]
    boxes = decode(outputs.box_deltas[index, place].float(), outputs.anchors[place])
    return Detections(clip(boxes, size), rank.sqrt(), label, text.prompts[index], size), place


def _best_of_levels(
    rank: Float[Tensor, " det"], place: Int[Tensor, " det"], level_sizes: Sequence[Size], limit: int
) -> Int[Tensor, " best"]:
    """Indices of the ``limit`` best candidates of each level; the candidates are ordered by place."""
    lengths = torch.tensor([height * width for height, width in level_sizes], device=place.device)
    starts = [0, *torch.searchsorted(place, lengths.cumsum(0)).tolist()]
    found = []
    for start, end in pairwise(starts):
        level = rank[start:end]
        best = level.topk(limit).indices if end - start > limit else torch.arange(end - start, device=place.device)
        found.append(best + start)
    return torch.cat(found)


def suppress_classes(found: Detections, nms: float) -> Detections:
    """Per-class suppression; negative phrases took part in the caption and are left out here."""
    if NEGATIVE in found.prompt.classes:
        found = found.select(found.classes != NEGATIVE)
    return found.select(suppress(found.boxes, found.scores, found.classes, nms)) if nms < 1 else found


def cap(found: Detections, limit: int) -> Detections:
    """The best ``limit`` detections; those that tie with the last one stay, as in the release. 0 keeps all."""
    if not limit or len(found) <= limit:
        return found
    return found.select(found.scores >= found.scores.topk(limit).values[-1])


def merge_chunks(parts: Sequence[Detections], config: InferenceConfig) -> Detections:
    """Detections of the chunks of one long list of names as one, best first, capped once.

    Args:
        parts: suppressed per class; labels and prompt are those of the whole list.
        config: suppression is repeated only where the caller's mapping puts one class into several chunks.
    """
    merged = parts[0]
    if len(parts) > 1:
        scores, order = torch.cat([part.scores for part in parts]).sort(descending=True, stable=True)
        boxes, labels = (torch.cat([getattr(part, name) for part in parts])[order] for name in ("boxes", "labels"))
        merged = Detections(boxes, scores, labels, merged.prompt, merged.size)
        classes = [set(part.classes.tolist()) for part in parts]
        if sum(map(len, classes)) > len(set().union(*classes)):
            merged = suppress_classes(merged, config.nms)
    return cap(merged, config.max_detections)
