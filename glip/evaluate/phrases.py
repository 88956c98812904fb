"""Phrase grounding: how often a caption's phrase finds its box among the first k (recall@k, Plummer et al. 2015).

As the evaluator of Flickr30K Entities counts (MDETR's and the release's ``flickr_eval.py``): an overlap of exactly a
half is a hit, and every phrase's boxes end with an empty box, which takes a rank and never hits.

Files of predictions are a JSON list of {image_id, sentence_id, boxes}; ``boxes[phrase][rank]`` is a box x1, y1, x2,
y2, best first, for each phrase of the sentence that has a box.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from glip.data.sets import SkipCounter
from glip.errors import DataError
from glip.evaluate.columns import check_words
from glip.files import read_json
from glip.geometry.boxes import iou
from glip.schema import checked, parse
from glip.shapes import Float, Tensor
from glip.structures import Detections, Sample

RANKS = (1, 5, 10)
_OVERLAP = 0.5
_LIMITS = (*RANKS, None)  # None: all boxes, the upper bound
_ID = re.compile(r"(.+):([0-9]{1,9})", re.DOTALL)  # a caption's id: its image and its sentence
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
Ranked = Float[Tensor, "_rank 4"]  # boxes of one phrase, best first


@dataclass(frozen=True)
class PhraseRecall:
    """Share of the phrases that were found: ``at[k]`` with the first k boxes, ``upper_bound`` with all of them.

    ``kinds`` holds the same for the phrases of each kind, by name; a phrase of several kinds counts in each.
    """

    phrases: int
    at: dict[int, float]
    upper_bound: float
    kinds: dict[str, "PhraseRecall"] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """All shares by name."""
        return {**{f"R@{rank}": share for rank, share in self.at.items()}, "upper bound": self.upper_bound}


def phrase_recall(pairs: Iterable[tuple[Sample, Detections]], *, protocol: str = "any-box") -> PhraseRecall:
    """Recall over all phrases of the samples that have a box."""
    return caption_recall(((sample, ranked_boxes(sample, found)) for sample, found in pairs), protocol=protocol)


def caption_recall(pairs: Iterable[tuple[Sample, Sequence[Ranked]]], *, protocol: str = "any-box") -> PhraseRecall:
    """Recall of the boxes that were found for each of the ``scored_phrases`` of each caption, best first.

    By the protocol "any-box" a phrase is found by any one of its boxes, by "merged-boxes" by the one around them all.

    Raises:
        DataError: no phrase with a box.
    """
    hits, by_kind = list[tuple[bool, ...]](), defaultdict[str, list[tuple[bool, ...]]](list)
    for sample, boxes in pairs:
        for (phrase, own), ranked in zip(scored_phrases(sample).items(), boxes, strict=True):
            hits.append(phrase_hits(own, ranked, protocol=protocol))
            for kind in sample.kinds[phrase] if sample.kinds else ():
                by_kind[kind].append(hits[-1])
    if not hits:
        raise DataError("no phrase has a box: there is nothing to score; check the captions with glip data check")
    return replace(_recall(hits), kinds={kind: _recall(by_kind[kind]) for kind in sorted(by_kind)})


def _recall(hits: Sequence[tuple[bool, ...]]) -> PhraseRecall:
    *shares, upper_bound = (sum(column) / len(hits) for column in zip(*hits, strict=True))
    return PhraseRecall(len(hits), dict(zip(RANKS, shares, strict=True)), upper_bound)


def phrase_hits(truth: Float[Tensor, "box 4"], ranked: Float[Tensor, "rank 4"], *, protocol: str) -> tuple[bool, ...]:
    """Whether a phrase is found with the first 1, 5 and 10 boxes, and with all of them.

    Two boxes without area have no overlap (0 / 0). As in the evaluator, where a true box meets one, the phrase counts
    as not found from that rank on, also if it was found before.
    """
    boxes = truth.double()
    if protocol == "merged-boxes":
        boxes = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])[None]
    best = iou(ranked.double(), boxes, inclusive=False).amax(1)  # NaN wins
    return tuple(bool(best[:limit].amax() >= _OVERLAP) for limit in _LIMITS)


def scored_phrases(sample: Sample) -> dict[int, Float[Tensor, "_box 4"]]:
    """The phrases of a caption that have a box, in order, and their boxes; those of a crowd belong to no phrase."""
    found: dict[int, list[int]] = defaultdict(list)
    for box, phrases in enumerate(sample.box_phrases):
        for phrase in phrases if box not in sample.crowd else ():
            found[phrase].append(box)
    return {phrase: sample.boxes[boxes] for phrase, boxes in sorted(found.items())}


def ranked_boxes(sample: Sample, found: Detections | None) -> tuple[Ranked, ...]:
    """For each of the ``scored_phrases`` the boxes found for it, best first, and the empty box.

    A caption that was skipped (None) counts as having no detection: leaving it out would raise the recall.

    Raises:
        DataError: a sample without caption, or detections of other phrases than the sample's.
    """
    if found is None:
        return (torch.zeros(1, 4),) * len(scored_phrases(sample))
    check_words(sample, found, sample.prompt.texts if sample.prompt else ())
    order = found.scores.argsort(descending=True, stable=True)
    boxes, labels = found.boxes[order], found.labels[order]
    empty = boxes.new_zeros(1, 4)
    return tuple(torch.cat([boxes[labels == phrase], empty]) for phrase in scored_phrases(sample))


# ---- files of predictions


@checked
class _PredictedCaption:
    image_id: int | str
    sentence_id: int | str
    boxes: tuple[tuple[tuple[float, float, float, float], ...], ...]


def caption_id(sample: Sample) -> tuple[int | str, int]:
    """The image of a caption, a number where the id is written as one, and its sentence, counted from 0 in the image.

    An id "<image>:<sentence>", as the reader of Flickr30K gives it, is taken apart; any other is sentence 0.
    """
    parts = _ID.fullmatch(str(sample.image_id))
    image, sentence = parts.groups() if parts else (str(sample.image_id), "0")
    return int(image) if _NUMBER.fullmatch(image) else image, int(sentence)


def prediction_row(sample: Sample, boxes: Sequence[Ranked]) -> dict[str, Any]:
    """The boxes of a caption (``ranked_boxes``) as a row of a file of predictions."""
    image, sentence = caption_id(sample)
    return {"image_id": image, "sentence_id": sentence, "boxes": [ranked.tolist() for ranked in boxes]}


def read_predictions(path: str | Path, captions: Sequence[Sample], tally: SkipCounter) -> list[list[Ranked]]:
    """The boxes of each caption's phrases, in the order of the captions.

    As in the official evaluator the first prediction for a sentence counts, and those for other sentences are ignored;
    both are counted in ``tally``. Whatever is missing is an error: a recall without it is not the published one.

    Raises:
        FileNotFoundError: no such file.
        DataError: not such a list; a sentence without a prediction of its own; one for another number of phrases; a
            phrase without boxes, which is written as [[0, 0, 0, 0]].
    """
    keys = [_key(*caption_id(sample)) for sample in captions]
    phrases = {key: len(scored_phrases(sample)) for key, sample in zip(keys, captions, strict=True)}
    found: dict[str, list[Ranked]] = {}
    for row in parse(tuple[_PredictedCaption, ...], read_json(path), at=str(path), error=DataError):
        key = _key(row.image_id, row.sentence_id)
        place = key[:99]
        if key in found or key not in phrases:
            tally.add(f"{'second prediction for a' if key in found else 'prediction for an unknown'} sentence", place)
            continue
        if len(row.boxes) != phrases[key] or not all(row.boxes):
            raise DataError(
                f"{path}: {place} has boxes for {sum(map(bool, row.boxes))} phrases: give a list of boxes for each of "
                f"its {phrases[key]} phrases that have a box, in the order of the text; where nothing was "
                "found, [[0, 0, 0, 0]]"
            )
        found[key] = [torch.tensor(ranked, dtype=torch.float64) for ranked in row.boxes]
        if negative := sum(int((boxes[:, 2:] < boxes[:, :2]).any(1).sum()) for boxes in found[key]):
            tally.add("box of negative size", place, negative)
    lacking = [key for key, count in Counter(keys).items() if key not in found or count > 1]
    if lacking:
        raise DataError(
            f"{path}: {len(lacking)} of {len(keys)} sentences have no prediction of their own, such as "
            f"{lacking[0][:99]}: give one for every sentence that has a phrase with a box, and each sentence its own id"
        )
    return [found[key] for key in keys]


def _key(image: Any, sentence: Any) -> str:
    """Names a caption; the official evaluator compares ids as text, so that "3" is 3."""
    return f"sentence {sentence} of image {image}"
