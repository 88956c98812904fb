"""``glip self-train CONFIG CAPTIONS --teacher MODEL``: label, select, train and evaluate in rounds; resumable."""

import argparse
from dataclasses import replace

from glip.cli.arguments import read_options
from glip.config import LabelConfig, SelectConfig, SelfTrainConfig


def run(args: argparse.Namespace) -> int:
    """Run the rounds; the last line names the last student's folder."""
    label, select = read_options(LabelConfig, args), read_options(SelectConfig, args)
    options = read_options(SelfTrainConfig, args)
    from glip.data.catalog import find_set, read_set
    from glip.model.zoo import say_limits
    from glip.pseudo.label import find_captions
    from glip.recipes.self_training import SelfTraining, self_train, student_folder
    from glip.signals import GracefulStop
    from glip.train.start import load_config

    say_limits(args.teacher)
    experiment = load_config(args.config, args.overrides)
    if args.root:
        experiment = replace(experiment, data=replace(experiment.data, root=args.root))
    root = experiment.data.root
    captions = find_captions(args.captions, args.images, root)
    found = {name: find_set(name, root=root, split="val") for name in args.evaluate}
    sets = {name: read_set(entry, root, to_score=True).samples for name, entry in found.items()}
    plan = SelfTraining(experiment, captions, args.teacher, label, select, options)
    with GracefulStop(at_once="finished shards and rounds are saved; run the same command again to resume"):
        self_train(plan, args.out, sets=sets, device=args.device)
    print(f"last student in {student_folder(args.out, options.rounds) / 'model'}, figures in {args.out}/table.md")
    return 0
