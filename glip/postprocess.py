"""Outputs -> Detections: the only home of "what does a phrase score?", for detection, grounding and the teacher.

Follows the release's ``ATSSPostProcessor``: a phrase scores the mean of its tokens' probabilities; candidates pass a
threshold *before* centerness, are ranked with it, decoded, clipped, suppressed per class, capped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from glip.geometry.anchors import decode
from glip.geometry.boxes import clip, scale, suppress
from glip.shapes import Float, Int, Tensor
from glip.structures import NEGATIVE, Detections, ImageBatch, Outputs, Prompt, TextBatch


@dataclass(frozen=True)
class Decoding:
    """How outputs become detections; defaults lie in the checkpoint's config.

    ``nms`` is the overlap above which the lower-scored of two boxes of a class goes; 1 keeps all. ``max_detections``
    0 means no cap. ``aggregate`` "mean", "max" or "power" turns token scores into a phrase score.
    """

    candidate_threshold: float = 0.05
    candidates_per_level: int = 1000
    nms: float = 0.6
    max_detections: int = 100
    aggregate: str = "mean"


@dataclass(frozen=True)
class Candidates:
    """Boxes of one image before suppression, in resized pixels; ``places`` are their locations."""

    boxes: Float[Tensor, "cand 4"]
    scores: Float[Tensor, " cand"]
    labels: Int[Tensor, " cand"]
    places: Int[Tensor, " cand"]


def postprocess(
    outputs: Outputs, images: ImageBatch, text: TextBatch, decoding: Decoding, *, token_scores: bool = False
) -> list[Detections]:
    """Detections of every image of a batch, in original pixels, best first."""
    found = []
    for index, prompt in enumerate(text.prompts):
        candidates = find_candidates(outputs, index, text.phrase_tokens[index], images.resized[index], decoding)
        kept = cap(suppress_candidates(candidates, prompt, decoding), decoding.max_detections)
        scores = None
        if token_scores:
            length = int(text.attention_mask[index].sum())
            scores = outputs.token_logits[index, kept.places, :length].float().sigmoid()
        boxes = scale(kept.boxes, images.resized[index], images.original[index])
        found.append(Detections(boxes, kept.scores, kept.labels, prompt, images.original[index], scores))
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


def find_candidates(
    outputs: Outputs,
    index: int,
    phrase_tokens: Float[Tensor, "phrase tok"],
    size: tuple[int, int],
    decoding: Decoding,
) -> Candidates:
    """(location, phrase) pairs over the threshold, at most ``candidates_per_level`` of each level, sorted by score."""
    scores = phrase_scores(outputs.token_logits[index], phrase_tokens, decoding.aggregate)
    centerness = outputs.centerness[index].float().sigmoid()
    start, places, labels, ranks = 0, [], [], []
    for height, width in outputs.level_sizes:
        level = scores[start : start + height * width]
        place, label = (level > decoding.candidate_threshold).nonzero(as_tuple=True)
        rank = level[place, label] * centerness[start + place]
        if len(rank) > decoding.candidates_per_level:
            rank, best = rank.topk(decoding.candidates_per_level)
            place, label = place[best], label[best]
        places.append(place + start)
        labels.append(label)
        ranks.append(rank)
        start += height * width
    rank, order = torch.cat(ranks).sort(descending=True, stable=True)
    place, label = torch.cat(places)[order], torch.cat(labels)[order]
    boxes = decode(outputs.box_deltas[index, place].float(), outputs.anchors[place])
    return Candidates(clip(boxes, size), rank.sqrt(), label, place)


def suppress_candidates(candidates: Candidates, prompt: Prompt, decoding: Decoding) -> Candidates:
    """Per-class suppression; negative phrases took part in the caption and are left out here."""
    classes = torch.tensor(prompt.classes, device=candidates.labels.device)[candidates.labels]
    wanted = (classes != NEGATIVE).nonzero(as_tuple=True)[0]
    if decoding.nms < 1:
        kept = suppress(candidates.boxes[wanted], candidates.scores[wanted], classes[wanted], decoding.nms)
        wanted = wanted[kept]
    return _select(candidates, wanted)


def cap(candidates: Candidates, limit: int) -> Candidates:
    """The best ``limit`` candidates; those that tie with the last one stay, as in the release. 0 keeps all."""
    if not limit or len(candidates.scores) <= limit:
        return candidates
    last = candidates.scores.topk(limit).values[-1]
    return _select(candidates, (candidates.scores >= last).nonzero(as_tuple=True)[0])


def merge_chunks(
    parts: Sequence[Detections], label_offsets: Sequence[int], prompt: Prompt, decoding: Decoding
) -> Detections:
    """Detections of the chunks of one long list of names as one, best first, capped once.

    Args:
        parts: of each chunk, suppressed per class but not capped.
        label_offsets: the label of each chunk's first name in the whole list.
        prompt: the whole list.
        decoding: suppression is repeated only where the caller's mapping puts one class into several chunks.
    """
    if len(parts) == 1:
        places = torch.arange(len(parts[0]), device=parts[0].scores.device)
        only = Candidates(parts[0].boxes, parts[0].scores, parts[0].labels, places)
        return parts[0].select(cap(only, decoding.max_detections).places)
    boxes = torch.cat([part.boxes for part in parts])
    scores, order = torch.cat([part.scores for part in parts]).sort(descending=True, stable=True)
    labels = torch.cat([part.labels + first for part, first in zip(parts, label_offsets, strict=True)])[order]
    merged = Candidates(boxes[order], scores, labels, order)
    seen = [
        {prompt.classes[label] for label in (part.labels + first).tolist()}
        for part, first in zip(parts, label_offsets, strict=True)
    ]
    if sum(map(len, seen)) > len(set().union(*seen)):
        merged = suppress_candidates(merged, prompt, decoding)
    kept = cap(merged, decoding.max_detections)
    return Detections(kept.boxes, kept.scores, kept.labels, prompt, parts[0].size)


def _select(candidates: Candidates, keep: Tensor) -> Candidates:
    return Candidates(candidates.boxes[keep], candidates.scores[keep], candidates.labels[keep], candidates.places[keep])
