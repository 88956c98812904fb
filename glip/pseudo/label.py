"""Captions cut into shards, and the labels of one: its noun phrases, and low-threshold boxes that the teacher finds.

A shard is what one worker labels at a time, and repeats if it is killed. A folder is cut at its files (tars as
img2dataset writes them: one shard each), a single file after a number of images. For many millions of captions give
many files, so that no worker reads more than its own.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from glip.config import LabelConfig, SetConfig
from glip.console import ProgressBar, counted
from glip.data.captions import caption_files
from glip.data.catalog import data_root, find_set, read_set, recognize
from glip.data.mixture import data_fingerprint
from glip.data.sets import InvalidRecord, Row, SampleSet, SkipCounter, require
from glip.data.writers import label_row
from glip.detector import Detector
from glip.errors import DataError, GlipError
from glip.processor import Processor
from glip.pseudo.filters import Repetitions, check_caption, open_checked
from glip.pseudo.ontology import Ontology
from glip.pseudo.store import STAGES, count_labels, write_shard
from glip.structures import Detections, Sample
from glip.text.phrases import PhraseFinder, Span
from glip.text.prompt import Prompt, join_prompts

_WINDOW = 32  # images opened and grouped by size at a time
_UNREADABLE = "caption whose phrases the tokenizer cannot read"
_READERS = 2  # threads that open images while the teacher labels others


@dataclass(frozen=True)
class Shard:
    """The samples [start, stop) of a dataset; ``stop`` None: to its end. ``name`` is the stem of its output file."""

    name: str
    entry: SetConfig
    start: int = 0
    stop: int | None = None


def find_captions(name: str, images: Sequence[str], root: str | Path | None) -> SetConfig:
    """A captioned dataset, by its name, as a file (with the folders of its images) or as a folder, with full paths.

    Raises:
        GlipError: not a captioned dataset.
    """
    entry = find_set(name, images=[str(Path(folder).absolute()) for folder in images], root=root)
    under = data_root(root).absolute()
    format = entry.format or recognize(under / entry.annotations)[0]
    if format in ("coco", "lvis", "yolo", "voc"):
        raise DataError(
            f"Dataset {name!r} of format {format} has no captions of image files. Give a captioned dataset."
        )
    folders = tuple(str(under / folder) for folder in entry.images)
    return replace(entry, annotations=str(under / entry.annotations), images=folders, format=format)


def find_shards(entry: SetConfig, images: int) -> list[Shard]:
    """The shards of a dataset, in the order of its files; a single file is cut every ``images`` images."""
    _read.cache_clear()  # the files may be others than in an earlier run
    path = Path(entry.annotations)
    files = caption_files(path)
    if path.is_dir() or path.suffix.lower() == ".tar":
        shards, stems = list[Shard](), Counter(file.stem for file in files)
        for file in files:
            name = file.stem if stems[file.stem] == 1 else file.name  # a.csv beside a.tsv
            folders = (str(file.parent),) if file.suffix.lower() == ".tar" else entry.images  # a tar holds its images
            shards.append(Shard(name, replace(entry, annotations=str(file), images=folders)))
        return shards
    samples = _read(entry).samples
    firsts = (next(group)[0] for _, group in groupby(enumerate(samples), key=lambda item: item[1].image))
    starts = list(islice(firsts, None, None, images))
    bounds = zip(starts, [*starts[1:], len(samples)], strict=True)
    return [Shard(f"{path.stem}-{number:05d}", entry, *bound) for number, bound in enumerate(bounds)]


def check_images(shards: Iterable[Shard]) -> None:
    """Refuse captions of which no image is there; this looks no further than the first image that is.

    Raises:
        DataError: naming the first image that is missing.
    """
    missing = list[Any]()
    for shard in shards:
        with suppress(GlipError, FileNotFoundError):  # a shard that cannot be read: reported when it is labelled
            images = [samples[0].image for samples in read_shard(shard)[0]]
            if any(not isinstance(image, Path) or image.is_file() for image in images):
                return
            missing += images
    if missing:
        number = counted(len(missing), "image")
        raise DataError(f"none of the {number} is there, such as {str(missing[0])!r}: give their folder with --images")


def read_shard(shard: Shard) -> tuple[list[list[Sample]], SkipCounter]:
    """The samples of a shard, those of one image together, and what the reader skipped in its file.

    Raises:
        OSError, DataError: the file is missing, or no caption in it can be read.
    """
    read = _read(shard.entry)
    stop = len(read.samples) if shard.stop is None else shard.stop
    samples = (read.samples[index] for index in range(shard.start, stop))
    images = [list(group) for _, group in groupby(samples, key=lambda sample: sample.image)]
    return images, read.skipped if shard.start == 0 else SkipCounter()  # counted once per file


@lru_cache(maxsize=1)
def _read(entry: SetConfig) -> SampleSet:
    """A dataset; the last one is cached, because a file cut into many shards is read once for all of them."""
    return read_set(entry)


# ---- one shard


@dataclass(frozen=True)
class _Query:
    """A sample of an image, and a prompt for each usable caption of the image."""

    sample: Sample
    prompts: list[Prompt]


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.began, self.seconds = time.monotonic(), dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[stage] += time.monotonic() - began


class Labeller:
    """A worker with its own teacher; the same shard gives the same file. Arguments are those of ``run_labelling``."""

    def __init__(
        self,
        model: str | Path,
        config: LabelConfig,
        folder: Path,
        device: str | None,
        ontology: Ontology | None = None,
    ) -> None:
        self.config, self.folder, self.ontology = config, folder, ontology
        self.detector = Detector.from_pretrained(model, device=device, dtype=config.dtype)
        self._encode = lru_cache(maxsize=1)(self.detector.encode_text)  # names are the same for all images
        self.finder = PhraseFinder(config.pipeline, referring=config.referring)
        self.readers = ThreadPoolExecutor(_READERS)

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Label a shard and write it; returns its report, or its name and why its input cannot be read ("failed").

        Raises:
            OSError: labels cannot be written, such as on a full disk.
        """
        try:
            return self._label(shard)
        except (GlipError, FileNotFoundError) as error:
            return {"shard": shard.name, "failed": " ".join(str(error).split())}

    def _label(self, shard: Shard) -> dict[str, Any]:
        clock, skipped = _Clock(), SkipCounter()
        with clock.time("read"):
            images, unread = read_shard(shard)
        with clock.time("parse"):
            queries = self._make_queries(images, skipped)
        rows: list[Row] = []
        for window in self._open(queries, skipped, clock, shard.name):
            with clock.time("detect"):
                found = self._detect(window)
            with clock.time("write"):
                pairs = zip(window, found, strict=True)
                rows += [self._make_row(query.sample, one, shard) for (query, _), listed in pairs for one in listed]
        report = {
            "shard": shard.name,
            "pairs": sum(map(len, images)),
            "captions": data_fingerprint(sample for samples in images for sample in samples),
            **count_labels(rows),
            "skipped": skipped.counts,
            "places": skipped.places,
            "skipped by the reader": unread.counts,
            "seconds": {stage: round(spent, 3) for stage, spent in clock.seconds.items()},
            "wall": round(time.monotonic() - clock.began, 3),
        }
        write_shard(self.folder, shard.name, self.config.form, rows, report)
        return report

    def _make_queries(self, images: Sequence[Sequence[Sample]], skipped: SkipCounter) -> list[_Query]:
        """The captions worth labelling as prompts; an image without any is not opened."""
        if self.ontology:
            return [_Query(samples[0], [self.ontology.prompt]) for samples in images]
        usable, seen, processor = list[tuple[int, str]](), Repetitions(self.config), self.detector.processor
        for index, samples in enumerate(images):
            for caption in (sample.prompt.caption if sample.prompt else sample.caption for sample in samples):
                with skipped.catch(str(samples[0].image)):
                    check_caption(caption, self.config, processor.count_tokens, processor.max_tokens)
                    seen.check_caption(caption)
                    usable.append((index, caption))
        prompts: dict[int, list[Prompt]] = defaultdict(list)
        found = self.finder.many([caption for _, caption in usable])
        for (index, caption), spans in zip(usable, found, strict=True):
            with skipped.catch(str(images[index][0].image)):
                prompts[index].append(self._make_prompt(caption, spans))
        return [_Query(images[index][0], own) for index, own in prompts.items() if own]

    def _make_prompt(self, caption: str, spans: Sequence[Span]) -> Prompt:
        """A caption and its phrases, without those that have words which the tokenizer cannot read."""
        least, processor = self.config.min_phrases, self.detector.processor
        require(len(spans) >= least, "caption with too few noun phrases")
        if not self.config.keep_unknown_words:
            unknown = processor.tokenizer.unknown_places(caption)
            spans = [(a, b) for a, b in spans if not any(a < end and start < b for start, end in unknown)]
        require(len(spans) >= least, _UNREADABLE)
        prompt = Prompt.from_caption(caption, spans)
        try:
            processor.text([prompt])
        except GlipError:  # a phrase of characters that the tokenizer drops
            raise InvalidRecord(_UNREADABLE) from None
        return prompt

    def _open(
        self, queries: Sequence[_Query], skipped: SkipCounter, clock: _Clock, title: str
    ) -> Iterator[list[tuple[_Query, Image.Image]]]:
        """The images that are kept, one window at a time; the next one is opened while this one is labelled.

        An image is kept if it can be opened and did not occur before; all its prompts go with it.
        """
        seen, opening = Repetitions(self.config), list[Future[tuple[Image.Image, int]]]()
        windows = [queries[start : start + _WINDOW] for start in range(0, len(queries), _WINDOW)]
        hidden = self.config.engine == "ray" or os.environ.get("RANK", "0") != "0"  # one process shows its progress
        bar = ProgressBar(total=len(queries), desc=title, unit="image", disable=hidden)
        for window, following in zip([[], *windows], [*windows, []], strict=True):
            with clock.time("decode"):
                wait(opening)
            opened = opening
            opening = [self.readers.submit(open_checked, query.sample.image, self.config) for query in following]
            kept = list[tuple[_Query, Image.Image]]()
            for query, future in zip(window, opened, strict=True):
                with skipped.catch(str(query.sample.image), times=len(query.prompts)):
                    image, hash = future.result()
                    seen.check_image(hash)
                    kept.append((query, image))
            yield kept
            bar.update(len(window))
        bar.close()

    def _detect(self, window: Sequence[tuple[_Query, Image.Image]]) -> list[list[Detections]]:
        """The detections for each caption of each image; an image is encoded once for all its captions."""
        found: dict[int, list[Detections]] = defaultdict(list)
        config, detector = self.config, self.detector
        for batch in detector.processor.group_by_size([image for _, image in window], config.batch_size):
            group = [index for index, _ in batch]
            encoded = detector.encode_image([image for _, image in batch])
            packs = [
                (place, pack)
                for place, index in enumerate(group)
                for pack in make_packs(window[index][0].prompts, detector.processor, config.together)
            ]
            for start in range(0, len(packs), config.batch_size):
                piece = packs[start : start + config.batch_size]
                prompts = tuple(join_prompts(pack) for _, pack in piece)
                answers = detector.ground(
                    encoded.select([place for place, _ in piece]),
                    self._encode(prompts[:1] if len(set(prompts)) == 1 else prompts),
                    threshold=config.threshold,
                    max_detections=config.max_detections * config.together,
                    batch_size=config.batch_size,
                )
                for (place, pack), answer in zip(piece, answers, strict=True):
                    found[group[place]] += split_detections(answer, pack, config.max_detections)
        return [found[index] for index in range(len(window))]

    def _make_row(self, sample: Sample, found: Detections, shard: Shard) -> Row:
        """A label row; numbers are rounded, so that engines and machines agree."""
        (height, width), names = found.size, tuple(self.ontology.names) if self.ontology else ()
        if self.ontology:
            found = self.ontology.without_negatives(found, self.detector.config.inference.nms)
        labelled = Sample(
            sample.image,
            torch.tensor([[round(value, 2) for value in box] for box, *_ in found]).reshape(-1, 4),
            tuple((number,) for number in found.classes.tolist()),
            vocabulary=names,
            prompt=None if names else found.prompt,
            image_id=sample.image_id,
            size=(width, height),
            scores=tuple(round(score, 4) for score in found.scores.tolist()),
        )
        return label_row(labelled, shard.entry.images) | ({"names": list(names)} if names else {})


def make_packs(prompts: Sequence[Prompt], processor: Processor, together: int) -> Iterator[list[Prompt]]:
    """Captions of one image in packs of at most ``together``, in order; a pack ends where the next does not fit.

    A pack is one prompt, so the head, which runs once per prompt, runs less often. Training packs captions of other
    images beside the right one in the same way (GLIP's appendix on pre-training).
    """
    pack: list[Prompt] = []
    for prompt in prompts:
        full = len(pack) == together
        if pack and (full or processor.count_tokens(join_prompts([*pack, prompt]).caption) > processor.max_tokens):
            yield pack
            pack = []
        pack.append(prompt)
    if pack:
        yield pack


def split_detections(found: Detections, pack: Sequence[Prompt], limit: int) -> list[Detections]:
    """The detections of each prompt of a pack, best first, at most ``limit`` each."""
    parts, first = [], 0
    for prompt in pack:
        end = first + len(prompt.phrases)
        own = found.select(((found.labels >= first) & (found.labels < end)).nonzero().flatten()[:limit])
        parts.append(Detections(own.boxes, own.scores, own.labels - first, prompt, found.size))
        first = end
    return parts
