"""``glip data list | check | show | convert``: which datasets there are, what is in one, what is wrong with it."""

import argparse
from pathlib import Path

from glip.config import Count, CountOrZero
from glip.schema import parse


def run(args: argparse.Namespace) -> int:
    """Print what was asked for; exit code 1 if a check finds problems."""
    from glip.data.catalog import find_set
    from glip.recipes.datasets import check_dataset, convert_dataset, list_datasets, show_dataset

    if args.what == "list":
        print(*list_datasets(args.root), sep="\n")
        return 0
    parse(Count if args.what == "show" else CountOrZero, args.number, at="--number")
    images = [str(Path(folder).absolute()) for folder in args.images]
    config = find_set(args.name, images=images, format=args.format, root=args.root)
    if args.what == "check":
        lines, problems = check_dataset(config, args.root, number=args.number, decode=args.decode)
        print(f"{args.name}: {lines[0]}", *lines[1:], sep="\n")
        return 1 if problems else 0
    if args.what == "show":
        print(show_dataset(config, args.root, number=args.number, seed=args.seed, out=Path(args.out)))
    else:
        print(*convert_dataset(config, args.root, number=args.number, to=args.to, out=Path(args.out)), sep="\n")
    return 0
