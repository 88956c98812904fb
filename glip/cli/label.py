"""``glip label MODEL CAPTIONS``: a teacher grounds the phrases of captions; run again to resume."""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from glip.errors import ConfigError
from glip.experiment import read_overrides
from glip.schema import parse

if TYPE_CHECKING:
    from glip.pseudo.label import LabelConfig
    from glip.pseudo.run import Workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="the teacher: a name or a folder")
    parser.add_argument("captions", help="a set, a file (jsonl, json, csv, tsv, tar) or a folder of such files")
    parser.add_argument("--out", required=True, metavar="DIR", help="where labels go, a file for each shard")
    add_labelling(parser)


def add_labelling(parser: argparse.ArgumentParser) -> None:
    """Declare how captions are labelled; ``glip self-train`` has the same."""
    parser.add_argument("--images", action="append", default=[], metavar="DIR", help="where the images of files lie")
    parser.add_argument("--root", default=None, metavar="DIR", help="the data root (default: GLIP_DATA, else here)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    group = parser.add_argument_group("labels")
    group.add_argument("--threshold", type=float, default=0.1, help="lowest score stored (default: 0.1)")
    group.add_argument("--max-detections", type=int, default=100, metavar="N", help="of a caption (default: 100)")
    group.add_argument("--batch-size", type=int, default=4, help="images or captions computed at once (default: 4)")
    group.add_argument(
        "--together", type=int, default=1, metavar="N", help="captions of an image in one prompt (default: 1)"
    )
    group.add_argument("--per-shard", type=int, default=1000, metavar="N", help="images of a shard of a single file")
    group.add_argument("--form", choices=("jsonl", "parquet"), default="jsonl", help="of the labels (default: jsonl)")
    group.add_argument("--pipeline", metavar="SPACY", help="a parsed spaCy pipeline instead of the bundled finder")
    group.add_argument("--referring", action="store_true", help="widen phrases to whole referring expressions")
    group.add_argument(
        "--pairs",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="which pairs are worth labelling, such as min_side=100 max_words=40 (docs/self-training.md has all)",
    )
    group = parser.add_argument_group("workers")
    group.add_argument("--engine", choices=("local", "torchrun", "ray"), default="local", help="what runs the shards")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="actors of Ray (default: 1)")
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of a worker (default: this machine's cores shared by them)"
    )


def run(args: argparse.Namespace) -> int:
    """Label; where labels and the report lie is the last line."""
    how, workers = labelling(args, args.model)
    from glip.pseudo.run import find_captions, run_labelling
    from glip.signals import GracefulStop

    if Path(args.out).is_file():
        raise ConfigError(f"--out {args.out!r} is a file: give a folder, which is made if missing")
    with GracefulStop(at_once=True):
        entry = find_captions(args.captions, args.images, args.root)
        done = run_labelling(entry, how, args.out, workers, print)
    report = done.report
    print(
        f"{report['kept']} of {report['pairs']} pairs labelled, {report['boxes']} boxes; what was dropped and why: "
        f"{Path(args.out) / 'report.json'}, drawn in report.png there; next: glip select {args.out}"
    )
    if done.failed:
        print(f"{len(done.failed)} shards failed: mend them and run the same again", file=sys.stderr)
    return 2 if done.failed else 0


def labelling(args: argparse.Namespace, model: str) -> "tuple[LabelConfig, Workers]":
    """What the options say.

    Raises:
        ValueError: a number that makes no sense.
    """
    if not 0 <= args.threshold <= 1:
        raise ConfigError(f"--threshold {args.threshold} is outside [0, 1]: scores are probabilities, such as 0.1")
    for option in ("max_detections", "batch_size", "together", "per_shard", "workers"):
        if getattr(args, option) < 1:
            raise ConfigError(f"--{option.replace('_', '-')} {getattr(args, option)}: give 1 or more")
    if args.threads < 0:
        raise ConfigError(
            f"--threads {args.threads}: give 1 or more, or 0 for this machine's cores shared by the workers"
        )
    from glip.pseudo.filters import PairRules
    from glip.pseudo.label import LabelConfig
    from glip.pseudo.run import Workers

    own = {part.name: getattr(args, part.name) for part in fields(LabelConfig) if part.name not in ("pairs", "model")}
    own["threads"] = args.threads or _cores_of_a_worker(args)
    pairs = parse(PairRules, read_overrides(args.pairs), at="pairs")
    workers = Workers(engine=args.engine, workers=args.workers, per_shard=args.per_shard)
    return LabelConfig(model=model, **own, pairs=pairs), workers


def _cores_of_a_worker(args: argparse.Namespace) -> int:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if args.engine == "torchrun" else args.workers
    return max(1, (os.cpu_count() or 1) // local)
