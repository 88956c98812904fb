"""``glip train CONFIG [key=value ...]``: train as a config says; run again to resume."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from glip.config import DatasetConfig, Experiment, load_config

if TYPE_CHECKING:
    from glip.config import ModelConfig
    from glip.evaluate.validate import Validator
    from glip.text.tokens import Tokenizer


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
        "--images", action="append", default=[], metavar="DIR", help="where the pictures of files lie; may be repeated"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Train; the finished model's folder is the last line."""
    experiment = load_config(args.config, args.overrides)
    data = experiment.data
    if args.data:
        data = replace(data, train=_rows(args.data, args.images))
    if args.validate:
        data = replace(data, validate=_rows(args.validate, args.images))
    experiment = replace(experiment, data=data)

    from glip.detector import choose_device
    from glip.train.run import run as train

    folder = train(experiment, device=choose_device(args.device), validator=_validator(experiment))
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
        print(f"trained model in {folder}: try glip detect PICTURE 'a prompt' --model {folder}")
    return 0


def _rows(names: Sequence[str], images: Sequence[str]) -> tuple[DatasetConfig, ...]:
    return tuple(DatasetConfig(name=name, images=tuple(images)) for name in names)


def _validator(experiment: Experiment) -> "Callable[[ModelConfig, Tokenizer], Validator] | None":
    """Validation during training is the ordinary evaluation; training itself does not know it."""
    data = experiment.data
    if not (data.validate and experiment.train.validate_every):
        return None
    from glip.data.catalog import read_set
    from glip.data.mixture import resolve
    from glip.evaluate.validate import Validator

    sets = {row.name: read_set(resolve(row, data), data.root).samples for row in data.validate}
    return lambda config, tokenizer: Validator(config, tokenizer, sets)
