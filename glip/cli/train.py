"""``glip train CONFIG [key=value ...]``: train a model; run again to resume."""

import argparse
import os
from dataclasses import replace

from glip.config import DatasetConfig
from glip.errors import ConfigError


def run(args: argparse.Namespace) -> int:
    """Train; the model's folder is the last line."""
    from glip.data.catalog import folders_of
    from glip.detector import choose_device
    from glip.recipes.train import validator_of
    from glip.train.run import run as train
    from glip.train.start import load_config

    experiment = load_config(args.config, args.overrides)
    if args.images and not (args.data or args.validate):
        raise ConfigError("--images without --data or --validate: it names the folder of their images")
    if args.validate and not experiment.train.validate_every:
        raise ConfigError("--validate without train.validate_every: give it too, such as train.validate_every=500")
    data = experiment.data
    folders = folders_of([*(args.data or ()), *(args.validate or ())], args.images, data.root)
    if args.data:
        data = replace(data, train=tuple(DatasetConfig(name=name, images=folders[name]) for name in args.data))
    if args.validate:
        data = replace(data, validate=tuple(DatasetConfig(name=name, images=folders[name]) for name in args.validate))
    experiment = replace(experiment, data=data)
    folder = train(experiment, device=choose_device(args.device), validator=validator_of(experiment))
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process prints
        print(f"trained model in {folder}: try glip detect IMAGE 'a prompt' --model {folder}")
    return 0
