"""Outputs -> Detections: the only home of "what does a phrase score?", for detection, grounding and the teacher.

Follows the release's ``ATSSPostProcessor``: a phrase scores the mean of its tokens' probabilities; candidates pass a
threshold *before* centerness, are ranked with it, decoded, clipped, suppressed per class, capped.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from glip.config import InferenceConfig
from glip.geometry.anchors import decode
from glip.geometry.boxes import clip, scale, suppress
from glip.shapes import Float, Int, Tensor
from glip.structures import Detections, Outputs, Size, TextBatch
from glip.text.prompt import NEGATIVE


def postprocess(
    outputs: Outputs,
    text: TextBatch,
    resized: Sequence[Size],
    original: Sequence[Size],
    config: InferenceConfig,
    *,
    token_scores: bool = False,
) -> list[Detections]:
    """Detections of every image of a batch, in original pixels, best first."""
    found = []
    for index, (size, original_size) in enumerate(zip(resized, original, strict=True)):
        candidates, locations = find_candidates(outputs, index, text, size, config)
        if token_scores:
            length = int(text.attention_mask[index].sum())
            candidates = replace(candidates, token_scores=outputs.token_logits[index, locations, :length].float())
        kept = cap(suppress_classes(candidates, config.nms), config.max_detections)
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


def find_candidates(
    outputs: Outputs, index: int, text: TextBatch, size: Size, config: InferenceConfig
) -> tuple[Detections, Int[Tensor, " det"]]:
    """(location, phrase) pairs over the threshold, best first, at most ``candidates_per_level`` of each level.

    Boxes are in resized pixels, not suppressed yet; the second result is the location of each.
    """
    scores = phrase_scores(outputs.token_logits[index], text.phrase_tokens[index], config.aggregate)
    centerness = outputs.centerness[index].float().sigmoid()
    start, places, labels, ranks = 0, [], [], []
    for height, width in outputs.level_sizes:
        level = scores[start : start + height * width]
        place, label = (level > config.candidate_threshold).nonzero(as_tuple=True)
        rank = level[place, label] * centerness[start + place]
        if len(rank) > config.candidates_per_level:
            rank, best = rank.topk(config.candidates_per_level)
            place, label = place[best], label[best]
        places.append(place + start)
        labels.append(label)
        ranks.append(rank)
        start += height * width
    rank, order = torch.cat(ranks).sort(descending=True, stable=True)
    place, label = torch.cat(places)[order], torch.cat(labels)[order]
    boxes = decode(outputs.box_deltas[index, place].float(), outputs.anchors[place])
    return Detections(clip(boxes, size), rank.sqrt(), label, text.prompts[index], size), place


def suppress_classes(found: Detections, nms: float) -> Detections:
    """Per-class suppression; negative phrases took part in the caption and are left out here."""
    classes = found.classes
    wanted = (classes != NEGATIVE).nonzero(as_tuple=True)[0]
    if nms < 1:
        wanted = wanted[suppress(found.boxes[wanted], found.scores[wanted], classes[wanted], nms)]
    return found.select(wanted)


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
