"""Small runs: a tiny model, batches of drawn images of one size, and steps made of them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from small import NAMES, RELEASED, TINY, VOCABULARY, scenes
from torch.utils._pytree import tree_flatten

from glip.config import ModelConfig, TrainConfig, VisionConfig
from glip.data.loader import Step
from glip.data.sets import SkipCounter, Validation
from glip.experiment import Experiment
from glip.model.glip import GLIP
from glip.processor import Processor
from glip.structures import Batch, Prompt, Sample
from glip.text.tokens import Tokenizer

_WORDS = 300  # of the vocabulary: token ids are folded into it, so that embeddings are no more than the network
SWIN: ModelConfig = replace(
    RELEASED,
    vision=replace(RELEASED.vision, widths=(8, 16, 32, 64), depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), drop_path=0.1),
    language=replace(RELEASED.language, hidden=64, heads=1, vocabulary=_WORDS),
    head=replace(RELEASED.head, blocks=1, channels=32),
)
RESNET = replace(SWIN, vision=VisionConfig(kind="resnet", widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), drop_path=0.1))
TASK = replace(  # sizes for tuning and for learning by heart
    TINY,
    vision=replace(TINY.vision, depths=(1, 1, 1, 1), drop_path=0.1),
    language=replace(TINY.language, layers=1, dropout=0.1),
    head=replace(TINY.head, blocks=1, fusion_width=128, fusion_dropout=0.1, drop_block=0.3),
    image=replace(TINY.image, min_size=120, max_size=160),
)


def still(config: ModelConfig) -> ModelConfig:
    """Nothing random in it: the same step gives the same numbers however it is divided."""
    return replace(
        config,
        vision=replace(config.vision, drop_path=0.0),
        language=replace(config.language, dropout=0.0),
        head=replace(config.head, fusion_dropout=0.0, drop_block=0.0),
    )


STILL = still(SWIN)


def validation(best: float) -> Validation:
    return Validation({"drawn/AP50": best})


def settings(output: Path, **changes: object) -> Experiment:
    quick = {"steps": 6, "batch_size": 1, "lr": 1e-3, "warmup": 2, "save_every": 2, "log_every": 2, **changes}
    return Experiment(train=TrainConfig(output=str(output), **quick))


def batches_of(size: int, *, side: int = 64) -> list[Batch]:
    """The four drawn images in batches of ``size``, captions padded to one length only within a batch."""
    processor = Processor(replace(SWIN, language=replace(SWIN.language, vocabulary=30522)), Tokenizer(VOCABULARY))
    samples = []
    for image, things in scenes():
        names = [f"{thing.colour} {thing.kind}" for thing in things]
        boxes = torch.tensor([thing.box for thing in things]) * (side / 128)
        phrases = tuple((index,) for index in range(len(things)))
        samples.append(Sample(image.resize((side, side)), boxes, phrases, prompt=Prompt.from_names(names)))
    made = [processor.training(samples[first : first + size]) for first in range(0, len(samples), size)]
    texts = [replace(batch.text, input_ids=batch.text.input_ids % _WORDS) for batch in made]
    return [replace(batch, text=text) for batch, text in zip(made, texts, strict=True)]


def task_samples() -> list[Sample]:
    """The drawn images with boxes of ``NAMES``, as tuning reads them."""
    made = []
    for number, (image, things) in enumerate(scenes()):
        labels = tuple((NAMES.index(f"{thing.colour} {thing.kind}"),) for thing in things)
        boxes = torch.tensor([thing.box for thing in things])
        made.append(Sample(image, boxes, labels, vocabulary=NAMES, image_id=number))
    return made


def step_of(*batches: Batch, skipped: str = "", broken: tuple[str, ...] = ()) -> Step:
    tally = SkipCounter()
    if skipped:
        tally.add(skipped)
    return Step(batches, tally, broken, sum(len(batch.targets) for batch in batches) + len(broken))


def stream(made: list[Step], steps: int, stop: int | None = None, number: int = 0) -> Callable[[int], Iterator[Step]]:
    """Steps in turn; before step ``stop`` they are killed, or the signal ``number`` comes."""

    def since(start: int) -> Iterator[Step]:
        for step in range(start, steps):
            if step == stop and not number:
                raise KeyboardInterrupt
            if step == stop:
                os.kill(os.getpid(), number)
            yield made[step % len(made)]

    return since


def checkpoint(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def poisoned(step: Step) -> Step:
    def poison(batch: Batch) -> Batch:
        pixels = torch.full_like(batch.images.pixels, torch.nan)
        return replace(batch, images=replace(batch.images, pixels=pixels))

    return replace(step, batches=tuple(poison(batch) for batch in step.batches))


def metrics(folder: Path) -> list[dict[str, object]]:
    """Rows without what depends on the machine."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "memory_mb")} for row in rows]


def weights(model: GLIP) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def same(first: object, second: object) -> bool:
    """Whether two trees of plain values and tensors are bit-identical."""
    (ours, form), (theirs, other) = tree_flatten(first), tree_flatten(second)
    exact = (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(ours, theirs, strict=False))
    return form == other and all(exact)


def in_two_processes(*command: object, **more: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a command twice at once, as torchrun does; the processes talk through a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **more}
    words = [sys.executable, *map(str, command)]
    environments = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(words, env=own, **pipes) for own in environments]
    ended = [process.communicate(timeout=300) for process in running]
    codes = [process.returncode for process in running]
    return [subprocess.CompletedProcess(words, code, *said) for code, said in zip(codes, ended, strict=True)]


def quiet(line: str) -> None:
    """Reports nothing."""
