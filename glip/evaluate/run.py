"""The detector over a set of samples: each image with its own prompt, every detection kept for scoring.

An image is encoded once for all its captions and for all chunks of a vocabulary, a vocabulary once for all images.
Only images of one padded size share a batch, since the fusion sees the padding: results do not depend on batches.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

from PIL import Image

from glip.data.image import sample_image
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.encoded import EncodedImage, EncodedText, FeatureCache, image_key
from glip.errors import DataError, GlipError, ImageError
from glip.structures import Detections, Prompt, Sample
from glip.text.class_prompts import ClassPrompt, prompt_from_classes

_KEPT_TEXTS = 4  # encoded vocabularies kept: most sets have one
_CAPTIONS = 8  # most captions of an image computed at once: each holds a copy of its pyramid
Query = tuple[int, Sample]  # the index of a sample, and the sample


@dataclass(frozen=True)
class QueryOptions:
    """How the detector is called.

    Args:
        batch_size: images, or chunks of a long list of names, computed at once.
        max_names: maximum names per chunk of a long list; None: as many as fit.
        max_detections: maximum per image, 0 for no limit; None: the model's default.
        chunk_detections: maximum per chunk of a long list, 0 for no limit.
        prompts: by class name, the text written instead of it.
    """

    batch_size: int = 1
    max_names: int | None = None
    max_detections: int | None = None
    chunk_detections: int = 0
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)

    def prompt_of(self, names: Sequence[str]) -> Prompt:
        """The prompt of a vocabulary; label ``i`` is name ``i``."""
        return prompt_from_classes(names, self.prompts)


@dataclass(frozen=True)
class Prediction:
    """What was found in sample ``index``; or None, with the reason why it was skipped and where."""

    index: int
    found: Detections | None
    reason: str = ""
    place: str = ""


def detect_all(
    detector: Detector,
    samples: Sequence[Sample],
    *,
    options: QueryOptions = QueryOptions(),
    tally: SkipCounter | None = None,
    kept: FeatureCache | None = None,
) -> Iterator[tuple[Sample, Detections]]:
    """Every sample with the detections of its prompt, or of all names of its vocabulary, at threshold 0.

    Args:
        detector: the model, its processor and its defaults.
        samples: label ``i`` of a detection is phrase ``i`` of the prompt or name ``i`` of the vocabulary.
        options: batch size and limits.
        tally: counts skipped images: unreadable, without words, or with a caption that the model cannot read.
        kept: image features of earlier calls with the same image encoder; those of this call are added.

    Raises:
        GlipError: a vocabulary with an empty name, or one that the model cannot read.
    """
    for prediction in predictions(detector, samples, range(len(samples)), options, kept):
        if prediction.found is not None:
            yield samples[prediction.index], prediction.found
        elif tally is not None:
            tally.add(prediction.reason, prediction.place)


def predictions(
    detector: Detector,
    samples: Sequence[Sample],
    chosen: Iterable[int],
    options: QueryOptions,
    cache: FeatureCache | None = None,
) -> Iterator[Prediction]:
    """A prediction for each chosen sample, in their order; arguments and errors as for ``detect_all``."""
    order, place = list(chosen), 0
    waiting: dict[int, tuple[Image.Image, list[Query]]] = {}
    done: dict[int, Prediction] = {}

    def opened() -> Iterator[Image.Image]:
        for number, ready in enumerate(_open_images(detector, samples, order, done)):
            waiting[number] = ready
            yield ready[0]

    @lru_cache(maxsize=_KEPT_TEXTS)
    def encode_names(names: tuple[str, ...]) -> EncodedText:
        if detector.adaptation and same_vocabulary(detector.adaptation.names, names):
            return detector.encode_text()
        return detector.encode_text(options.prompt_of(names), max_names=options.max_names)

    for group in detector.group_by_size(opened(), options.batch_size):
        batch, queries = zip(*(waiting.pop(number) for number, _ in group), strict=True)
        features = _encode(detector, batch, [image_key(own[0][1].image) for own in queries], cache)
        for rows, part in _by_words(queries, max(options.batch_size, _CAPTIONS)):
            prompts = [sample.prompt for _, sample in part if sample.prompt]
            results = detector.ground(
                features.select(rows),
                detector.encode_text(prompts) if prompts else encode_names(part[0][1].vocabulary),
                threshold=0.0,
                max_detections=options.max_detections,
                chunk_detections=options.chunk_detections,
                batch_size=options.batch_size,
            )
            done |= {index: Prediction(index, found) for (index, _), found in zip(part, results, strict=True)}
        while place < len(order) and order[place] in done:
            yield done.pop(order[place])
            place += 1
    yield from (done.pop(index) for index in order[place:])


def same_vocabulary(own: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a task's names are those of a set; other names are detected by an adapted model as by any.

    Raises:
        DataError: the same names in another order, whose labels would be mixed up.
    """
    if tuple(own) != tuple(names) and set(own) == set(names):
        raise DataError(
            f"the task was tuned for the names {', '.join(own)[:80]!r}, the set has them as {', '.join(names)[:80]!r}: "
            "list them in the same order"
        )
    return tuple(own) == tuple(names)


def _open_images(
    detector: Detector, samples: Sequence[Sample], order: Sequence[int], done: dict[int, Prediction]
) -> Iterator[tuple[Image.Image, list[Query]]]:
    """Each image with its samples, where they follow one another; samples that must be skipped go to ``done``."""
    queries = ((index, samples[index]) for index in order)
    for _, run in groupby(queries, key=lambda query: image_key(query[1].image)):
        image, usable = None, []
        for index, sample in run:
            reason, detail = _unusable_words(detector, sample)
            try:
                image = image or (None if reason else sample_image(sample))
            except ImageError as error:
                reason, detail = "unreadable image", f": {error}"
            if reason:
                done[index] = Prediction(index, None, reason, f"sample {index}, image {sample.image_id}{detail}")
            else:
                usable.append((index, sample))
        if image:
            yield image, usable


def _unusable_words(detector: Detector, sample: Sample) -> tuple[str, str]:
    """Why the model cannot read a sample's words, and details; two empty texts if it can."""
    if sample.prompt is None:
        return "" if sample.vocabulary else "image without words to look for", ""
    try:
        detector.processor.text([sample.prompt])
    except GlipError as error:
        return "caption that the model cannot read", f": {error}"
    return "", ""


def _encode(
    detector: Detector, images: Sequence[Image.Image], keys: Sequence[Hashable], cache: FeatureCache | None
) -> EncodedImage:
    """Features of images of one padded size."""
    if cache is None:
        return detector.encode_image(images)
    return cache.get(tuple(keys), lambda: detector.encode_image(images)).to(detector.device)


def _by_words(batch: Sequence[Sequence[Query]], size: int) -> Iterator[tuple[list[int], list[Query]]]:
    """The samples of each image of a batch, and its row, by vocabulary; those with a caption are one group."""
    groups: dict[tuple[str, ...], list[tuple[int, Query]]] = defaultdict(list)
    for row, queries in enumerate(batch):
        for index, sample in queries:
            groups[() if sample.prompt else sample.vocabulary].append((row, (index, sample)))
    for group in groups.values():
        for start in range(0, len(group), size):
            part = group[start : start + size]
            yield [row for row, _ in part], [query for _, query in part]
