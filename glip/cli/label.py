"""``glip label MODEL CAPTIONS`` or ``MODEL FOLDER --names NAMES``: label images with a teacher; run again to resume."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from glip.cli.arguments import CAPTIONED, read_options
from glip.config import LabelConfig
from glip.console import counted
from glip.errors import ConfigError

Row = dict[str, Any]
_NAMED, _CAPTIONED = ("format",), ("images", "root", *CAPTIONED)  # options that need --names, and those for captions


def run(args: argparse.Namespace) -> int:
    """Label; the last line says where labels and report are."""
    out, is_named = Path(args.out), args.names is not None
    unused = next((key for key in (_CAPTIONED if is_named else _NAMED) if getattr(args, key) not in (None, [])), "")
    if unused:
        use = "is for captions: leave it out with" if is_named else "needs"
        raise ConfigError(f"--{unused.replace('_', '-')} {use} --names")
    config = read_options(LabelConfig, args)
    from glip.model.zoo import say_limits
    from glip.pseudo.label import find_captions
    from glip.pseudo.run import run_labelling
    from glip.signals import GracefulStop

    say_limits(args.model)
    with GracefulStop(at_once="the finished shards are saved; run the same command again to label the others"):
        if is_named:
            report = _label_folder(args)
        else:
            captions = find_captions(args.captions, args.images, args.root)
            report = run_labelling(captions, args.model, config, args.out, device=args.device)
    boxes = "" if is_named else f", {counted(report['boxes'], 'box')}"
    print(
        f"{report['kept']} of {counted(report['pairs'], 'image' if is_named else 'pair')} labelled{boxes}; what was "
        f"skipped and why: {out / 'report.json'} and report.png{'' if is_named else f'; next: glip select {out}'}"
    )
    if report["failed"]:
        failed = counted(len(report["failed"]), "shard")
        print(f"{failed} failed: repair and run the same command again", file=sys.stderr)
    return 2 if report["failed"] else 0


def _label_folder(args: argparse.Namespace) -> Row:
    """Label by names; prints a table of the classes, and what was written."""
    from glip.evaluate.report import for_terminal, markdown_table
    from glip.pseudo.dataset import FILES, SHEET
    from glip.recipes.label_folder import OWN, label_folder

    usual = {key: value for key, value in vars(OWN).items() if getattr(args, key) is None}
    config = replace(read_options(LabelConfig, args, **usual), threshold=OWN.threshold)
    formats = args.format or ["labels"]
    report = label_folder(
        *(args.model, args.captions, args.names, args.out),
        threshold=args.threshold,
        formats=formats,
        config=config,
        device=args.device,
    )
    if "classes" in report:
        table = markdown_table([{"class": name, **row} for name, row in report["classes"].items()])
        print(for_terminal("\n".join(table)))
        print(f"{counted(report['images without a box'], 'image')} without a box; look at {Path(args.out, SHEET)}")
        print("written:", ", ".join(str(Path(args.out, FILES[form])) for form in formats))
    return report
