"""Label one shard: find the noun phrases of each caption, and let the teacher find low-threshold boxes for them."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from glip.config import LabelConfig
from glip.data.sets import InvalidRecord, Row, SkipCounter, require
from glip.data.writers import label_row
from glip.detector import Detector
from glip.errors import GlipError
from glip.processor import Processor
from glip.pseudo.filters import Repetitions, check_caption, open_checked
from glip.pseudo.shards import Shard, read_shard
from glip.pseudo.store import STAGES, count_labels, write_shard
from glip.structures import Detections, Sample
from glip.text.phrases import PhraseFinder
from glip.text.prompt import Prompt, join_prompts

_WINDOW = 32  # images opened and grouped by size at a time
_READERS = 2  # threads that open images while the teacher labels others


@dataclass(frozen=True)
class _Query:
    """A sample of an image, a prompt for each usable caption of the image, and the image once it is open."""

    sample: Sample
    prompts: list[Prompt]
    decoded: Image.Image | None = None


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
    """A worker with its own teacher; the same shard always gives the same file.

    Args:
        model: the teacher: a name or a folder.
        config: the options.
        folder: output folder.
        device: where the teacher runs; None: CUDA where available.
    """

    def __init__(self, model: str | Path, config: LabelConfig, folder: Path, device: str | None) -> None:
        self.config, self.folder = config, folder
        self.detector = Detector.from_pretrained(model, device=device)
        self.finder = PhraseFinder(config.pipeline, referring=config.referring)
        self.readers = ThreadPoolExecutor(_READERS)

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Label a shard and write it; returns its report, or its name and why its input cannot be read ("failed").

        Raises:
            OSError: labels cannot be written, such as on a full disk.
        """
        clock, skipped = _Clock(), SkipCounter()
        try:
            with clock.time("read"):
                images, unread = read_shard(shard)
        except (GlipError, FileNotFoundError) as error:
            return {"shard": shard.name, "failed": " ".join(str(error).split())}
        with clock.time("parse"):
            queries = self._make_queries(images, skipped)
        rows: list[Row] = []
        for window in self._open(queries, skipped, clock):
            with clock.time("detect"):
                found = self._detect(window)
            with clock.time("write"):
                pairs = zip(window, found, strict=True)
                rows += [_make_row(query.sample, one, shard) for query, detections in pairs for one in detections]
        report = {
            "shard": shard.name,
            "pairs": sum(map(len, images)),
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
                require(len(spans) >= self.config.min_phrases, "caption with too few noun phrases")
                prompt = Prompt.from_caption(caption, list(spans))
                try:
                    processor.text([prompt])
                except GlipError:  # a phrase of characters that are not in the vocabulary
                    raise InvalidRecord("caption that the teacher cannot read") from None
                prompts[index].append(prompt)
        return [_Query(images[index][0], own) for index, own in prompts.items() if own]

    def _open(self, queries: Sequence[_Query], skipped: SkipCounter, clock: _Clock) -> Iterator[list[_Query]]:
        """The images that are kept, one window at a time; the next one is opened while this one is labelled.

        An image is kept if it can be opened and did not occur before; all its prompts go with it.
        """
        seen, opening = Repetitions(self.config), list[Future[tuple[Image.Image, int]]]()
        windows = [queries[start : start + _WINDOW] for start in range(0, len(queries), _WINDOW)]
        for window, following in zip([[], *windows], [*windows, []], strict=True):
            with clock.time("decode"):
                wait(opening)
            opened = opening
            opening = [self.readers.submit(open_checked, query.sample.image, self.config) for query in following]
            kept = list[_Query]()
            for query, future in zip(window, opened, strict=True):
                with skipped.catch(str(query.sample.image), times=len(query.prompts)):
                    image, hash = future.result()
                    seen.check_image(hash)
                    kept.append(replace(query, decoded=image))
            yield kept

    def _detect(self, queries: Sequence[_Query]) -> list[list[Detections]]:
        """The detections for each caption of each image; an image is encoded once for all its captions."""
        found: dict[int, list[Detections]] = defaultdict(list)
        config, detector = self.config, self.detector
        images = [query.decoded for query in queries if query.decoded is not None]
        for batch in detector.group_by_size(images, config.batch_size):
            group = [index for index, _ in batch]
            encoded = detector.encode_image([image for _, image in batch])
            packs = [
                (place, pack)
                for place, index in enumerate(group)
                for pack in make_packs(queries[index].prompts, detector.processor, config.together)
            ]
            for start in range(0, len(packs), config.batch_size):
                piece = packs[start : start + config.batch_size]
                answers = detector.ground(
                    encoded.select([place for place, _ in piece]),
                    detector.encode_text([join_prompts(pack) for _, pack in piece]),
                    threshold=config.threshold,
                    max_detections=config.max_detections * config.together,
                    batch_size=config.batch_size,
                )
                for (place, pack), answer in zip(piece, answers, strict=True):
                    found[group[place]] += split_detections(answer, pack, config.max_detections)
        return [found[index] for index in range(len(queries))]


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


def _make_row(sample: Sample, found: Detections, shard: Shard) -> Row:
    """A label row; numbers are rounded, so that engines and machines agree."""
    height, width = found.size
    labelled = Sample(
        sample.image,
        torch.tensor([[round(value, 2) for value in box] for box, *_ in found]).reshape(-1, 4),
        tuple((label,) for label in found.labels.tolist()),
        prompt=found.prompt,
        image_id=sample.image_id,
        size=(width, height),
        scores=tuple(round(score, 4) for score in found.scores.tolist()),
    )
    return label_row(labelled, shard.entry.images)
