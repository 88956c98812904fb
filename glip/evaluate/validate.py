"""Validation during training: the ordinary evaluation of a model in training, on some images of each set."""

from collections.abc import Mapping, Sequence

import torch

from glip.data.sets import SampleSet, SkipCounter, Validation
from glip.detector import Detector
from glip.errors import DataError
from glip.evaluate.benchmark import check_samples, has_boxes
from glip.evaluate.coco import Ranking, average_precision, thresholds_by_name
from glip.evaluate.figures import found_sample
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.structures import Sample
from glip.visualize import contact_sheet


class Validator:
    """Evaluates a model in training on the same images of each set every time.

    Args:
        sets: samples by the name of their set, at least one: detection samples have AP, captioned ones recall.
        images: maximum images per set, evenly spaced over it; 0: all.
        shown: images drawn of each set.

    Raises:
        DataError: a set that could not be scored: without a box or an image file among the chosen images.
    """

    def __init__(self, sets: Mapping[str, Sequence[Sample]], *, images: int = 200, shown: int = 2) -> None:
        self.shown = shown
        self.sets = {name: evenly_spaced(samples, images or len(samples)) for name, samples in sets.items()}
        for name, samples in self.sets.items():
            check_samples(f"Validation set {name!r}, images chosen of it", SampleSet(samples), every=False)

    def __call__(self, detector: Detector) -> Validation:
        """Evaluate; no random number is drawn from torch."""
        found, ranked = Validation(), list[tuple[str, Ranking]]()
        for name, samples in self.sets.items():
            skipped, figures = SkipCounter(), dict[str, float]()
            pairs = list(detect_all(detector, samples, tally=skipped))
            listed = [pair for pair in pairs if pair[0].prompt is None]
            captioned = [pair for pair in pairs if pair[0].prompt is not None]
            if has_boxes(sample for sample, _ in listed):
                score = average_precision(listed)
                figures |= {"AP": score.ap, "AP50": score.ap50}
                ranked += zip((str(row["name"]) for row in score.categories), score.rankings, strict=True)
            if has_boxes(sample for sample, _ in captioned):
                figures |= {f"recall@{rank}": value for rank, value in phrase_recall(captioned).at.items()}
            if not figures:
                places = "; ".join(place for listed in skipped.places.values() for place in listed[:1])
                raise DataError(
                    f"Validation set {name!r}: none of {len(pairs)} images has a named box; skipped: "
                    f"{skipped or 'none'}{f' ({places})' if places else ''}: check the set with glip data check"
                )
            found.figures.update({f"{name}/{figure}": value for figure, value in figures.items()})
            for number, (sample, detections) in enumerate(pairs[: self.shown]):
                # the best detections, as many as the image has boxes, of any score
                count = max(sum(map(len, sample.box_phrases)), 1)
                best = detections.select(torch.arange(min(len(detections), count)))
                found.images[f"{name}/{number}"] = contact_sheet([found_sample(sample, best), sample])
            found.skipped.merge(skipped)
        found.thresholds.update(thresholds_by_name(ranked))
        return found


def evenly_spaced(samples: Sequence[Sample], limit: int) -> Sequence[Sample]:
    """At most ``limit`` samples, evenly spaced over a set."""
    if limit >= len(samples):
        return samples
    return [samples[index * len(samples) // limit] for index in range(limit)]
