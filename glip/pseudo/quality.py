"""How right pseudo-labels are where ground truth exists: precision and recall over the score threshold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from glip.errors import DataError
from glip.geometry.boxes import greedy_hits
from glip.pseudo.report import figure
from glip.pseudo.store import Row
from glip.structures import Phrase, Sample, TarMember
from glip.text.prompt import says_one_of

SEEN, HELD_OUT = "seen words", "held-out words"
THRESHOLDS = tuple(round(number / 20, 2) for number in range(2, 20))
_IOU = 0.5
_FEW = 10  # precision over fewer boxes says nothing, and is not drawn


@dataclass
class PhraseQuality:
    """The boxes found for one kind of phrases with ground truth.

    Args:
        found: (score, right) of each box; right: IoU 0.5 with a box of the ground truth, which counts once.
        boxes: number of ground-truth boxes.
        phrases: number of phrases.
        missed: phrases that no label's phrase overlaps: the phrase finder missed them.
    """

    found: list[tuple[float, bool]] = field(default_factory=list)
    boxes: int = 0
    phrases: int = 0
    missed: int = 0

    def at(self, threshold: float) -> tuple[float, float]:
        """(precision, recall) of the boxes that score at least a threshold; precision is 1 without boxes."""
        chosen = [right for score, right in self.found if score >= threshold]
        return (sum(chosen) / len(chosen) if chosen else 1.0), sum(chosen) / max(self.boxes, 1)


def score_labels(
    rows: Iterable[Row], ground_truth: Sequence[Sample], held_out_words: Sequence[str]
) -> dict[str, PhraseQuality]:
    """Compare labels with the ground truth of the same captions, by kind of phrase.

    A label's phrase is compared with the true phrase that shares most characters with it. Phrases without ground-truth
    boxes are not judged, because nobody has looked for them.

    Args:
        rows: the labels.
        ground_truth: samples with the same captions, whose phrases have boxes.
        held_out_words: words absent from the teacher's training data; phrases with one are a kind of their own.

    Raises:
        DataError: no label has an image and caption of the ground truth.
    """
    samples = {
        (_image_name(sample), sample.prompt.caption): (sample, sample.prompt.phrases)
        for sample in ground_truth
        if sample.prompt is not None
    }
    quality: dict[str, PhraseQuality] = {}
    for row in rows:
        key = Path(row.get("member") or row["image"]).name, row["caption"]
        if key not in samples:
            continue
        sample, phrases = samples[key]
        boxes_of = _boxes_by_phrase(row, phrases)
        for number, phrase in enumerate(phrases):
            true = [box.tolist() for box, own in zip(sample.boxes, sample.box_phrases, strict=True) if number in own]
            if not true:
                continue
            is_held_out = held_out_words and says_one_of(phrase.text, held_out_words)
            kind = quality.setdefault(HELD_OUT if is_held_out else SEEN, PhraseQuality())
            kind.boxes += len(true)
            kind.phrases += 1
            kind.missed += number not in boxes_of
            ranked = sorted(boxes_of.get(number, []), key=lambda box: -box["score"])
            hits = greedy_hits([box["box"] for box in ranked], true, _IOU)
            kind.found += [(box["score"], hit) for box, hit in zip(ranked, hits, strict=True)]
    if not quality:
        raise DataError(
            f"No label has an image and caption of the {len(samples)} with ground truth. Give the dataset whose "
            "captions were labelled."
        )
    return dict(sorted(quality.items()))


def _image_name(sample: Sample) -> str:
    assert not isinstance(sample.image, Image.Image)
    return Path(sample.image.name if isinstance(sample.image, TarMember) else sample.image).name


def _boxes_by_phrase(row: Row, phrases: Sequence[Phrase]) -> dict[int, list[Row]]:
    """The boxes of a label by the true phrase that their own phrase means."""
    boxes: dict[int, list[Row]] = {}
    for number, phrase in enumerate(row["phrases"]):
        shared = [_shared_characters(phrase["spans"], true.spans) for true in phrases]
        best = int(np.argmax(shared))
        if shared[best]:
            boxes.setdefault(best, []).extend(box for box in row["boxes"] if number in box["phrases"])
    return boxes


def _shared_characters(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> int:
    return sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in first for b in second)


def quality_table(quality: dict[str, PhraseQuality]) -> str:
    """Precision and recall of each kind over the threshold, as Markdown."""
    header = " | ".join(f"{kind}: precision | recall" for kind in quality)
    lines = [f"| threshold | {header} |", "|" + "---|" * (1 + 2 * len(quality))]
    for threshold in THRESHOLDS:
        cells = " | ".join(f"{value:.3f}" for one in quality.values() for value in one.at(threshold))
        lines.append(f"| {threshold:.2f} | {cells} |")
    totals = ", ".join(f"{one.phrases} phrases ({one.boxes} boxes) with {kind}" for kind, one in quality.items())
    missed = sum(one.missed for one in quality.values())
    return "\n".join([*lines, "", f"{totals}; the phrase finder missed {missed} of them"])


def draw_quality(quality: dict[str, PhraseQuality], path: Path) -> None:
    """Draw precision and recall over the threshold, and precision over recall."""
    with figure(path, 12, 4.5) as canvas:
        over, against = canvas.subplots(1, 2)
        for kind, one in quality.items():
            shown = [threshold for threshold in THRESHOLDS if sum(score >= threshold for score, _ in one.found) >= _FEW]
            precision, recall = [[one.at(threshold)[part] for threshold in shown] for part in (0, 1)]
            [line] = over.plot(shown, precision, label=f"{kind}: precision")
            over.plot(shown, recall, "--", color=line.get_color(), label=f"{kind}: recall")
            against.plot(recall, precision, "o-", label=kind)
        over.set(xlabel="threshold", ylim=(0, 1.02), title="pseudo-labels at IoU 0.5")
        against.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="precision over recall")
        for panel in (over, against):
            panel.legend(fontsize="small")
