"""From a config to a finished run: the model to start from, the mixture, the loop, and the folder of the model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from glip.config import ModelConfig
from glip.data.loader import MixtureDataset, load_steps
from glip.data.mixture import build_sources, survey
from glip.detector import Detector
from glip.errors import ConfigError
from glip.experiment import Experiment
from glip.model.glip import GLIP, build
from glip.model.weights import (
    ASSETS,
    BUNDLED,
    build_with,
    load_pretrained,
    save_pretrained,
    start_language,
    start_vision,
)
from glip.processor import Processor
from glip.text.tokens import Tokenizer
from glip.train.distributed import Group, main_only, process_group
from glip.train.log import Validation
from glip.train.loop import check_experiment, train

Report = Callable[[str], None]
Validate = Callable[[Detector], Validation]


def run(
    experiment: Experiment,
    *,
    device: torch.device | str = "cpu",
    validator: Validate | None = None,
    report: Report = print,
) -> Path:
    """Train as a config says and write the model beside the run's checkpoints; gives the model's folder.

    Under torchrun each process calls this; the main one writes and reports.

    Args:
        experiment: the resolved config.
        device: where to compute; under torchrun its type, cpu or cuda.
        validator: evaluates the model during training, every ``train.validate_every`` steps.
        report: receives the lines to show.

    Raises:
        GlipError: no training set, or a set or model that cannot be read.
        TrainingError: losses stayed non-finite.
    """
    if not experiment.data.train:
        raise ConfigError("data.train lists no set: name at least one (see configs/pretrain/nano.yaml)")
    with process_group(device) as group:
        return _run(experiment, group, validator, main_only(group, report))


def _run(experiment: Experiment, group: Group, validator: Validate | None, report: Report) -> Path:
    data, settings, folder = experiment.data, experiment.train, Path(experiment.train.output, "model")
    check_experiment(experiment, group)
    folder.parent.mkdir(parents=True, exist_ok=True)  # refused here, where it cannot be
    torch.manual_seed(settings.seed)
    model, config, vocabulary = starting_model(experiment)
    tokenizer = Tokenizer(vocabulary)
    processor = Processor(config, tokenizer)
    sources = build_sources(data)
    surveys = {source.config.name: survey(source, processor) for source in sources}
    for found in surveys.values():
        report(found.summary)
    config = replace(config, trained_on_data=_union(config.trained_on_data, [found.data for found in surveys.values()]))
    mixture = MixtureDataset(sources, processor, data, settings, rank=group.rank, processes=group.size)

    def validate(model: GLIP) -> Validation:
        assert validator is not None
        return validator(Detector(model, config, tokenizer, str(group.device)))

    trained = train(
        replace(experiment, model=config),
        model,
        lambda start: load_steps(mixture, start=start),
        group=group,
        contents={name: found.fingerprint for name, found in surveys.items()},
        validate=validate if validator else None,
        report=report,
    )
    if group.main:
        save_pretrained(folder, trained, config, vocabulary)
    return folder


def starting_model(experiment: Experiment) -> tuple[GLIP, ModelConfig, Path]:
    """The model a run begins with, its config with the names of the training sets, and its tokenizer's folder.

    Raises:
        CheckpointError: starting weights that cannot be read, or are not of the model that the config describes.
    """
    config, start, inherited = experiment.model, experiment.train.start, ModelConfig()
    if start:
        loaded = load_pretrained(start)
        inherited, vocabulary = loaded.config, loaded.tokenizer
        model = build_with(config, loaded.model.state_dict(), Path(start))
    else:
        model, vocabulary = _pretrained_parts(config), ASSETS / BUNDLED
    if config.trained_on in ((), inherited.trained_on):  # else the config states what the model is trained on
        names = readable_names([row.name for row in experiment.data.train]).values()
        config = replace(config, trained_on=_union(inherited.trained_on, list(names)))
    return model, replace(config, trained_on_data=_union(inherited.trained_on_data, config.trained_on_data)), vocabulary


def readable_names(names: Sequence[str]) -> dict[str, str]:
    """Short names of datasets; one given by its path is named with its folder, and with more folders where needed."""
    parts = {name: Path(name).absolute().with_suffix("").parts[1:] for name in names}
    paths = [name for name in names if "/" in name or Path(name).is_file()]
    short = dict(zip(names, names, strict=True))
    for depth in range(2, max(map(len, parts.values()), default=0) + 2):
        short |= {name: "/".join(parts[name][-depth:]) for name in paths}
        if len(set(short.values())) == len(short):
            break
    return short


def _union(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _pretrained_parts(config: ModelConfig) -> GLIP:
    """A model with random weights but for the parts whose pretrained weights the config names."""
    model = build(config)
    if config.vision.pretrained:
        start_vision(model, config.vision.pretrained)
    if config.language.pretrained:
        start_language(model, config.language.pretrained)
    if config.language.bits == 8:
        model.language.round_weights()
    return model
