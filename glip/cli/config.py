"""``glip config CONFIG [key=value ...]``: print the resolved experiment, every key and value."""

import argparse

from glip.experiment import to_yaml
from glip.train.start import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("config", help="a YAML file, or the name of an installed one such as glip_t")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as model.image.min_size=640")


def run(args: argparse.Namespace) -> int:
    """Print the experiment as YAML."""
    experiment = load_config(args.config, args.overrides)
    print(to_yaml(experiment), end="")
    return 0
