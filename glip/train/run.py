"""From a config to a finished run: the model to start from, the mixture, the loop, and the folder it leaves."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from glip.config import ModelConfig
from glip.data.loader import MixtureDataset, Step, load_steps
from glip.data.mixture import build_sources
from glip.data.survey import survey
from glip.detector import build_processor
from glip.errors import ConfigError
from glip.experiment import Experiment
from glip.model.glip import GLIP, build
from glip.model.weights import ASSETS, BUNDLED, fit, load_pretrained, save_pretrained, start_language, start_vision
from glip.text.tokens import Tokenizer
from glip.train.distributed import Group, main_only, process_group
from glip.train.log import Validation
from glip.train.loop import train
from glip.train.settings import check_experiment, check_folder

Say = Callable[[str], None]
MakeValidate = Callable[[ModelConfig, Tokenizer, Say], Callable[[GLIP], Validation]]


def run(
    experiment: Experiment,
    *,
    device: torch.device | str = "cpu",
    validator: MakeValidate | None = None,
    report: Say = print,
) -> Path:
    """Train as a config says and write the model beside the run's checkpoints; gives its folder.

    Under torchrun each process calls this; the main one writes and reports.

    Args:
        experiment: the resolved config.
        device: where to compute; under torchrun its kind, cpu or cuda.
        validator: makes what validates a model in training, of the model's config and tokenizer; may tell something.
        report: receives what is told.

    Raises:
        ValueError: no training set, or a set or model that cannot be read.
        TrainingError: losses stayed non-finite.
    """
    if not experiment.data.train:
        raise ConfigError("data.train lists no set: name at least one (see configs/pretrain/nano.yaml)")
    with process_group(device) as group:
        return _run(experiment, group, validator, main_only(group, report))


def _run(
    experiment: Experiment,
    group: Group,
    validator: MakeValidate | None,
    report: Say,
) -> Path:
    data, settings = experiment.data, experiment.train
    check_experiment(experiment, group)
    torch.manual_seed(settings.seed)
    model, config, vocabulary = starting_model(experiment)
    experiment = replace(experiment, model=config)
    check_folder(experiment)
    tokenizer = Tokenizer(vocabulary)
    processor = build_processor(config, tokenizer)
    sources = build_sources(data)
    surveys = {source.config.name: survey(source, processor) for source in sources}
    for found in surveys.values():
        report(found.summary)
    mixture = MixtureDataset(sources, processor, data, settings, rank=group.rank, processes=group.size)

    def steps(start: int) -> Iterator[Step]:
        return load_steps(mixture, start=start)

    validate = validator(config, tokenizer, report) if validator and settings.validate_every else None
    contents = {name: found.fingerprint for name, found in surveys.items()}
    trained = train(experiment, model, steps, group=group, contents=contents, validate=validate, report=report)
    folder = Path(settings.output) / "model"
    if group.main:
        save_pretrained(folder, trained, config, vocabulary)
    return folder


def starting_model(experiment: Experiment) -> tuple[GLIP, ModelConfig, Path]:
    """The model a run begins with, its config and its tokenizer's folder.

    Raises:
        CheckpointError: starting weights that cannot be read, or are not of the model that the config describes.
    """
    config = experiment.model
    if experiment.train.start:
        loaded = load_pretrained(experiment.train.start)
        if config.trained_on == loaded.config.trained_on:
            seen = dict.fromkeys([*config.trained_on, *(row.name for row in experiment.data.train)])
            config = replace(config, trained_on=tuple(seen))
        model = build(config)
        fit(model, loaded.model.state_dict(), Path(experiment.train.start))
        return model, config, loaded.tokenizer
    model = build(config)
    if config.vision.pretrained and config.vision.kind != "swin":
        raise ConfigError(
            f"model.vision.pretrained: {config.vision.pretrained!r} cannot be read into a {config.vision.kind}: take "
            "kind swin, or train.start, or set it to null"
        )
    if config.vision.pretrained:
        start_vision(model, config.vision.pretrained)
    if config.language.pretrained:
        start_language(model, config.language.pretrained)
    if config.language.bits == 8:
        model.language.round_weights()
    return model, config, ASSETS / BUNDLED
