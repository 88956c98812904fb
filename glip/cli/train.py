"""``glip train CONFIG [key=value ...]``: train as a config says; run again to resume."""

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from glip.config import DatasetConfig
from glip.errors import ConfigError
from glip.experiment import Experiment
from glip.train.start import load_config

if TYPE_CHECKING:
    from glip.evaluate.validate import Validator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("config", help="a YAML file, or the name of an installed one such as finetune/own")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.steps=100 data.root=DATA")
    parser.add_argument(
        "--data", action="append", metavar="SET", help="train on a set: a name or an annotation file; may be repeated"
    )
    parser.add_argument(
        "--validate", action="append", metavar="SET", help="evaluate on a set during training; may be repeated"
    )
    parser.add_argument(
        "--images", action="append", default=[], metavar="DIR", help="where the images of files lie; may be repeated"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Train; the finished model's folder is the last line."""
    experiment = load_config(args.config, args.overrides)
    if args.images and not (args.data or args.validate):
        raise ConfigError("--images says where the images of --data and --validate lie: give one of these")
    if args.validate and not experiment.train.validate_every:
        raise ConfigError("--validate: the config never validates: give train.validate_every=500 too, or so")
    from glip.data.catalog import folders_of
    from glip.detector import choose_device
    from glip.train.run import run as train

    data = experiment.data
    folders = folders_of([*(args.data or ()), *(args.validate or ())], args.images, data.root)
    if args.data:
        data = replace(data, train=tuple(DatasetConfig(name=name, images=folders[name]) for name in args.data))
    if args.validate:
        data = replace(data, validate=tuple(DatasetConfig(name=name, images=folders[name]) for name in args.validate))
    experiment = replace(experiment, data=data)

    folder = train(experiment, device=choose_device(args.device), validator=_validator(experiment))
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
        print(f"trained model in {folder}: try glip detect IMAGE 'a prompt' --model {folder}")
    return 0


def _validator(experiment: Experiment) -> "Validator | None":
    """Validation during training is the ordinary evaluation; training itself does not know it."""
    data, most = experiment.data, experiment.train.validate_images
    if not (data.validate and experiment.train.validate_every):
        return None
    from glip.data.catalog import data_root, missing_part, read_set
    from glip.data.mixture import resolve

    entries = {row.name: resolve(row, data) for row in data.validate}  # found before hours of other work
    for name, entry in entries.items():
        missing = missing_part(entry, data.root)
        if missing:
            raise FileNotFoundError(
                f"set {name!r}: {missing!r} is not under {str(data_root(data.root))!r}: set data.root"
            )

    from glip.evaluate.validate import Validator
    from glip.train.run import readable_names

    short = readable_names(list(entries))
    sets = {short[name]: read_set(entry, data.root).samples for name, entry in entries.items()}
    for name, samples in sets.items() if os.environ.get("RANK", "0") == "0" else ():
        few = f"{most} of {len(samples)} samples, evenly spread" if 0 < most < len(samples) else "all its samples"
        print(f"{name}: validated on {few}")
    return Validator(sets, images=most)
