"""``glip data list | check | show | convert``: which datasets there are, what is in one, what is wrong with it."""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from glip.config import Count, CountOrZero, SetConfig
from glip.console import counted, printable
from glip.data import catalog, writers
from glip.data.catalog import class_prompts, data_root, find_set, known_sets, missing_part, read_set, split_path
from glip.data.check import check
from glip.data.label_studio import interface_of
from glip.data.sets import SampleSet
from glip.files import exclusive
from glip.model.weights import ASSETS, BUNDLED
from glip.schema import parse
from glip.visualize import contact_sheet, save_image


def run(args: argparse.Namespace) -> int:
    """Print what was asked for; exit code 1 if a check finds problems."""
    if args.what == "list":
        print(*_listed(args.root), sep="\n")
        return 0
    parse(Count if args.what == "show" else CountOrZero, args.number, at="--number")
    images = [str(Path(folder).absolute()) for folder in args.images]
    config = find_set(args.name, images=images, format=args.format, root=args.root)
    found = read_set(config, args.root)
    if args.what == "show":
        number = min(args.number, len(found.samples))
        chosen = sorted(random.Random(args.seed).sample(range(len(found.samples)), number))
        save_image(contact_sheet([found.samples[index] for index in chosen]), args.out)
        print(f"{args.out}: {number} of {len(found.samples)} samples")
        return 0
    if args.number:
        found = found.select(range(min(args.number, len(found.samples))))
    if args.what == "convert":
        print(*_converted(found, config, args), sep="\n")
        return 0
    written = {name: prompt.text for name, prompt in class_prompts(config, args.root, found.vocabulary).items()}
    report = check(found, tokenizer=ASSETS / BUNDLED, written=written, decode=args.decode)
    print(f"{args.name}: {counted(len(found.samples), 'sample')}", *report.lines(), sep="\n")
    return 1 if report.problems else 0


def _listed(root: str | None) -> Iterator[str]:
    """A line for each dataset of the catalog: its format, and whether its files are present."""
    sets = {printable(name): config for name, config in known_sets(root).items()}
    width = max(len(name) for name in sets)
    for name, config in sets.items():
        missing = missing_part(config, root)
        yield f"{name:<{width}}  {config.format or 'any':<9}  {f'missing {printable(missing)}' if missing else 'ready'}"
    yield f"data folder: {data_root(root).absolute()} (--root or GLIP_DATA sets it)"


def _converted(found: SampleSet, config: SetConfig, args: argparse.Namespace) -> Iterator[str]:
    """Write a dataset in another format; gives lines about what was written, skipped and lost."""
    out, to, root = Path(args.out), args.to, data_root(args.root)
    annotations, folders = split_path(root / config.annotations)[0], [root / folder for folder in config.images]
    folders.append(annotations if annotations.is_dir() else annotations.parent)  # where shards are
    with exclusive(out, is_file=True):  # a new folder, too, is not made before it is whole
        lost = catalog.WRITERS[to](found, out, folders)
    linked = "images are links to where they are (cp -rL copies them with the folder)"
    how = linked if to in ("yolo", "voc") else f"image names are relative to {folders[0]}"
    yield f"{out}: {counted(len(found.samples), 'sample')} as {to}; {how}"
    if to == "odvg" and found.vocabulary:
        yield f"{writers.label_map_of(out)}: its label map"
    if to == "label-studio":
        yield f"{interface_of(out)}: its labelling interface; serve {folders[0].absolute().parent} as the local root"
    if found.skipped:
        yield from ("skipped while reading:", *found.skipped.lines())
    if lost:
        yield from (f"not expressible in {to}:", *lost.lines())
