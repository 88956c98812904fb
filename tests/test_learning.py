"""A small GLIP learns four drawn images by heart: losses, targets, gradients and decoding are one whole."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small import NAMES, VOCABULARY, scenes, seeded
from small_runs import TASK, still

from glip.config import TrainConfig
from glip.data.loader import Step
from glip.data.sets import SkipCounter
from glip.detector import Detector
from glip.experiment import Experiment
from glip.geometry.boxes import iou
from glip.processor import Processor
from glip.structures import Detections, Prompt, Sample
from glip.text.tokens import Tokenizer
from glip.train.loop import TrainRun

STEPS = 300
CONFIG = still(TASK)


def samples() -> list[Sample]:
    made = []
    for number, (image, things) in enumerate(scenes()):
        labels = [NAMES.index(f"{thing.colour} {thing.kind}") for thing in things]
        order = np.random.default_rng(number).permutation(len(NAMES)).tolist()
        prompt = Prompt.from_names([NAMES[index] for index in order])
        phrases = tuple((order.index(label),) for label in labels)
        made.append(Sample(image, torch.tensor([thing.box for thing in things]), phrases, prompt=prompt))
    return made


def right(found: Detections, sample: Sample) -> torch.Tensor:
    """For each detection and box: whether they overlap and have the same name."""
    labels = torch.tensor([label for (label,) in sample.box_phrases])
    return (iou(found.boxes, sample.boxes, inclusive=False) >= 0.5) & (found.labels[:, None] == labels)


@pytest.mark.slow
def test_four_images_are_learned_by_heart(tmp_path):
    learned = samples()
    tokenizer = Tokenizer(VOCABULARY)
    batch = Processor(CONFIG, tokenizer).training(learned)

    def steps(start: int) -> Iterator[Step]:
        return (Step((batch,), SkipCounter(), (), len(learned)) for _ in range(start, STEPS))

    settings = TrainConfig(
        steps=STEPS,
        lr=1e-3,
        bert_lr=1e-3,
        text_lr=1e-3,
        warmup=10,
        schedule="cosine",
        save_every=STEPS,
        output=str(tmp_path),
    )
    model = TrainRun(Experiment(train=settings), seeded(CONFIG), steps, report=lambda line: None)()
    detector = Detector(model, CONFIG, tokenizer, "cpu")
    found = detector([sample.image for sample in learned], [sample.prompt for sample in learned], threshold=0.3)
    matched = [right(*pair) for pair in zip(found, learned, strict=True)]
    assert all(pairs.any(0).all() for pairs in matched), "every box is found, by its name"
    assert sum(int((~pairs.any(1)).sum()) for pairs in matched) <= 1, "and hardly anything else"
