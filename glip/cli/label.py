"""``glip label MODEL CAPTIONS``: pseudo-label captioned images with a teacher model; run again to resume."""

import argparse
import sys
from pathlib import Path

from glip.cli.arguments import read_options
from glip.config import LabelConfig
from glip.console import counted


def run(args: argparse.Namespace) -> int:
    """Label; the last line says where labels and report are."""
    config, out = read_options(LabelConfig, args), Path(args.out)
    from glip.pseudo.label import find_captions
    from glip.pseudo.run import run_labelling
    from glip.signals import GracefulStop

    with GracefulStop(at_once="the finished shards are saved; run the same command again to label the others"):
        entry = find_captions(args.captions, args.images, args.root)
        report = run_labelling(entry, args.model, config, out, device=args.device)
    print(
        f"{report['kept']} of {counted(report['pairs'], 'pair')} labelled, {counted(report['boxes'], 'box')}; what was "
        f"skipped and why: {out / 'report.json'} and report.png; next: glip select {out}"
    )
    if report["failed"]:
        print(
            f"{counted(len(report['failed']), 'shard')} failed: repair and run the same command again", file=sys.stderr
        )
    return 2 if report["failed"] else 0
