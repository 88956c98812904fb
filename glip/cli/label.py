"""``glip label MODEL CAPTIONS``: pseudo-label captioned images with a teacher model; run again to resume."""

import argparse
import sys
from pathlib import Path

from glip.cli.arguments import add_options, read_options
from glip.config import LabelConfig
from glip.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="the teacher: a model name or folder")
    add_captions(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder; each shard becomes one file")
    add_options(parser, LabelConfig, "labelling")


def add_captions(parser: argparse.ArgumentParser) -> None:
    """Declare the captions and where to compute; ``glip self-train`` has the same."""
    parser.add_argument("captions", help="a dataset, a file (jsonl, json, csv, tsv, tar) or a folder of such files")
    parser.add_argument("--images", action="append", default=[], metavar="DIR", help="image folder; may be repeated")
    parser.add_argument("--root", metavar="DIR", help="data root (default: environment variable GLIP_DATA, else .)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if available)")


def run(args: argparse.Namespace) -> int:
    """Label; the last line says where labels and report are."""
    config, out = read_options(LabelConfig, args), Path(args.out)
    if out.is_file():
        raise ConfigError(f"--out: {args.out!r} is a file. Give a folder; it is created if missing.")
    from glip.pseudo.run import run_labelling
    from glip.pseudo.shards import find_captions
    from glip.signals import ending_at_once

    with ending_at_once():
        entry = find_captions(args.captions, args.images, args.root)
        report = run_labelling(entry, args.model, config, out, device=args.device)
    print(
        f"{report['kept']} of {report['pairs']} pairs labelled, {report['boxes']} boxes; what was skipped and why: "
        f"{out / 'report.json'} and report.png; next: glip select {out}"
    )
    if report["failed"]:
        print(f"{len(report['failed'])} shards failed: repair them and run the same command again", file=sys.stderr)
    return 2 if report["failed"] else 0
