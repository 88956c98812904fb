"""``glip models``: the checkpoints that glip loads, as a table."""

import argparse


def run(args: argparse.Namespace) -> int:
    """Print what is known of them, or where their files are."""
    from glip.model.zoo import checkpoint_table

    print(*checkpoint_table(files=args.files), sep="\n")
    return 0
