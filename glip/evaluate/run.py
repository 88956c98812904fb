"""The detector over a set of samples: each image with its own prompt, every detection kept for scoring.

An image is encoded once for all its captions and for all chunks of a vocabulary, a vocabulary once for all images.
Only images of one padded size share a batch, since the fusion sees the padding: results do not depend on batches.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image

from glip.data.image import sample_image
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.encoded import EncodedImage, EncodedText, FeatureCache, image_key
from glip.errors import DataError, ImageError
from glip.structures import Detections, Prompt, Sample
from glip.text.class_prompts import ClassPrompt, prompt_from_classes

_KEPT_TEXTS = 4  # encoded vocabularies kept: a set has one, drawn images have one each
_CAPTIONS = 8  # most captions of an image computed at once: each holds a copy of its pyramid
_AHEAD = 8  # batches of images that are searched for images of one size
Query = tuple[int, int, Sample]  # row of the batch, index of the sample, the sample


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
    sample: Sample
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
            yield prediction.sample, prediction.found
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

    @lru_cache(maxsize=_KEPT_TEXTS)
    def encode_names(names: tuple[str, ...]) -> EncodedText:
        if detector.adaptation and same_vocabulary(detector.adaptation.names, names):
            return detector.encode_text()
        return detector.encode_text(options.prompt_of(names), max_names=options.max_names)

    for window in _windows(samples, chosen, 1 if options.batch_size == 1 else _AHEAD * options.batch_size):
        done: dict[int, Prediction] = {}
        images: dict[Hashable, Image.Image] = {}
        usable: dict[Hashable, list[tuple[int, Sample]]] = defaultdict(list)
        for index, sample in window:
            reason, detail = _load(detector, sample, images)
            if reason:
                place = f"sample {index}, image {sample.image_id}{detail}"
                done[index] = Prediction(index, sample, None, reason, place)
            else:
                usable[image_key(sample.image)].append((index, sample))
        keys = list(usable)
        for group in detector.group_by_size([images[key] for key in keys], options.batch_size):
            batch = [keys[number] for number, _ in group]
            features = _encode(detector, {key: images[key] for key in batch}, cache)
            for queries in _by_words([usable[key] for key in batch], max(options.batch_size, _CAPTIONS)):
                names = () if queries[0][2].prompt else queries[0][2].vocabulary
                prompts = [sample.prompt for _, _, sample in queries if sample.prompt]
                results = detector.ground(
                    features.select([row for row, _, _ in queries]),
                    encode_names(names) if names else detector.encode_text(prompts),
                    threshold=0.0,
                    max_detections=options.max_detections,
                    chunk_detections=options.chunk_detections,
                    batch_size=options.batch_size,
                )
                found = zip(queries, results, strict=True)
                done |= {index: Prediction(index, sample, each) for (_, index, sample), each in found}
        yield from (done[index] for index, _ in window)


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


def _windows(samples: Sequence[Sample], chosen: Iterable[int], room: int) -> Iterator[list[tuple[int, Sample]]]:
    """Runs of samples with at most ``room`` different images."""
    window: list[tuple[int, Sample]] = []
    images: set[Hashable] = set()
    for index in chosen:
        sample = samples[index]
        key = image_key(sample.image)
        if key not in images and len(images) == room:
            yield window
            window, images = [], set()
        window.append((index, sample))
        images.add(key)
    if window:
        yield window


def _load(detector: Detector, sample: Sample, images: dict[Hashable, Image.Image]) -> tuple[str, str]:
    """Open a sample's image, unless it is open; why the sample must be skipped and details, or two empty texts."""
    if sample.prompt is None and not sample.vocabulary:
        return "image without words to look for", ""
    if sample.prompt is not None:
        try:
            detector.processor.text([sample.prompt])
        except ValueError as error:
            return "caption that the model cannot read", f": {error}"
    key = image_key(sample.image)
    try:
        images[key] = images.get(key) or sample_image(sample)
    except ImageError as error:
        return "unreadable image", f": {error}"
    return "", ""


def _encode(detector: Detector, images: Mapping[Hashable, Image.Image], cache: FeatureCache | None) -> EncodedImage:
    """Features of images of one padded size."""
    if cache is None:
        return detector.encode_image(list(images.values()))
    return cache.get(tuple(images), lambda: detector.encode_image(list(images.values()))).to(detector.device)


def _by_words(batch: Sequence[Sequence[tuple[int, Sample]]], size: int) -> Iterator[list[Query]]:
    """The samples of each image of a batch, grouped by vocabulary; those with a caption are one group."""
    groups: dict[tuple[str, ...], list[Query]] = defaultdict(list)
    for row, samples in enumerate(batch):
        for index, sample in samples:
            groups[() if sample.prompt else sample.vocabulary].append((row, index, sample))
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))
