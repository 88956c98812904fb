"""``glip evaluate MODEL [SET ...]``: the official figures of models on sets; run again to resume."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from glip.cli.arguments import read_options
from glip.config import EvaluateConfig
from glip.errors import ConfigError

_DAYS = 7 * 24 * 60.0  # minutes that processes wait for the slowest of them


def run(args: argparse.Namespace) -> int:
    """Evaluate set by set; the tables are printed as they come."""
    config = read_options(EvaluateConfig, args)

    def show(page: str) -> None:
        print(page.partition("\n## ")[0] if args.quiet else page)

    if args.predictions:
        return _score_file(args, config, show)
    models, names = (args.model, args.names) if args.model else (args.names[:1], args.names[1:])
    from glip.device import choose_device
    from glip.evaluate.evaluation import evaluate
    from glip.train.distributed import process_group

    if not models or (args.model and names and Path(names[0], "config.json").is_file()):
        raise ConfigError("give a model first, glip evaluate MODEL [SET ...], or --model before each of several models")
    with process_group(choose_device(args.device), minutes=_DAYS) as group:
        share = (group.rank, group.size)
        folder = evaluate(models, names, config, show, device=str(group.device), share=share, gather=group.gather)
        if group.main:
            print(f"reports and results are in {folder}", file=sys.stderr)
    return 0


def _score_file(args: argparse.Namespace, config: EvaluateConfig, show: Callable[[str], None]) -> int:
    from glip.evaluate.benchmark import load_benchmarks, parts_of
    from glip.evaluate.report import for_terminal
    from glip.evaluate.scoring import score_file
    from glip.files import exclusive, file_name

    if len(args.names) != 1 or parts_of(args.names[0], config.root) or args.model or config.save_thresholds:
        raise ConfigError(
            "--predictions scores one set without a model: give the set alone, glip evaluate SET, and no --model or "
            "--save-thresholds"
        )
    [[benchmark]] = load_benchmarks(args.names, config).values()
    file = Path(args.predictions)
    name = file_name(benchmark.name)
    folder = Path(config.out) / name if config.out else file.with_name(f"{file.stem}-{name}")
    with exclusive(folder):
        show(for_terminal(score_file(benchmark, file, folder, draw=config.draw).markdown()))
    print(f"the report is in {folder}")
    return 0
