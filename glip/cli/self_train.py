"""``glip self-train CONFIG CAPTIONS --teacher MODEL``: label, select, train, evaluate, in rounds; resumable."""

import argparse
from dataclasses import replace

from glip.cli.label import add_labelling, labelling
from glip.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("config", help="how a student is trained, with its gold sets: a YAML file or an installed name")
    parser.add_argument("captions", help="a set, a file (jsonl, json, csv, tsv, tar) or a folder of such files")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config, such as train.steps=100")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="a name or a folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="where rounds go")
    parser.add_argument("--rounds", type=int, default=1, help="the student of one teaches the next (default: 1)")
    parser.add_argument("--share", type=float, default=0.5, help="of pseudo-labels in the images (default: 0.5)")
    parser.add_argument("--evaluate", action="append", default=[], metavar="SET", help="measure on it; may be repeated")
    parser.add_argument("--from-scratch", action="store_true", help="students start as the config says, not as teacher")
    parser.add_argument("--soft", action="store_true", help="scores weigh the losses of pseudo-labels")
    parser.add_argument("--no-box-loss", action="store_true", help="pseudo-labels do not teach where boxes end")
    parser.add_argument(
        "--rules", nargs="+", default=[], metavar="KEY=VALUE", help="which boxes are believed, as of glip select"
    )
    add_labelling(parser)


def run(args: argparse.Namespace) -> int:
    """Teach; the last student's folder is the last line."""
    label, workers = labelling(args, args.teacher)
    if args.engine == "torchrun":
        raise ConfigError("glip self-train runs in one process: give --engine local or ray, or run each step by itself")
    from glip.data.catalog import find_set, read_set
    from glip.experiment import read_overrides
    from glip.pseudo.run import find_captions
    from glip.pseudo.select import SelectRules
    from glip.schema import parse
    from glip.self_training import SelfTrainConfig, SelfTraining
    from glip.signals import GracefulStop
    from glip.train.start import load_config

    experiment = load_config(args.config, args.overrides)
    if args.root:
        experiment = replace(experiment, data=replace(experiment.data, root=args.root))
    root = experiment.data.root
    how = SelfTrainConfig(
        rounds=args.rounds,
        share=args.share,
        from_teacher=not args.from_scratch,
        rules=parse(SelectRules, read_overrides(args.rules), at="rules"),
        soft=args.soft,
        box_loss=not args.no_box_loss,
    )
    captions = find_captions(args.captions, args.images, root)
    sets = {name: read_set(find_set(name, root=root), root, to_score=True).samples for name in args.evaluate}
    teaching = SelfTraining(experiment, captions, label, how, args.out, sets=sets, workers=workers)
    with GracefulStop(at_once=True):
        teaching()
    print(f"last student in {args.out}/round-{args.rounds}/student/model, figures in {args.out}/table.md")
    return 0
