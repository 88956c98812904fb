"""The detector over a set of samples: each image with its own prompt, every detection kept for scoring, and on disk.

An image is encoded once for all its captions and for all chunks of a vocabulary, a vocabulary once for all images.
Only images of one padded size share a batch, since the fusion sees the padding: results do not depend on batches.

Predictions are written as they come, so that a killed evaluation resumes where it stopped. Each process writes parts of
its own in numpy's format, ``part-PROCESS-NUMBER.npz``, whole or not at all. A detection takes 24 bytes, since LVIS's
protocol keeps 186 million of its 20,000 images; parts are read one at a time.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from glip.data.image import sample_image
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.encoded import EncodedText, FeatureCache, image_key
from glip.errors import DataError, GlipError, ImageError
from glip.files import atomic_write, begin_run, fingerprint
from glip.structures import Detections, Prompt, Sample
from glip.text.class_prompts import ClassPrompt, prompt_from_classes

_KEPT_TEXTS = 4  # encoded vocabularies kept: most sets have one
_CAPTIONS = 8  # most captions of an image computed at once: each holds a copy of its pyramid
_SECONDS = 10.0  # what a kill loses at most
_DETECTIONS = 1_000_000  # of a part, 24 MB
_SUM = "sum"  # the column of a part that is computed from the others
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
        left_out: names that are not asked for, since the model cannot read so long a text (``too_long``).
    """

    batch_size: int = 1
    max_names: int | None = None
    max_detections: int | None = None
    chunk_detections: int = 0
    prompts: Mapping[str, ClassPrompt] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()

    def asked(self, names: Sequence[str]) -> list[int]:
        """The places of the names that are asked for."""
        return [place for place, name in enumerate(names) if name not in self.left_out]

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

    Label ``i`` of a detection is phrase ``i`` of the prompt or name ``i`` of the vocabulary. ``tally`` counts skipped
    images: unreadable, without words, or with a caption that the model cannot read. ``kept`` has image features of
    earlier calls with the same image encoder; those of this call are added.

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
        for number, ready in enumerate(_open_images(detector, samples, order, done, options)):
            waiting[number] = ready
            yield ready[0]

    @lru_cache(maxsize=_KEPT_TEXTS)
    def encode_names(names: tuple[str, ...]) -> EncodedText:
        if detector.adaptation and detector.adaptation.names == names:
            return detector.encode_text()
        prompt = options.prompt_of([names[place] for place in options.asked(names)])
        return detector.encode_text(prompt, max_names=options.max_names)

    for group in detector.processor.group_by_size(opened(), options.batch_size):
        batch, queries = zip(*(waiting.pop(number) for number, _ in group), strict=True)
        encode = partial(detector.encode_image, batch)
        keys = tuple(image_key(own[0][1].image) for own in queries)
        features = encode() if cache is None else cache.get(keys, encode).to(detector.device)
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
            if not prompts and options.left_out:
                names = part[0][1].vocabulary
                places, prompt = torch.tensor(options.asked(names)), options.prompt_of(names)
                results = [replace(found, labels=places[found.labels], prompt=prompt) for found in results]
            done |= {index: Prediction(index, found) for (index, _), found in zip(part, results, strict=True)}
        while place < len(order) and order[place] in done:
            yield done.pop(order[place])
            place += 1
    yield from (done.pop(index) for index in order[place:])


def too_long(detector: Detector, samples: Iterable[Sample], options: QueryOptions) -> frozenset[str]:
    """The names of the samples' vocabularies that the model cannot read even alone."""
    processor, every = detector.processor, {name for sample in samples for name in sample.vocabulary}
    tokens = {name: processor.count_tokens(options.prompt_of([name]).caption) for name in every}
    return frozenset(name for name, needed in tokens.items() if needed > processor.max_tokens)


def _open_images(
    detector: Detector,
    samples: Sequence[Sample],
    order: Sequence[int],
    done: dict[int, Prediction],
    options: QueryOptions,
) -> Iterator[tuple[Image.Image, list[Query]]]:
    """Each image with its samples, where they follow one another; samples that must be skipped go to ``done``."""
    queries = ((index, samples[index]) for index in order)
    for _, run in groupby(queries, key=lambda query: image_key(query[1].image)):
        image, usable = None, []
        for index, sample in run:
            place = f"sample {index}, image {sample.image_id}"
            if not (sample.prompt or options.asked(sample.vocabulary)):
                done[index] = Prediction(index, None, "image without words to look for", place)
                continue
            try:
                image = _checked_image(detector, sample, image)
                usable.append((index, sample))
            except GlipError as error:
                reason = "unreadable image" if isinstance(error, ImageError) else "caption that the model cannot read"
                done[index] = Prediction(index, None, reason, f"{place}: {error}")
        if image:
            yield image, usable


def _checked_image(detector: Detector, sample: Sample, opened: Image.Image | None) -> Image.Image:
    """The image of a sample whose caption, if it has one, the model can read."""
    if sample.prompt:
        detector.processor.text([sample.prompt])
    return opened or sample_image(sample)


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


class PredictionStore:
    """The predictions of one evaluation, on disk.

    ``settings`` are what they depend on: a folder with others is refused. Each process writes parts of its own and
    reads those of all.

    Raises:
        DataError: the folder holds predictions made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, process: int = 0) -> None:
        if process == 0:
            begin_run(folder, settings)
        self.folder = folder
        self._own = f"part-{process}-"
        self._pending: list[Prediction] = []
        self._count, self._flushed = 0, time.monotonic()
        self.reload()

    def reload(self) -> None:
        """Look again for what is on disk, after other processes have written."""
        self._rows: dict[int, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("part-*.npz")):
            self._rows |= {sample: (path, row) for row, sample in enumerate(_read_part(path)["samples"].tolist())}

    @property
    def done(self) -> set[int]:
        """Indices of the samples that have a prediction on disk."""
        return set(self._rows)

    def add(self, prediction: Prediction) -> None:
        """Keep a prediction; it is on disk within seconds, or after ``flush``."""
        self._pending.append(prediction)
        self._count += len(prediction.found or ())
        if self._count >= _DETECTIONS or time.monotonic() - self._flushed > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet.

        Columns go over the samples, and over all their detections; those of row ``i`` are ``ends[i]:ends[i + 1]``.
        """
        if not self._pending:
            return
        found = [prediction.found for prediction in self._pending if prediction.found is not None]
        columns = {
            "samples": np.array([prediction.index for prediction in self._pending]),
            "sizes": np.array([p.found.size if p.found is not None else (0, 0) for p in self._pending]),
            "ends": np.cumsum([0, *(len(prediction.found or ()) for prediction in self._pending)]),
            "reasons": np.array([prediction.reason for prediction in self._pending]),
            "places": np.array([prediction.place for prediction in self._pending]),
            "labels": np.concatenate([np.zeros(0, np.int32), *(one.labels.numpy().astype(np.int32) for one in found)]),
            "scores": np.concatenate([np.zeros(0, np.float32), *(one.scores.numpy() for one in found)]),
            "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes.numpy() for one in found)]),
        }
        free = (self.folder / f"{self._own}{number:06}.npz" for number in count())  # a damaged one may be deleted
        path = next(path for path in free if not path.exists())
        with atomic_write(path, "wb") as file:
            np.savez(file, **columns, **{_SUM: np.array(_sum(columns))})  # type: ignore[arg-type]
        self._rows |= {prediction.index: (path, row) for row, prediction in enumerate(self._pending)}
        self._pending, self._count, self._flushed = [], 0, time.monotonic()

    def read(self, samples: Sequence[Sample], options: QueryOptions) -> Iterator[tuple[Sample, Prediction]]:
        """Each sample that has a prediction on disk, and the prediction, in the order of the samples."""
        prompt_of, load = lru_cache(maxsize=64)(options.prompt_of), lru_cache(maxsize=4)(_read_part)
        for index in sorted(self._rows):
            path, row = self._rows[index]
            part, sample = load(path), samples[index]
            if part["reasons"][row]:
                yield sample, Prediction(index, None, str(part["reasons"][row]), str(part["places"][row]))
                continue
            own = slice(part["ends"][row], part["ends"][row + 1])
            boxes, scores, labels = (torch.from_numpy(part[name][own].copy()) for name in ("boxes", "scores", "labels"))
            prompt, (height, width) = sample.prompt or prompt_of(sample.vocabulary), part["sizes"][row].tolist()
            yield sample, Prediction(index, Detections(boxes, scores, labels.long(), prompt, (height, width)))


def _read_part(path: Path) -> dict[str, np.ndarray]:
    """The columns of a part."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
            columns = dict(part)
        problem = "" if str(columns.pop(_SUM)) == _sum(columns) else "its checksum is wrong"
    except Exception as error:  # on broken bytes numpy and zipfile raise anything
        problem = str(error) or type(error).__name__
    if problem:
        raise DataError(f"predictions {str(path)!r} are damaged ({problem[:120]}): delete the file, and run again")
    return columns


def _sum(columns: Mapping[str, np.ndarray]) -> str:
    """A hash of names, types, shapes and values: the file's own checksums do not cover what its heads claim."""
    parts = ((name, one.dtype.str, one.shape, one.tobytes()) for name, one in sorted(columns.items()))
    return fingerprint(*(value for part in parts for value in part))
