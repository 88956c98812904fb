"""``glip evaluate MODEL [SET ...]``: the official figures of a model on sets; run again to resume."""

import argparse
import sys
from pathlib import Path

from glip.cli.arguments import add_options, read_options
from glip.config import EvaluateConfig
from glip.errors import ConfigError

_DAYS = 7 * 24 * 60.0  # minutes that processes wait for the slowest of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "names",
        nargs="+",
        metavar="MODEL [SET ...]",
        help="a model, then names of sets, annotation files, odinw13 or odinw35 (default: every set for validation "
        "or tests that is there); with --predictions only a set",
    )
    parser.add_argument("--predictions", metavar="FILE", help="score results in the standard format, without a model")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda if available)")
    add_options(parser, EvaluateConfig)


def run(args: argparse.Namespace) -> int:
    """Evaluate set by set; the tables are printed as they come."""
    config = read_options(EvaluateConfig, args)
    if args.predictions:
        return _score_file(args, config)
    from glip.detector import choose_device
    from glip.evaluate.evaluation import evaluate
    from glip.train.distributed import process_group

    with process_group(choose_device(args.device), minutes=_DAYS) as group:
        share = (group.rank, group.size)
        folder = evaluate(args.names, config, device=str(group.device), share=share, gather=group.gather)
        if group.main:
            print(f"reports and results are in {folder}", file=sys.stderr)
    return 0


def _score_file(args: argparse.Namespace, config: EvaluateConfig) -> int:
    from glip.evaluate.benchmark import load_benchmarks
    from glip.evaluate.odinw import ODINW
    from glip.evaluate.scoring import score_file

    if len(args.names) != 1 or args.names[0] in ODINW:
        raise ConfigError("--predictions scores one set without a model: give the set alone, glip evaluate SET")
    [[benchmark]] = load_benchmarks(args.names, config).values()
    file = Path(args.predictions)
    folder = Path(config.out) / benchmark.name if config.out else file.with_name(f"{file.stem}-{benchmark.name}")
    print(score_file(benchmark, file, folder, draw=config.draw).markdown())
    print(f"the report is in {folder}")
    return 0
