"""``glip tune MODEL SET``: adapt a model to one task, or to a table of tasks; run again to resume."""

import argparse
from pathlib import Path
from typing import Any

from glip.cli.arguments import read_options
from glip.config import TaskConfig, TuneConfig
from glip.errors import ConfigError
from glip.files import exclusive, file_name, read_json
from glip.schema import parse

_OUT = "runs/tune"


def run(args: argparse.Namespace) -> int:
    """Tune in every combination of mode, shots and seed; the task file's path is the last line."""
    if not (args.set or args.tasks):
        raise ConfigError("give a dataset to tune on, or --tasks TABLE")
    for option in ("set", "validate", "test", "images", "prompts", "image_list") if args.tasks else ():
        if getattr(args, option):
            raise ConfigError(f"{option.replace('_', '-')} besides --tasks: write it in the table, for each task")
    ids: tuple[str, ...] = ()
    if file := args.image_list:
        tree = parse(dict[str, Any], read_json(file), at=file)
        ids = tuple(map(str, parse(tuple[str | int, ...], tree.get("ids"), at=f"{file}: ids")))
    configs = [
        read_options(TuneConfig, args, mode=mode, shots=shots, seed=seed, image_list=ids)
        for mode in args.mode
        for shots in args.shots
        for seed in args.seed
    ]
    from glip.detector import Detector
    from glip.device import choose_device
    from glip.model.zoo import say_limits

    say_limits(args.model)
    if args.tasks:
        from glip.recipes.tune_table import tune_table

        detector = Detector.from_pretrained(args.model, device=args.device)
        tune_table(detector, args.tasks, configs, Path(args.out or f"{_OUT}/{Path(args.tasks).stem}"), args.root)
        return 0
    from glip.encoded import FeatureCache
    from glip.model.adapt import TASK_FILE
    from glip.recipes.tune import read_task_data, run_name, tune_task
    from glip.train.distributed import main_only, process_group

    task = read_task_data(read_options(TaskConfig, args, train=args.set), args.root)
    with process_group(choose_device(args.device)) as group:
        detector, report = Detector.from_pretrained(args.model, device=str(group.device)), main_only(group, print)
        cache = FeatureCache(configs[0].cache_gb)
        for config in configs:
            folder = Path(args.out or f"{_OUT}/{file_name(detector.config.name)}") / run_name(task.name, config)
            with exclusive(folder, main=group.main, gather=group.gather):
                found = tune_task(detector, task, config, folder, cache=cache, group=group)
            report(
                ", ".join(f"{name}{' AP' * ('AP' not in name)} {value:.3f}" for name, value in found.figures.items())
            )
            file = folder / TASK_FILE
            report(f"task in {file}: try glip detect IMAGE --model {args.model} --task {file}")
    return 0
