"""``glip select LABELS``: filter pseudo-labels; the result is an ordinary dataset to train on."""

import argparse
import sys
from pathlib import Path

from glip.cli.arguments import read_options
from glip.config import SelectConfig
from glip.console import counted


def run(args: argparse.Namespace) -> int:
    """Select; the last line names the written file."""
    config = read_options(SelectConfig, args)
    from glip.files import exclusive
    from glip.pseudo.select import select
    from glip.pseudo.store import image_folders, unfinished

    labels = Path(args.labels)
    images = image_folders(labels)
    if missing := unfinished(labels):
        print(f"notice: {missing}", file=sys.stderr)
    out = Path(args.out or labels / "selected.jsonl")
    with exclusive(out, is_file=True):
        if args.ground_truth:
            _measure(args)
        found = select(labels, out, config)
    for what, total, one in (("pairs", found.pairs, "pair"), ("boxes", found.boxes, "box")):
        reasons = ", ".join(f"{number} {reason}" for reason, number in getattr(found, f"dropped_{what}").items())
        dropped = f"; dropped: {reasons}" if reasons else ""
        print(f"{getattr(found, f'kept_{what}')} of {counted(total, one)} kept{dropped}")
    folders = " ".join(f"--images {folder}" for folder in images)
    print(f"selected labels in {out}; train on them with: glip train CONFIG --data {out} {folders}")
    return 0


def _measure(args: argparse.Namespace) -> None:
    """Print and draw precision and recall of the labels over the score threshold."""
    from glip.data.catalog import find_set, read_set
    from glip.pseudo.select import draw_quality, quality_table, score_labels
    from glip.pseudo.store import read_rows

    labels, folders = Path(args.labels), [str(Path(folder).absolute()) for folder in args.images]
    entry = find_set(args.ground_truth, images=folders, root=args.root)
    ground_truth = read_set(entry, args.root, to_score=True).samples
    quality = score_labels(read_rows(labels), ground_truth, args.held_out_words)
    draw_quality(quality, labels / "quality.png")
    print(f"{quality_table(quality)}\ndrawn in {labels / 'quality.png'}")
