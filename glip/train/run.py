"""From a config to a finished run: the model to start from, the mixture, the loop, and the folder it leaves."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from glip.config import Experiment, ModelConfig
from glip.data.loader import MixtureDataset, Source, build_sources, count_crowded, load_steps
from glip.detector import build_processor
from glip.model.glip import GLIP, build
from glip.model.vision import timm_weights
from glip.model.weights import ASSETS, BUNDLED, load_pretrained, save_pretrained, start_language
from glip.processor import Processor
from glip.structures import Batch
from glip.text.tokens import Tokenizer
from glip.train.loop import train


def run(experiment: Experiment, *, device: torch.device | str = "cpu", report: Callable[[str], None] = print) -> Path:
    """Train as a config says and write the model beside the run's checkpoints; gives its folder.

    Raises:
        ValueError: no training set, or a set or model that cannot be read.
        TrainingError: losses stayed non-finite.
    """
    data, settings = experiment.data, experiment.train
    if not data.train:
        raise ValueError("data.train lists no set: name at least one (see configs/pretrain/nano.yaml)")
    torch.manual_seed(settings.seed)
    model, config, tokenizer = starting_model(experiment)
    processor = build_processor(config, Tokenizer(tokenizer))
    sources = build_sources(data, max_tokens=config.max_tokens, max_size=config.image.max_size)
    for source in sources:
        report(describe(source, processor))
    mixture = MixtureDataset(
        sources, processor, batch_size=settings.batch_size, steps=settings.steps, seed=settings.seed
    )

    def batches(start: int) -> Iterator[Batch]:
        return load_steps(mixture, start=start, workers=data.workers)

    trained = train(experiment, model, batches, device=device, report=report)
    folder = Path(settings.output) / "model"
    save_pretrained(folder, trained, config, tokenizer)
    return folder


def describe(source: Source, processor: Processor) -> str:
    """What a set brings, and what of it is left out: nothing goes missing silently."""
    if source.samples is None:
        return f"{source.name}: drawn as needed"
    left_out = [f"{count} x {reason}" for reason, count in source.left_out.items()]
    crowded = count_crowded(source, processor.count_tokens)
    if crowded:
        left_out.append(f"boxes of {crowded} x picture with more names than a caption holds")
    boxes = sum(len(sample.boxes) for sample in source.samples)
    said = f"{source.name}: {len(source.samples)} pictures, {boxes} boxes"
    return f"{said}; left out: {', '.join(left_out)}" if left_out else said


def starting_model(experiment: Experiment) -> tuple[GLIP, ModelConfig, Path]:
    """The model a run begins with, its config and its tokenizer's folder."""
    if experiment.train.start:
        loaded = load_pretrained(experiment.train.start)
        return loaded.model, loaded.config, loaded.tokenizer
    config = experiment.model
    model = build(config)
    if config.vision.pretrained and config.vision.kind == "swin":
        model.vision.load_state_dict(timm_weights(config.vision.pretrained), strict=False)
    if config.language.pretrained:
        start_language(model, config.language.pretrained)
    if config.language.bits == 8:
        model.language.round_weights()
    return model, config, ASSETS / BUNDLED
