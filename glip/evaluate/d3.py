"""D3's figures (Described Object Detection): COCO's AP over descriptions, of presence, of absence, and by length."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from glip.data.described import D3_FILE
from glip.data.sets import SampleSet, SkipCounter
from glip.evaluate.coco import Score, mean_of_valid, score_results
from glip.evaluate.columns import UNKNOWN, GroundTruth, Results, read_truth
from glip.evaluate.report import Row

_LENGTHS = {"short": (0, 3), "mid": (4, 6), "long": (7, 9), "very long": (10, 10**6)}  # words, from and to
_PARTS = {"full": "full", "pres": "presence", "abs": "absence"}


@dataclass(frozen=True, kw_only=True)
class DescribedTruth(GroundTruth):
    """The descriptions of one of D3's files; ``parts`` are it and those that are scored with it, by name."""

    parts: Mapping[str, GroundTruth]


def read_descriptions(read: SampleSet, skipped: SkipCounter) -> DescribedTruth:
    """The ground truth of D3's files; each part is scored by its own, which has an annotation 0 of its own."""
    assert read.annotations
    parts = dict[str, GroundTruth]()
    for file in (read.annotations, *read.companions):
        named = D3_FILE.fullmatch(file.path.name)
        parts[_PARTS[named[1]] if named else "full"] = read_truth(file, skipped)
    first = next(iter(parts.values()))
    return DescribedTruth(first.images, first.categories, first.names, first.boxes, parts=parts)


def score_descriptions(truth: DescribedTruth, results: Results) -> tuple[dict[str, float], dict[str, list[Row]]]:
    """COCO's figures of the file, AP of each part, AP by the descriptions' length, and a table for each.

    Raises:
        DataError: a part without a box.
    """
    scores = {
        name: score_results(part, _of_part(results, truth, part), as_filed=True) for name, part in truth.parts.items()
    }
    rows = list[Row]()
    for name, one in scores.items():
        shown = {key: one.figures[key] for key in ("AP", "AP50", "AP75")} | by_length(one)
        rows.append({"descriptions": name, "number": len(one.categories), **shown})
    main, *others = scores
    figures = dict(scores[main].figures) | {f"AP {name}": scores[name].ap for name in others}
    figures |= {f"AP {name}": value for name, value in by_length(scores[main]).items()}
    return figures, {"Parts and lengths": rows, "Per description": list(scores[main].categories)}


def by_length(score: Score) -> dict[str, float]:
    """Mean AP of the descriptions with so many words, those without a box left out.

    Words are what single blanks separate, as in the official script: two blanks in a row, or one at the end, count.
    """
    words = np.array([len(str(row["name"]).split(" ")) for row in score.categories])
    values = np.array([row["AP"] for row in score.categories])
    return {name: mean_of_valid(values[(words >= low) & (words <= high)]) for name, (low, high) in _LENGTHS.items()}


def _of_part(results: Results, truth: GroundTruth, part: GroundTruth) -> Results:
    """The same detections with the indices of another ground truth, those that it can score."""
    tables = [
        np.array(
            [{number: index for index, number in enumerate(theirs)}.get(number, UNKNOWN) for number in own] + [UNKNOWN]
        )
        for own, theirs in ((truth.images, part.images), (truth.categories, part.categories))
    ]
    images, categories = tables[0][results.images], tables[1][results.categories]
    return Results(images, categories, results.boxes, results.scores).select(
        (images != UNKNOWN) & (categories != UNKNOWN)
    )
