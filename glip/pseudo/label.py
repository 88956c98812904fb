"""What the teacher sees in captioned images: the phrases of each caption, and low-threshold boxes for them."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from glip.data.writers import label_row
from glip.detector import Detector
from glip.pseudo.filters import Inspected, PairRules, ShardFilter, inspect_image
from glip.pseudo.packs import packed
from glip.pseudo.shards import Captioned, Shard, read_shard_images
from glip.pseudo.store import Form, Row, Store
from glip.structures import Detections, Prompt, Sample, Span
from glip.text.phrases import PhraseFinder

STAGES = ("read", "parse", "decode", "detect", "write")
SCORE_BINS = 20
_WINDOW = 32  # images opened and grouped by size at a time
_READERS = 2  # threads that open images while the teacher looks at others


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """How captions become labels: plain values, so that it travels to other processes and into the manifest.

    Args:
        model: the teacher: a name or a folder.
        threshold: lowest score stored.
        max_detections: boxes of a caption at most.
        batch_size: images encoded, and prompts grounded, at once.
        together: captions of one image in one prompt at most, as far as the model reads them; 1 asks each alone,
            which costs a pass of the head each.
        threads: of a worker's computation; results are the same to the bit only for the same number.
        device: cpu, cuda; None: CUDA where there is one.
        pipeline: a parsed spaCy pipeline instead of the bundled phrase finder.
        referring: widen phrases to whole referring expressions.
        pairs: which pairs are worth it.
        form: of the files written.
    """

    model: str
    threshold: float = 0.1
    max_detections: int = 100
    batch_size: int = 4
    together: int = 1
    threads: int = 1
    device: str | None = None
    pipeline: str | None = None
    referring: bool = False
    pairs: PairRules = field(default_factory=PairRules)
    form: Form = "jsonl"


@dataclass(frozen=True)
class _Asked:
    """An image and the captions that are asked of it."""

    of: Captioned
    prompts: tuple[Prompt, ...]


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count the time within to a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] += time.monotonic() - began


class Labeller:
    """A worker with its own teacher, which labels any shard into the store; the same shard gives the same file.

    Args:
        how: what it needs to know.
        folder: where labels go.

    Raises:
        CheckpointError: a teacher that cannot be loaded.
        ValueError: a phrase pipeline that is not there.
    """

    def __init__(self, how: LabelConfig, folder: str | Path) -> None:
        self.how, self.store = how, Store(folder, how.form)
        self.detector = Detector.from_pretrained(how.model, device=how.device)
        self.finder = PhraseFinder(how.pipeline, referring=how.referring)

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Label a shard and write it to the store; gives its report.

        Raises:
            FileNotFoundError, ValueError: the shard's file is gone, or nothing of it can be read.
            OSError: labels cannot be written.
        """
        clock, began = Clock(), time.monotonic()
        with clock.of("read"):
            images, skipped = read_shard_images(shard)
        rules = self.how.pairs.for_model(self.detector.processor.max_tokens)
        filter = ShardFilter(rules, self.detector.processor.count_tokens)
        with clock.of("parse"):
            asked = self._asked(images, filter)
        rows: list[Row] = []
        for pairs in self._opened(asked, rules, filter, clock):
            with clock.of("detect"):
                results = self._detected(pairs)
            with clock.of("write"):
                rows += _rows(pairs, results, shard.entry.images)
        report = {
            "shard": shard.name,
            "pairs": sum(len(one.captions) for one in images),
            **_counts(rows),
            "dropped": filter.tally.counts,
            "places": filter.tally.places,
            "left out by the reader": skipped.counts,
            "seconds": {stage: round(spent, 3) for stage, spent in clock.seconds.items()},
            "wall": round(time.monotonic() - began, 3),
        }
        self.store.write(shard.name, rows, report)
        return report

    def _asked(self, images: Sequence[Captioned], filter: ShardFilter) -> list[_Asked]:
        """The captions worth asking, as prompts; an image without any is not opened."""
        kept = [[text for text in one.captions if filter.caption(text, str(one.image))] for one in images]
        spans = iter(self.finder.many([text for own in kept for text in own]))
        found = []
        for one, texts in zip(images, kept, strict=True):
            prompts = [self._prompt(text, next(spans), one, filter) for text in texts]
            usable = tuple(prompt for prompt in prompts if prompt is not None)
            if usable:
                found.append(_Asked(one, usable))
        return found

    def _prompt(self, caption: str, spans: Sequence[Span], of: Captioned, filter: ShardFilter) -> Prompt | None:
        if not filter.phrases(len(spans), str(of.image)):
            return None
        prompt = Prompt.from_caption(caption, list(spans))
        try:
            self.detector.processor.text([prompt])
        except ValueError:  # a phrase of signs that the vocabulary lacks
            filter.tally.add("caption that the teacher cannot read", str(of.image))
            return None
        return prompt

    def _opened(
        self, asked: Sequence[_Asked], rules: PairRules, filter: ShardFilter, clock: Clock
    ) -> Iterator[list[tuple[_Asked, Image.Image]]]:
        """The images that are worth it, a window at a time; the next one is opened while this one is looked at."""
        windows = [asked[start : start + _WINDOW] for start in range(0, len(asked), _WINDOW)]
        with ThreadPoolExecutor(_READERS) as readers:

            def start(number: int) -> list[Future[Inspected]]:
                return [readers.submit(inspect_image, one.of.image, rules) for one in windows[number]]

            opening = start(0) if windows else []
            for number, window in enumerate(windows):
                with clock.of("decode"):
                    inspected = [future.result() for future in opening]
                opening = start(number + 1) if number + 1 < len(windows) else []
                yield list(_worth(zip(window, inspected, strict=True), filter))

    def _detected(self, pairs: Sequence[tuple[_Asked, Image.Image]]) -> list[list[Detections]]:
        """What is found for each caption of each image; an image is encoded once for all its captions."""
        found: dict[int, list[Detections]] = defaultdict(list)
        size, detector = self.how.batch_size, self.detector
        for group in detector.group_by_size([image for _, image in pairs], size):
            encoded = detector.encode_image([pairs[index][1] for index in group])
            packs = [
                (place, pack)
                for place, index in enumerate(group)
                for pack in packed(pairs[index][0].prompts, self.detector.processor, self.how.together)
            ]
            for start in range(0, len(packs), size):
                piece = packs[start : start + size]
                answers = detector.ground(
                    encoded.select([place for place, _ in piece]),
                    detector.encode_text([pack.prompt for _, pack in piece]),
                    threshold=self.how.threshold,
                    max_detections=self.how.max_detections * self.how.together,
                    batch_size=size,
                )
                for (place, pack), answer in zip(piece, answers, strict=True):
                    found[group[place]] += pack.taken_apart(answer, self.how.max_detections)
        return [found[index] for index in range(len(pairs))]


def _worth(inspected: Iterable[tuple[_Asked, Inspected]], filter: ShardFilter) -> Iterator[tuple[_Asked, Image.Image]]:
    for one, got in inspected:
        if filter.image(got, str(one.of.image), len(one.prompts)) and got.image is not None:
            yield one, got.image


def _rows(
    pairs: Sequence[tuple[_Asked, Image.Image]], results: Sequence[Sequence[Detections]], images: Sequence[str]
) -> list[Row]:
    return [
        label_row(_sample(one.of, image, detections), images)
        for (one, image), found in zip(pairs, results, strict=True)
        for detections in found
    ]


def _sample(of: Captioned, image: Image.Image, found: Detections) -> Sample:
    """What is stored: rounded, so that engines and machines agree."""
    return Sample(
        of.image,
        torch.tensor([[round(value, 2) for value in box] for box, *_ in found]).reshape(-1, 4),
        tuple((label,) for label in found.labels.tolist()),
        prompt=found.prompt,
        image_id=of.image_id,
        size=image.size,
        scores=tuple(round(score, 4) for score in found.scores.tolist()),
    )


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    """What the report says of stored rows; ``scores`` counts boxes in equal bins of 0..1."""
    scores, per_phrase = [0] * SCORE_BINS, defaultdict[str, int](int)
    for row in rows:
        own = [0] * len(row["phrases"])
        for box in row["boxes"]:
            scores[min(int(box["score"] * SCORE_BINS), SCORE_BINS - 1)] += 1
            for phrase in box["phrases"]:
                own[phrase] += 1
        for count in own:
            per_phrase[str(min(count, 10))] += 1
    return {
        "kept": len(rows),
        "images": len({(row["image"], row.get("member")) for row in rows}),
        "phrases": sum(len(row["phrases"]) for row in rows),
        "boxes": sum(scores),
        "scores": scores,
        "boxes per phrase": dict(sorted(per_phrase.items(), key=lambda item: int(item[0]))),
    }
