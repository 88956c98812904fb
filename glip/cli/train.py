"""``glip train CONFIG [key=value ...]``: train a model; run again to resume."""

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glip.config import DatasetConfig
from glip.errors import ConfigError
from glip.experiment import Experiment

if TYPE_CHECKING:
    from glip.evaluate.validate import Validator


def run(args: argparse.Namespace) -> int:
    """Train; the model's folder is the last line."""
    from glip.data.catalog import folders_of
    from glip.device import choose_device
    from glip.train.run import run as train
    from glip.train.start import load_config

    experiment = load_config(args.config, args.overrides)
    if args.images and not (args.data or args.validate):
        raise ConfigError("--images without --data or --validate: it names the folder of their images")
    data, settings = experiment.data, experiment.train
    if args.validate and not settings.validate_every:
        settings = replace(settings, validate_every=settings.steps)  # at the end
    folders = folders_of([*(args.data or ()), *(args.validate or ())], args.images, data.root)
    own, others = (
        tuple(DatasetConfig(name=name, images=folders[name]) for name in names or ())
        for names in (args.data, args.validate)
    )
    data = replace(data, train=own or data.train, validate=others or data.validate)
    experiment = replace(experiment, data=data, train=settings)
    main = os.environ.get("RANK", "0") == "0"  # under torchrun one process prints
    due = data.validate and experiment.train.validate_every
    validator, validated = _validator(experiment, main) if due else (None, {})
    folder = train(experiment, device=choose_device(args.device), validator=validator, validated=validated)
    if main:
        print(f"trained model in {folder}: try glip detect IMAGE 'a prompt' --model {folder}")
    return 0


def _validator(experiment: Experiment, main: bool) -> tuple["Validator", dict[str, dict[str, Any]]]:
    """What validates a model during training, and its datasets, which are read here, before hours of other work."""
    from glip.data.catalog import read_set
    from glip.data.mixture import data_record, resolve
    from glip.evaluate.validate import Validator
    from glip.train.run import readable_names

    data, most = experiment.data, experiment.train.validate_images
    short = readable_names([row.name for row in data.validate], data.root, "val")
    files = {short[row.name]: resolve(row, data, "val") for row in data.validate}
    sets = {name: read_set(config, data.root).samples for name, config in files.items()}
    for name, samples in sets.items() if main else ():
        number = f"{most} of {len(samples)} samples, evenly spread" if 0 < most < len(samples) else "all samples"
        print(f"{name}: validating on {number}")
    return Validator(sets, images=most), {name: data_record(files[name], own) for name, own in sets.items()}
