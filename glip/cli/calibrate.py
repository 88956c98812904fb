"""``glip calibrate MODEL SET``: scores that say how often detections are right."""

import argparse

from glip.cli.arguments import read_options
from glip.config import EvaluateConfig


def run(args: argparse.Namespace) -> int:
    """Calibrate; the line says what changed."""
    config = read_options(EvaluateConfig, args)
    from glip.recipes.calibrate import calibrate

    found = calibrate(args.model, args.name, config, device=args.device)
    notes = f"; skipped: {found.tally}" if found.tally.counts else ""
    print(
        f"stored temperature {found.temperature:.3f} in {args.model}: expected calibration error {found.before:.4f} "
        f"before, {found.after:.4f} after, over {found.detections:,} detections{notes}"
    )
    return 0
