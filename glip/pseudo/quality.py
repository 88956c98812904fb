"""How right pseudo-labels are where true boxes exist: precision and recall of phrases' boxes over the threshold."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from glip.data.held_out import says_one_of
from glip.errors import DataError
from glip.geometry.boxes import greedy_hits
from glip.pseudo.store import Row
from glip.structures import Sample, TarMember

SEEN, UNSEEN = "seen words", "unseen words"
THRESHOLDS = tuple(round(number / 20, 2) for number in range(2, 20))
_OVERLAP = 0.5
_FEW = 10  # boxes, of fewer precision says nothing
_Key = tuple[str, str]


@dataclass(frozen=True)
class Quality:
    """Of each kind of phrase: the boxes that were found for it, and how many there are.

    Args:
        scores: by kind, of the boxes of phrases whose true boxes are known.
        right: whether each is one of them (IoU 0.5 at least, every true box once, the best-scored first).
        boxes: by kind, the number of true boxes.
        phrases: by kind, the number of phrases with true boxes.
        unasked: true phrases that no label's phrase overlaps: the phrase finder missed them.
    """

    scores: Mapping[str, np.ndarray]
    right: Mapping[str, np.ndarray]
    boxes: Mapping[str, int]
    phrases: Mapping[str, int]
    unasked: int

    def at(self, kind: str, threshold: float) -> tuple[float, float]:
        """(precision, recall) of the boxes from a threshold on; precision is 1 where there are none."""
        chosen = self.right[kind][self.scores[kind] >= threshold]
        right = int(chosen.sum())
        return (right / len(chosen) if len(chosen) else 1.0), right / max(self.boxes[kind], 1)


def score_labels(rows: Iterable[Row], truth: Sequence[Sample], unseen: Sequence[str]) -> Quality:
    """Compare labels with true boxes of the same captions.

    A label's phrase is judged by the true phrase that it shares most characters with; what it says of phrases without
    true boxes is not judged, since nobody has looked for them.

    Args:
        rows: of a folder of labels.
        truth: samples with the same captions, whose phrases have boxes.
        unseen: words that the teacher never heard; phrases with one are a kind of their own.

    Raises:
        ValueError: no label has a caption and image of the truth.
    """
    samples = {_key_of(sample): sample for sample in truth if sample.prompt is not None}
    found = defaultdict[str, list[tuple[float, bool]]](list)
    counts, phrases = defaultdict[str, int](int), defaultdict[str, int](int)
    unasked = judged = 0
    for row in rows:
        sample = samples.get((Path(row.get("member") or row["image"]).name, row["caption"]))
        if sample is None:
            continue
        judged += 1
        assert sample.prompt is not None
        own = _boxes_of(row, sample)
        for number, phrase in enumerate(sample.prompt.phrases):
            true = [
                box.tolist() for box, named in zip(sample.boxes, sample.box_phrases, strict=True) if number in named
            ]
            if not true:
                continue
            kind = UNSEEN if unseen and says_one_of(phrase.text, unseen) else SEEN
            counts[kind] += len(true)
            phrases[kind] += 1
            unasked += number not in own
            found[kind] += _judged(own.get(number, ()), true)
    if not judged:
        raise DataError(
            f"none of the labels has an image and caption of the {len(samples)} with true boxes: give the set whose "
            "captions were labelled"
        )
    kinds = list(counts)
    return Quality(
        {kind: np.array([score for score, _ in found[kind]]) for kind in kinds},
        {kind: np.array([right for _, right in found[kind]], dtype=bool) for kind in kinds},
        counts,
        phrases,
        unasked,
    )


def _key_of(sample: Sample) -> _Key:
    assert sample.prompt is not None and not isinstance(sample.image, Image.Image)
    name = sample.image.name if isinstance(sample.image, TarMember) else str(sample.image)
    return Path(name).name, sample.prompt.caption


def _boxes_of(row: Row, sample: Sample) -> dict[int, list[Row]]:
    """By true phrase the boxes of the label's phrases that mean it."""
    assert sample.prompt is not None
    own: dict[int, list[Row]] = {}
    for number, phrase in enumerate(row["phrases"]):
        shared = [_shared(phrase["spans"], true.spans) for true in sample.prompt.phrases]
        best = int(np.argmax(shared))
        if shared[best]:
            own.setdefault(best, []).extend(box for box in row["boxes"] if number in box["phrases"])
    return own


def _shared(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> int:
    return sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in first for b in second)


def _judged(boxes: Sequence[Row], true: Sequence[Sequence[float]]) -> list[tuple[float, bool]]:
    """(score, right) of each box, best first; a true box counts once."""
    ranked = sorted(boxes, key=lambda box: -box["score"])
    hits = greedy_hits([box["box"] for box in ranked], true, _OVERLAP)
    return [(box["score"], hit) for box, hit in zip(ranked, hits, strict=True)]


def quality_table(quality: Quality) -> str:
    """Precision and recall of each kind over the threshold, as Markdown."""
    kinds = sorted(quality.boxes)
    header = " | ".join(f"{kind}: precision | recall" for kind in kinds)
    lines = [f"| threshold | {header} |", "|" + "---|" * (1 + 2 * len(kinds))]
    for threshold in THRESHOLDS:
        cells = " | ".join(" | ".join(f"{value:.3f}" for value in quality.at(kind, threshold)) for kind in kinds)
        lines.append(f"| {threshold:.2f} | {cells} |")
    said = ", ".join(f"{quality.phrases[kind]} phrases ({quality.boxes[kind]} boxes) of {kind}" for kind in kinds)
    return "\n".join([*lines, "", f"{said}; {quality.unasked} of them were not asked for"])


def draw_quality(quality: Quality, path: Path) -> None:
    """Draw precision and recall over the threshold, and against one another."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(12, 4.5), layout="tight")
    over, against = canvas.subplots(1, 2)
    for kind in sorted(quality.boxes):
        shown = [one for one in THRESHOLDS if (quality.scores[kind] >= one).sum() >= _FEW]
        pairs = [quality.at(kind, threshold) for threshold in shown]
        [line] = over.plot(shown, [precision for precision, _ in pairs], label=f"{kind}: precision")
        over.plot(shown, [recall for _, recall in pairs], "--", color=line.get_color(), label=f"{kind}: recall")
        against.plot([recall for _, recall in pairs], [precision for precision, _ in pairs], "o-", label=kind)
    over.set(xlabel="threshold", ylim=(0, 1.02), title="pseudo-labels at IoU 0.5")
    against.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="precision over recall")
    for panel in (over, against):
        panel.legend(fontsize="small")
    partial = path.with_name(f".{path.name}")
    canvas.savefig(partial, dpi=100, format="png")
    partial.replace(path)
