"""From a config to a finished run: the model to start from, the mixture, the loop, and the folder of the model."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from glip.config import UNSTATED, VALIDATED, ModelConfig
from glip.console import counted
from glip.data.catalog import dataset_name
from glip.data.loader import MixtureDataset, load_steps
from glip.data.mixture import Survey, build_sources, survey
from glip.data.sets import Validation
from glip.detector import Detector
from glip.errors import ConfigError
from glip.experiment import Experiment, to_dict
from glip.files import exclusive
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
from glip.provenance import RECORD, files_in, record
from glip.text.tokens import Tokenizer
from glip.train.distributed import main_only, process_group
from glip.train.loop import TrainRun, check_experiment

Records = Mapping[str, Mapping[str, Any]]  # of datasets, by name
_WRITTEN = ("experiment.yaml", "metrics.jsonl")  # beside the checkpoints


def run(
    experiment: Experiment,
    *,
    device: torch.device | str = "cpu",
    validator: Callable[[Detector], Validation] | None = None,
    validated: Records = MappingProxyType({}),
    report: Callable[[str], None] = print,
) -> Path:
    """Train as a config says and write the model beside the run's checkpoints; gives the model's folder.

    Under torchrun each process calls this, with cpu or cuda as device; the main one writes and reports. ``validator``
    evaluates the model every ``train.validate_every`` steps; the thresholds that it finds for the finished model are
    stored with it, beside those that ``model.thresholds`` states. ``validated`` are the records of its sets by name.

    Raises:
        GlipError: no training set, or a set or model that cannot be read.
        TrainingError: losses stayed non-finite.
    """
    data, settings, output = experiment.data, experiment.train, Path(experiment.train.output)
    model_folder = output / "model"
    if not data.train:
        raise ConfigError("data.train lists no set: name at least one (see configs/pretrain/nano.yaml)")
    with process_group(device) as group, exclusive(output, main=group.main, gather=group.gather):
        report = main_only(group, report)
        check_experiment(experiment, group)
        torch.manual_seed(settings.seed)
        model, config, vocabulary = starting_model(experiment)
        processor = Processor(config, Tokenizer(vocabulary))
        sources = build_sources(data)
        surveys = {source.config.name: survey(source, processor) for source in sources}
        for found in surveys.values():
            report(found.summary)
        config = _with_data(config, surveys, validated)
        mixture = MixtureDataset(sources, processor, data, settings, rank=group.rank, processes=group.size)

        def validate(model: GLIP) -> Validation:
            assert validator is not None
            return validator(Detector(model, config, processor.tokenizer, str(group.device)))

        training = TrainRun(
            replace(experiment, model=config),
            model,
            lambda start: load_steps(mixture, start=start),
            group=group,
            contents={name: found.fingerprint for name, found in surveys.items()},
            validate=validate if validator else None,
            report=report,
        )
        if group.main:
            _record_start(experiment, surveys, validated, training.progress.step)
        trained = training()
        if validator and settings.validate_every:
            best = validate(trained).thresholds
            config = replace(config, thresholds=best | config.thresholds)
            report(f"the model has a score threshold for {counted(len(best), 'class')}: that of best F1 on validation")
        if group.main:
            save_pretrained(model_folder, trained, config, vocabulary)
            record(model_folder / RECORD, step=training.kept_step, files=files_in(model_folder))
            record(output / RECORD, files=[*output.glob("*.pt"), *map(output.joinpath, _WRITTEN)])
    return model_folder


def _with_data(config: ModelConfig, surveys: Mapping[str, Survey], validated: Records) -> ModelConfig:
    """The config with the fingerprints of what the model is trained on and chosen by."""
    seen = [*config.trained_on_data, *(one for found in surveys.values() for one in found.data)]
    seen += [VALIDATED + one["fingerprint"] for one in validated.values()]
    return replace(config, trained_on_data=tuple(dict.fromkeys(seen)))


def _record_start(experiment: Experiment, surveys: Mapping[str, Survey], validated: Records, step: int) -> None:
    """Write the run's record, with another date where it goes on from a step."""
    data = {name: found.record for name, found in surveys.items()}
    data |= {f"{name} (validation)": one for name, one in validated.items()}
    resumed = 0 < step < experiment.train.steps
    record(Path(experiment.train.output, RECORD), config=to_dict(experiment), data=data, resumed=resumed)


def starting_model(experiment: Experiment) -> tuple[GLIP, ModelConfig, Path]:
    """The model a run begins with, its config with the names of the training sets, and its tokenizer's folder.

    Raises:
        CheckpointError: starting weights that cannot be read, or are not of the model that the config describes.
    """
    config, start, inherited, vocabulary = experiment.model, experiment.train.start, ModelConfig(), ASSETS / BUNDLED
    if start:
        loaded = load_pretrained(start)
        inherited, vocabulary = loaded.config, loaded.tokenizer
        model = build_with(config, loaded.model.state_dict(), Path(start))
    else:  # random weights but for the parts whose pretrained weights the config names
        model = build(config)
        if config.vision.pretrained:
            start_vision(model, config.vision.pretrained)
        if config.language.pretrained:
            start_language(model, config.language.pretrained)
        if config.language.bits == 8:
            model.language.round_weights()
    trained_on = config.trained_on
    unstated = (UNSTATED,) if start else ()
    if trained_on in ((), inherited.trained_on):  # else the config states what the model is trained on
        names = readable_names([row.name for row in experiment.data.train], experiment.data.root)
        trained_on = tuple(dict.fromkeys([*(inherited.trained_on or unstated), *names.values()]))
    seen = tuple(dict.fromkeys([*(inherited.trained_on_data or unstated), *config.trained_on_data]))
    return model, replace(config, trained_on=trained_on, trained_on_data=seen), vocabulary


def readable_names(names: Sequence[str], root: str | None = None, split: str = "train") -> dict[str, str]:
    """Short names of datasets as ``glip evaluate`` has them; where two are alike, files by their paths below all."""
    files = [name for name in names if "/" in name or Path(name).is_file()]
    short = {name: dataset_name(name, root, split) if name in files else name for name in names}
    if len(set(short.values())) == len(short):
        return short
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in files])
    return short | {name: os.path.relpath(name, shared) for name in files}
