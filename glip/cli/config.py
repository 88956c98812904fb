"""``glip config CONFIG [key=value ...]``: print the resolved experiment, every key and value."""

import argparse
from collections.abc import Sequence
from typing import Any

from glip.config import load_config, to_dict, to_yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("config", help="a YAML file, or the name of an installed one such as glip_t")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as model.image.min_size=640")


def run(args: argparse.Namespace) -> int:
    """Print the experiment as YAML; with a start of the model only what was given, for the rest is the start's."""
    experiment = load_config(args.config, args.overrides)
    tree = to_dict(experiment)
    stated = tree.pop("stated")
    if experiment.train.start:
        tree["model"] = _only(tree["model"], "model", stated)
    print(to_yaml(tree), end="")
    return 0


def _only(tree: dict[str, Any], at: str, keys: Sequence[str]) -> dict[str, Any]:
    """A tree's leaves of the given keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        own = _only(value, f"{at}.{key}", keys) if isinstance(value, dict) else value
        if f"{at}.{key}" in keys or (isinstance(value, dict) and own):
            found[key] = own
    return found
