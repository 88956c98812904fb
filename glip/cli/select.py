"""``glip select LABELS``: which boxes of a teacher to believe; what it writes is an ordinary set to train on."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("labels", help="a folder that glip label has written")
    parser.add_argument("--out", metavar="FILE", help="the label file to write (default: LABELS/selected.jsonl)")
    parser.add_argument(
        "--rules",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="such as box=0.3 image=0.5 min_side=4 max_area=0.95 nms=0.6 nms_across=0.9 per_phrase=20",
    )
    parser.add_argument(
        "--ground-truth", metavar="SET", help="a set with true boxes of these captions: precision and recall"
    )
    parser.add_argument(
        "--images", action="append", default=[], metavar="DIR", help="where images of --ground-truth are"
    )
    parser.add_argument("--root", default=None, metavar="DIR", help="the data root (default: GLIP_DATA, else here)")
    parser.add_argument("--unseen", nargs="+", default=[], metavar="WORD", help="words that the teacher never heard")


def run(args: argparse.Namespace) -> int:
    """Select; the written file is the last line."""
    from glip.experiment import read_overrides
    from glip.files import atomic_write
    from glip.pseudo.select import SelectRules, select
    from glip.pseudo.store import read_manifest
    from glip.schema import parse

    rules = parse(SelectRules, read_overrides(args.rules), at="rules")
    images = read_manifest(args.labels)["images"]
    if args.ground_truth:
        _examine(args)
    out = Path(args.out or Path(args.labels) / "selected.jsonl")
    found = select(args.labels, out, rules).as_dict()
    with atomic_write(out.with_suffix(".report.json")) as file:
        json.dump({"rules": rules.__dict__, **found}, file, indent=1)
    for what in ("boxes", "pairs"):
        reasons = ", ".join(f"{count} {reason}" for reason, count in found[f"{what} dropped"].items() if count)
        print(f"{found[f'kept {what}']} of {found[what]} {what} kept" + (f"; dropped: {reasons}" if reasons else ""))
    folders = " ".join(f"--images {folder}" for folder in images)
    print(f"selected labels in {out}; train on them with: glip train CONFIG --data {out} {folders}")
    return 0


def _examine(args: argparse.Namespace) -> None:
    """Print and draw how right the labels are, over thresholds."""
    from glip.data.catalog import find_set, read_set
    from glip.pseudo.quality import draw_quality, quality_table, score_labels
    from glip.pseudo.store import read_rows

    entry = find_set(args.ground_truth, images=[str(Path(folder).absolute()) for folder in args.images], root=args.root)
    quality = score_labels(read_rows(args.labels), read_set(entry, args.root, to_score=True).samples, args.unseen)
    path = Path(args.labels) / "quality.png"
    draw_quality(quality, path)
    print(quality_table(quality))
    print(f"drawn in {path}")
