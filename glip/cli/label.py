"""``glip label MODEL CAPTIONS``: a teacher grounds the phrases of captions; run again to resume."""

import argparse
import os
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip.config import from_dict, read_overrides

if TYPE_CHECKING:
    from glip.config import SetConfig
    from glip.pseudo.label import HowToLabel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="the teacher: a name or a folder")
    parser.add_argument("captions", help="a set, a file (jsonl, json, csv, tsv, tar) or a folder of such files")
    parser.add_argument("--out", required=True, metavar="DIR", help="where labels go, a file for each shard")
    parser.add_argument("--images", action="append", default=[], metavar="DIR", help="where the pictures of files lie")
    parser.add_argument("--root", default=None, metavar="DIR", help="the data root (default: GLIP_DATA, else here)")
    parser.add_argument("--threshold", type=float, default=0.1, help="lowest score stored (default: 0.1)")
    parser.add_argument("--max-detections", type=int, default=100, metavar="N", help="of a caption (default: 100)")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures or captions computed at once (default: 4)")
    parser.add_argument("--per-shard", type=int, default=1000, metavar="N", help="pictures of a shard of a single file")
    parser.add_argument("--form", choices=("jsonl", "parquet"), default="jsonl", help="of the labels (default: jsonl)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    group = parser.add_argument_group("phrases")
    group.add_argument("--pipeline", metavar="SPACY", help="a parsed spaCy pipeline instead of the bundled finder")
    group.add_argument("--referring", action="store_true", help="widen phrases to whole referring expressions")
    group = parser.add_argument_group("workers")
    group.add_argument("--engine", choices=("local", "torchrun", "ray"), default="local", help="what runs the shards")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="actors of Ray (default: 1)")
    group.add_argument("--threads", type=int, default=1, metavar="N", help="of a worker's computation (default: 1)")
    parser.add_argument(
        "--pairs",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="which pairs are worth labelling, such as min_side=100 max_words=40 (docs/self-training.md has all)",
    )


def run(args: argparse.Namespace) -> int:
    """Label; where labels and the report lie is the last line."""
    _check(args)
    from glip.pseudo.engine import label_all
    from glip.pseudo.report import draw_report, write_report
    from glip.pseudo.shards import find_shards
    from glip.pseudo.store import Store
    from glip.signals import ending_at_once

    entry = find_captions(args.captions, args.images, args.root)
    how, store = _how(args), Store(args.out, args.form)
    store.folder.mkdir(parents=True, exist_ok=True)
    main, failed = os.environ.get("RANK", "0") == "0", []
    with ending_at_once(), store.locked(enabled=main):
        store.begin(_manifest(how, entry, args.per_shard))
        shards = find_shards(entry, args.per_shard)
        try:
            failed = label_all(shards, how, args.out, engine=args.engine, workers=args.workers, say=print)
        finally:  # an interrupted run tells what it has done
            report = write_report(store, len(shards), failed)
        if main:
            page = draw_report(store, report)
            print(
                f"{report['kept']} of {report['pairs']} pairs labelled, {report['boxes']} boxes; labels in {args.out}, "
                f"what was dropped and why in {page.with_suffix('.json')} and {page}; next: glip select {args.out}"
            )
    if failed:
        print(f"{len(failed)} of {len(shards)} shards failed: mend them and run the same again", file=sys.stderr)
    return 2 if failed else 0


def find_captions(name: str, images: list[str], root: str | None) -> "SetConfig":
    """Where a set of captions lies, with full paths.

    Raises:
        ConfigError: neither a known set nor a path.
        ValueError: a set without captions or files.
    """
    from glip.data.catalog import data_root, find_set, guess_format

    entry = find_set(name, images=[str(Path(folder).absolute()) for folder in images], root=root)
    if entry.format == "world":
        raise ValueError(f"set {name!r} is drawn as needed: give captions with picture files")
    under = data_root(root)
    path = (under / entry.annotations).absolute()
    folders = tuple(str((under / folder).absolute()) for folder in entry.images)
    format = entry.format or guess_format(path)
    if format in ("coco", "lvis"):
        raise ValueError(f"set {name!r} has class names, not captions: train on it as it is")
    return replace(entry, annotations=str(path), images=folders, format=format)


def _check(args: argparse.Namespace) -> None:
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold} is outside [0, 1]: scores are probabilities, such as 0.1")
    for option in ("max_detections", "batch_size", "per_shard", "workers", "threads"):
        if getattr(args, option) < 1:
            raise ValueError(f"--{option.replace('_', '-')} {getattr(args, option)}: give 1 or more")
    if Path(args.out).is_file():
        raise ValueError(f"--out {args.out!r} is a file: give a folder, which is made if missing")


def _how(args: argparse.Namespace) -> "HowToLabel":
    from glip.pseudo.filters import PairRules
    from glip.pseudo.label import HowToLabel

    own = {part.name for part in fields(HowToLabel)} - {"pairs"}
    pairs = from_dict(PairRules, read_overrides(args.pairs), "pairs")
    return HowToLabel(**{name: getattr(args, name) for name in own}, pairs=pairs)


def _manifest(how: "HowToLabel", entry: "SetConfig", per_shard: int) -> dict[str, Any]:
    """What the labels depend on; on another device, or with another number of workers, the same run goes on."""
    from glip.model.weights import fingerprint, load_pretrained

    made = {key: value for key, value in asdict(how).items() if key not in ("device", "threads", "batch_size")}
    weights = fingerprint(load_pretrained(how.model).model.state_dict())[:16]
    images = list(entry.images)
    return {**made, "weights": weights, "captions": entry.annotations, "images": images, "per shard": per_shard}
