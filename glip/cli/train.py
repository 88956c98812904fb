"""``glip train CONFIG [key=value ...]``: train as a config says; run again to resume."""

import argparse

from glip.config import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("config", help="a YAML file, or the name of an installed one such as pretrain/nano")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.steps=100 data.root=DATA")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Train; the finished model's folder is the last line."""
    experiment = load_config(args.config, args.overrides)

    from glip.detector import choose_device
    from glip.train.run import run as train

    folder = train(experiment, device=choose_device(args.device))
    print(f"trained model in {folder}: try glip detect PICTURE 'a prompt' --model {folder}")
    return 0
