"""The detector over a set of samples: each image asked for its own words, whatever can be found kept for scoring.

An image is encoded once for all its captions and for all chunks of a vocabulary, a vocabulary once for all images.
Only images of one padded size share a batch, since the fusion sees the padding: figures do not depend on batches.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image

from glip.data.image import open_any
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.encoded import EncodedImage, EncodedText, FeatureCache, image_key
from glip.errors import DataError, ImageError
from glip.structures import Detections, Prompt, Sample
from glip.text.class_prompts import ClassPrompt, prompt_from_classes

_KEPT_TEXTS = 4  # vocabularies whose encoding is kept: a set has one, drawn images have one each
_CAPTIONS = 8  # captions of an image encoded at once at most: each holds a copy of its pyramid
_AHEAD = 8  # batches of images that are looked through for images of one size
Member = tuple[int, int, Sample]  # row of the batch, number of the sample, the sample


@dataclass(frozen=True)
class QueryOptions:
    """How a model is asked.

    Args:
        batch_size: images, or chunks of a long list of names, computed at once.
        max_names: names in a chunk of a long list at most; None: as many as fit.
        max_detections: of an image at most, 0 for no cap; None: the model's default.
        chunk_detections: of a chunk of a long list at most, 0 for no cap.
        prompts: by class name, what is written instead of it.
    """

    batch_size: int = 1
    max_names: int | None = None
    max_detections: int | None = None
    chunk_detections: int = 0
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)

    def listed(self, names: Sequence[str]) -> Prompt:
        """The prompt of a vocabulary; label ``i`` is name ``i``.

        Raises:
            ValueError: an empty name.
        """
        return prompt_from_classes(names, self.prompts)


@dataclass(frozen=True)
class Answer:
    """What was found in sample ``index``, or why it was passed over."""

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
    """Every sample with what the detector finds of its prompt, or of all names of its vocabulary, threshold 0.

    Args:
        detector: the model, its processor and its defaults.
        samples: what to look at; label ``i`` of a detection is phrase ``i`` of the prompt or name ``i`` of the
            vocabulary.
        options: how many at once, how many names in a chunk, how many detections.
        tally: counts images passed over: unreadable, without words, or with a caption that the model cannot read.
        kept: encodings of earlier calls with the same image encoder; those of this call are added.

    Raises:
        ValueError: a vocabulary with an empty name, or one that the model cannot read.
    """
    for answer in answers(detector, samples, range(len(samples)), options, kept):
        if answer.found is not None:
            yield answer.sample, answer.found
        elif tally is not None:
            tally.add(answer.reason, answer.place)


def answers(
    detector: Detector,
    samples: Sequence[Sample],
    chosen: Iterable[int],
    options: QueryOptions,
    kept: FeatureCache | None = None,
) -> Iterator[Answer]:
    """An answer for each chosen sample, in their order; arguments as for ``detect_all``.

    Raises:
        ValueError: a vocabulary with an empty name, or one that the model cannot read.
    """

    @lru_cache(maxsize=_KEPT_TEXTS)
    def encoded(names: tuple[str, ...]) -> EncodedText:
        if detector.adaptation and same_vocabulary(detector.adaptation.names, names):
            return detector.encode_text()
        return detector.encode_text(options.listed(names), max_names=options.max_names)

    room = 1 if options.batch_size == 1 else _AHEAD * options.batch_size
    for window in _windows(samples, chosen, room):
        done: dict[int, Answer] = {}
        usable: list[tuple[int, Sample]] = []
        opened: dict[Hashable, Image.Image] = {}
        for index, sample in window:
            try:
                _look_at(detector, sample, opened)
                usable.append((index, sample))
            except ImageError as error:
                done[index] = Answer(index, sample, None, "unreadable image", str(error))
            except _Unaskable as reason:
                place = f"sample {index}, image {sample.image_id}{reason.detail}"
                done[index] = Answer(index, sample, None, str(reason), place)
        done |= {answer.index: answer for answer in _ground(detector, usable, opened, options, encoded, kept)}
        yield from (done[index] for index, _ in window)


def same_vocabulary(own: Sequence[str], asked: Sequence[str]) -> bool:
    """Whether a task's names are those asked for; other words are asked of an adapted model as of any.

    Raises:
        ValueError: the same names in another order, whose labels would be mixed up.
    """
    if tuple(own) != tuple(asked) and set(own) == set(asked):
        raise DataError(
            f"the task was tuned for the names {', '.join(own)[:80]!r}, the set has them as {', '.join(asked)[:80]!r}: "
            "list them in the same order"
        )
    return tuple(own) == tuple(asked)


class _Unaskable(DataError):
    """A sample whose words cannot be asked for; the message is the reason."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


def _look_at(detector: Detector, sample: Sample, opened: dict[Hashable, Image.Image]) -> None:
    """Check a sample's words, and open its image if no other sample has."""
    if sample.prompt is None and not sample.vocabulary:
        raise _Unaskable("image without words to look for")
    if sample.prompt is not None:
        try:
            detector.processor.text([sample.prompt])
        except ValueError as error:
            raise _Unaskable("caption that the model cannot read", f": {error}") from None
    key = image_key(sample.image)
    if key not in opened:
        opened[key] = open_any(sample.image)


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


def _ground(
    detector: Detector,
    usable: Sequence[tuple[int, Sample]],
    images: Mapping[Hashable, Image.Image],
    options: QueryOptions,
    encoded: Callable[[tuple[str, ...]], EncodedText],
    kept: FeatureCache | None,
) -> Iterator[Answer]:
    """Each image encoded once, those of one size together; then all that is asked of them."""
    asked: dict[Hashable, list[tuple[int, Sample]]] = defaultdict(list)
    for index, sample in usable:
        asked[image_key(sample.image)].append((index, sample))
    keys = list(asked)
    for group in detector.group_by_size([images[key] for key in keys], options.batch_size):
        image = _encoded(detector, [keys[number] for number in group], images, kept)
        by_words: dict[tuple[str, ...], list[Member]] = defaultdict(list)
        for row, number in enumerate(group):
            for index, sample in asked[keys[number]]:
                by_words[() if sample.prompt else sample.vocabulary].append((row, index, sample))
        pieces = [(names, piece) for names, members in by_words.items() for piece in _pieces(members, options)]
        for names, piece in pieces:
            prompts = [sample.prompt for _, _, sample in piece if sample.prompt]
            results = detector.ground(
                image.select([row for row, _, _ in piece]),
                encoded(names) if names else detector.encode_text(prompts),
                threshold=0.0,
                max_detections=options.max_detections,
                chunk_detections=options.chunk_detections,
                batch_size=options.batch_size,
            )
            for (_, index, sample), found in zip(piece, results, strict=True):
                yield Answer(index, sample, found)


def _encoded(
    detector: Detector, keys: Sequence[Hashable], images: Mapping[Hashable, Image.Image], kept: FeatureCache | None
) -> EncodedImage:
    def encode() -> EncodedImage:
        return detector.encode_image([images[key] for key in keys])

    return encode() if kept is None else kept.get(tuple(keys), encode).to(detector.device)


def _pieces(members: Sequence[Member], options: QueryOptions) -> Iterator[Sequence[Member]]:
    size = max(options.batch_size, _CAPTIONS)
    return (members[start : start + size] for start in range(0, len(members), size))
