"""Filter pseudo-labels by score, size and overlap; the result is an ordinary label file to train on.

And how right they are where ground truth exists: precision and recall over the score threshold.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from glip.config import SelectConfig
from glip.console import counted
from glip.data.sets import Row
from glip.errors import DataError
from glip.experiment import to_dict
from glip.files import atomic_write
from glip.geometry.boxes import greedy_hits, pair_iou
from glip.provenance import record
from glip.pseudo.store import finished_shards, read_rows, to_lines, unfinished
from glip.structures import Phrase, Sample, TarMember
from glip.text.prompt import says_one_of
from glip.visualize import figure

SEEN, HELD_OUT = "seen words", "held-out words"
THRESHOLDS = tuple(round(number / 20, 2) for number in range(2, 20))
_IOU = 0.5
_FEW = 10  # precision over fewer boxes says nothing, and is not drawn


@dataclass
class Selection:
    """What was kept, and how many boxes and pairs were dropped for each reason."""

    kept_pairs: int = 0
    kept_boxes: int = 0
    phrases_with_boxes: int = 0
    dropped_boxes: Counter[str] = field(default_factory=Counter)
    dropped_pairs: Counter[str] = field(default_factory=Counter)

    @property
    def pairs(self) -> int:
        """All pairs of image and caption."""
        return self.kept_pairs + self.dropped_pairs.total()

    @property
    def boxes(self) -> int:
        """All boxes."""
        return self.kept_boxes + self.dropped_boxes.total()


def select(folder: str | Path, out: str | Path, config: SelectConfig) -> Selection:
    """Write what is kept of a folder of labels as one label file, and beside it ``NAME.summary.json``.

    Raises:
        DataError: nothing is kept, labels cannot be read, or ``out`` is a file of them.
    """
    selection, own = Selection(), {path.resolve().with_suffix("") for path in finished_shards(Path(folder))}
    if Path(out).resolve().with_suffix("") in own:
        raise DataError(f"{str(out)!r} holds the labels of a shard and would be replaced: give another file with --out")
    rows = ({**row, "boxes": select_boxes(row, config, selection)} for row in read_rows(Path(folder)))
    with atomic_write(out) as file:
        file.writelines(to_lines(row for row in rows if row["boxes"]))
        if not selection.kept_pairs:
            reasons = ", ".join(f"{count} {reason}" for reason, count in selection.dropped_boxes.items())
            raise DataError(
                (unfinished(Path(folder)) if not selection.pairs else "")
                or f"no box is kept of {selection.boxes} in {counted(selection.pairs, 'pair')} of {str(folder)!r} "
                f"({reasons or 'nothing was found'}): try a lower --min-score and --min-best-score"
            )
    totals = {"pairs": selection.pairs, "boxes": selection.boxes, **vars(selection)}
    record(Path(out).with_suffix(".summary.json"), files=[Path(out)], options=to_dict(config), **totals)
    return selection


def select_boxes(row: Row, config: SelectConfig, selection: Selection) -> list[Row]:
    """The boxes of a pair that are kept, best first; none where the pair is dropped. ``selection`` counts."""
    kept, taken, dropped = list[Row](), Counter[int](), selection.dropped_boxes
    for box in _without_overlaps(row, config, dropped):
        if config.max_per_phrase and all(taken[phrase] >= config.max_per_phrase for phrase in box["phrases"]):
            dropped["beyond max_per_phrase"] += 1
        else:
            taken.update(box["phrases"])
            kept.append(box)
    if not kept:
        selection.dropped_pairs["no box kept" if row["boxes"] else "nothing found"] += 1
        return []
    if kept[0]["score"] < config.min_best_score:
        selection.dropped_pairs["best score below min_best_score"] += 1
        dropped["in a dropped pair"] += len(kept)
        return []
    selection.kept_pairs += 1
    selection.kept_boxes += len(kept)
    selection.phrases_with_boxes += len({phrase for box in kept for phrase in box["phrases"]})
    return kept


def _without_overlaps(row: Row, config: SelectConfig, dropped: Counter[str]) -> list[Row]:
    """The boxes that are confident and large enough, best first, without those that overlap a better one."""
    boxes = []
    for box in sorted(row["boxes"], key=lambda box: -box["score"]):
        if problem := _problem(box, row["width"] * row["height"], config):
            dropped[problem] += 1
        else:
            boxes.append(box)
    for whose, threshold in (("its", config.nms), ("another", config.nms_across)):
        kept: list[Row] = []
        for box in boxes if threshold < 1 else ():
            rivals = (better for better in kept if whose == "another" or better["phrases"] == box["phrases"])
            if any(pair_iou(better["box"], box["box"]) > threshold for better in rivals):
                dropped[f"overlaps a better box of {whose} phrase"] += 1
            else:
                kept.append(box)
        boxes = kept if threshold < 1 else boxes
    return boxes


def _problem(box: Row, image_area: int, config: SelectConfig) -> str:
    if box["score"] < config.min_score:
        return "score below min_score"
    x1, y1, x2, y2 = box["box"]
    if min(x2 - x1, y2 - y1) < config.min_box_side:
        return "side below min_box_side"
    if config.max_box_area < 1 and (x2 - x1) * (y2 - y1) > config.max_box_area * image_area:
        return "area above max_box_area"
    return ""


@dataclass
class PhraseQuality:
    """The boxes found for one kind of phrases with ground truth, and how many boxes and phrases that has.

    ``found`` is (score, right) of each box; right: IoU 0.5 with a box of the ground truth, which counts once.
    ``missed`` are phrases that no label's phrase overlaps: the phrase finder missed them.
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
    boxes are not judged, because nobody has looked for them. Phrases with one of the ``held_out_words``, which the
    teacher's training data lacks, are a kind of their own.

    Raises:
        DataError: no label has an image and caption of the ground truth.
    """
    samples: dict[tuple[str, str], tuple[Sample, tuple[Phrase, ...]]] = {}
    for sample in ground_truth:
        if sample.prompt is not None and not isinstance(sample.image, Image.Image):
            name = Path(sample.image.name if isinstance(sample.image, TarMember) else sample.image).name
            samples[name, sample.prompt.caption] = sample, sample.prompt.phrases
    quality: dict[str, PhraseQuality] = {}
    for row in rows:
        key = Path(row.get("member") or row["image"]).name, row.get("caption", "")
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


def _boxes_by_phrase(row: Row, phrases: Sequence[Phrase]) -> dict[int, list[Row]]:
    """The boxes of a label by the true phrase that shares most characters with their own."""
    boxes: dict[int, list[Row]] = {}
    for number, phrase in enumerate(row["phrases"]):
        pairs = [[(span, other) for span in phrase["spans"] for other in true.spans] for true in phrases]
        shared = [sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in own) for own in pairs]
        best = int(np.argmax(shared))
        if shared[best]:
            boxes.setdefault(best, []).extend(box for box in row["boxes"] if number in box["phrases"])
    return boxes


def quality_table(quality: dict[str, PhraseQuality]) -> str:
    """Precision and recall of each kind over the threshold, as Markdown."""
    header = " | ".join(f"{kind}: precision | recall" for kind in quality)
    lines = [f"| threshold | {header} |", "|" + "---|" * (1 + 2 * len(quality))]
    for threshold in THRESHOLDS:
        cells = " | ".join(f"{value:.3f}" for one in quality.values() for value in one.at(threshold))
        lines.append(f"| {threshold:.2f} | {cells} |")
    totals = ", ".join(
        f"{counted(one.phrases, 'phrase')} ({counted(one.boxes, 'box')}) with {kind}" for kind, one in quality.items()
    )
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
