"""``glip detect IMAGE... "a red bus. a cyclist"``: detect objects described by text, draw and print them."""

import argparse
import glob
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from glip.cli.arguments import read_options
from glip.config import DetectConfig
from glip.errors import ConfigError

if TYPE_CHECKING:
    from glip.structures import Prompt


def run(args: argparse.Namespace) -> int:
    """Detect in all images; those that cannot be read are reported, and make the exit code 2."""
    config = read_options(DetectConfig, args)
    if config.json != "-" and Path(config.out).is_file():
        raise ConfigError(f"--out {config.out!r} is a file: give a folder, which is made if missing")
    if config.json and Path(config.json).is_dir():
        raise ConfigError(f"--json {config.json!r} is a folder: give a file, or '-' to print the lines")
    prompt = read_prompt(args)
    from glip.detector import Detector
    from glip.recipes.detect_files import detect_files, find_images

    paths = find_images(args.images)
    detector = Detector.from_pretrained(args.model, task=args.task, device=args.device)
    unreadable = detect_files(detector, paths, prompt, config)
    if unreadable:
        print(f"{unreadable} of {len(paths)} images could not be read", file=sys.stderr)
    return 2 if unreadable else 0


def read_prompt(args: argparse.Namespace) -> "Prompt | None":
    """The caption, or the words after the images, which are taken off them; None for the classes of a task.

    Raises:
        ConfigError: no prompt, or a prompt besides a caption or a task.
    """
    from glip.structures import Prompt

    if args.caption is None and not args.task:
        if len(args.images) == 1:
            raise ConfigError(
                "no prompt: give words after the images, such as 'a red bus. a cyclist', --caption or --task"
            )
        return Prompt.parse(args.images.pop())
    last = args.images[-1]
    may_be_images = glob.has_magic(last) or Path(last).exists() or re.search(r"\.\w+$", last)
    if len(args.images) > 1 and not may_be_images:
        option = "--task" if args.caption is None else "--caption"
        raise ConfigError(f"prompt {last!r} besides {option}: give one of the two")
    return None if args.caption is None else Prompt.from_caption(args.caption)
