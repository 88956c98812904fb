"""``glip detect IMAGE... "a red bus. a cyclist"``: detect objects described by text, draw, print and write them."""

import argparse
import sys

from glip.cli.arguments import read_options
from glip.errors import ConfigError
from glip.recipes.detect_config import DetectConfig


def run(args: argparse.Namespace) -> int:
    """Detect in all images and videos; those that cannot be read are reported, and make the exit code 2."""
    config = read_options(DetectConfig, args)
    other = next((form for form in config.format if form != "jsonl"), None)
    if config.out == "-" and other:
        raise ConfigError(f"--out '-' prints JSON lines and --format is {other}: give --out a folder")
    from glip.data.video import is_video
    from glip.detector import Detector
    from glip.integrations.sam import Segmenter
    from glip.model.zoo import say_limits
    from glip.recipes.detect_files import check_fits, detect_files, find_images, split_arguments
    from glip.structures import Prompt
    from glip.text.names import split_names

    prompt, instead = None, "--task" if args.task else ""  # the classes of the task
    if args.caption is not None:
        prompt, instead = Prompt.from_caption(args.caption), "--caption"
    args.images, texts = split_arguments(args.images, instead)
    if not instead:
        prompt = Prompt.from_names([name for text in texts for name in split_names(text)])
    sources = find_images(args.images, config)
    check_fits(sources, config)
    model = args.model or "glip-nano"
    detector = Detector.from_pretrained(model, task=args.task, device=args.device, dtype=config.dtype)
    detector = detector.with_inference(compete=config.compete)
    if not (args.model or args.task or config.quiet):
        say_limits(model)
    segment = Segmenter.from_pretrained(config.masks, device=args.device) if config.masks else None
    unreadable = detect_files(detector, sources, prompt, config, segment)
    if unreadable:
        what = "files could not be read to the end" if any(map(is_video, sources)) else "images could not be read"
        print(f"{unreadable} of {len(sources)} {what}", file=sys.stderr)
    return 2 if unreadable else 0
