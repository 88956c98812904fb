"""Label one shard: find the noun phrases of each caption, and let the teacher find low-threshold boxes for them."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from glip.config import LabelConfig
from glip.data.writers import label_row
from glip.detector import Detector
from glip.errors import GlipError
from glip.pseudo.filters import Inspected, ShardFilter, inspect_image
from glip.pseudo.packs import make_packs, split_detections
from glip.pseudo.report import STAGES, count_labels
from glip.pseudo.shards import CaptionedImage, Shard, read_shard
from glip.pseudo.store import Row, write_shard
from glip.structures import Detections, Sample
from glip.text.phrases import PhraseFinder, Span
from glip.text.prompt import Prompt, join_prompts

_WINDOW = 32  # images opened and grouped by size at a time
_READERS = 2  # threads that open images while the teacher looks at others


@dataclass(frozen=True)
class _Query:
    """An image and the prompts to ground in it; ``decoded`` is the image once it is open."""

    source: CaptionedImage
    prompts: tuple[Prompt, ...]
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

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Label a shard and write it; returns its report.

        Raises:
            FileNotFoundError, GlipError: the shard's file is missing, or nothing in it can be read.
            OSError: labels cannot be written.
        """
        clock, processor = _Clock(), self.detector.processor
        with clock.time("read"):
            images, skipped = read_shard(shard)
        filter = ShardFilter(self.config, processor.count_tokens, processor.max_tokens)
        with clock.time("parse"):
            queries = self._make_queries(images, filter)
        rows: list[Row] = []
        for window in self._open(queries, filter, clock):
            with clock.time("detect"):
                found = self._detect(window)
            with clock.time("write"):
                rows += [_make_row(one, own, shard) for one, each in zip(window, found, strict=True) for own in each]
        report = {
            "shard": shard.name,
            "pairs": sum(len(one.captions) for one in images),
            **count_labels(rows),
            "skipped": filter.skipped.counts,
            "places": filter.skipped.places,
            "skipped by the reader": skipped.counts,
            "seconds": {stage: round(spent, 3) for stage, spent in clock.seconds.items()},
            "wall": round(time.monotonic() - clock.began, 3),
        }
        write_shard(self.folder, shard.name, self.config.form, rows, report)
        return report

    def _make_queries(self, images: Sequence[CaptionedImage], filter: ShardFilter) -> list[_Query]:
        """The captions worth labelling as prompts; an image without any is not opened."""
        kept = [[text for text in one.captions if filter.keep_caption(text, str(one.image))] for one in images]
        spans = iter(self.finder.many([text for own in kept for text in own]))
        queries = []
        for one, texts in zip(images, kept, strict=True):
            prompts = [self._make_prompt(text, next(spans), str(one.image), filter) for text in texts]
            if usable := tuple(prompt for prompt in prompts if prompt is not None):
                queries.append(_Query(one, usable))
        return queries

    def _make_prompt(self, caption: str, spans: Sequence[Span], place: str, filter: ShardFilter) -> Prompt | None:
        if not filter.keep_phrases(len(spans), place):
            return None
        prompt = Prompt.from_caption(caption, list(spans))
        try:
            self.detector.processor.text([prompt])
        except GlipError:  # a phrase of characters that are not in the vocabulary
            filter.skipped.add("caption that the teacher cannot read", place)
            return None
        return prompt

    def _open(self, queries: Sequence[_Query], filter: ShardFilter, clock: _Clock) -> Iterator[list[_Query]]:
        """The images that are kept, one window at a time; the next one is opened while this one is labelled."""
        windows = [queries[start : start + _WINDOW] for start in range(0, len(queries), _WINDOW)]
        with ThreadPoolExecutor(_READERS) as readers:

            def start(window: Sequence[_Query]) -> list[Future[Inspected]]:
                return [readers.submit(inspect_image, one.source.image, self.config) for one in window]

            opening = start(windows[0]) if windows else []
            for window, following in zip(windows, [*windows[1:], []], strict=True):
                with clock.time("decode"):
                    inspected = [future.result() for future in opening]
                opening = start(following)
                yield [
                    _Query(one.source, one.prompts, image.image)
                    for one, image in zip(window, inspected, strict=True)
                    if filter.keep_image(image, str(one.source.image), len(one.prompts))
                ]

    def _detect(self, queries: Sequence[_Query]) -> list[list[Detections]]:
        """The detections for each caption of each image; an image is encoded once for all its captions."""
        found: dict[int, list[Detections]] = defaultdict(list)
        config, detector = self.config, self.detector
        images = [one.decoded for one in queries if one.decoded is not None]
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


def _make_row(query: _Query, found: Detections, shard: Shard) -> Row:
    """A label row; numbers are rounded, so that engines and machines agree."""
    source, height_width = query.source, found.size
    sample = Sample(
        source.image,
        torch.tensor([[round(value, 2) for value in box] for box, *_ in found]).reshape(-1, 4),
        tuple((label,) for label in found.labels.tolist()),
        prompt=found.prompt,
        image_id=source.image_id,
        size=(height_width[1], height_width[0]),
        scores=tuple(round(score, 4) for score in found.scores.tolist()),
    )
    return label_row(sample, shard.entry.images)
