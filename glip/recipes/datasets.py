"""What ``glip data`` does: list datasets, check one, draw a sheet of samples, convert one to another format."""

import random
from collections.abc import Iterator
from pathlib import Path

from glip.config import SetConfig
from glip.data import writers
from glip.data.catalog import class_prompts, data_root, known_sets, missing_part, read_set
from glip.data.check import check
from glip.data.label_studio import interface_of, write_label_studio
from glip.data.sets import SampleSet
from glip.model.weights import ASSETS, BUNDLED
from glip.visualize import contact_sheet, save_image

_WRITERS = {
    "coco": writers.write_coco,
    "mdetr": writers.write_mdetr,
    "odvg": writers.write_odvg,
    "labels": writers.write_labels,
    "label-studio": write_label_studio,
}


def list_datasets(root: str | None) -> Iterator[str]:
    """A line for each dataset of the catalog: its format, and whether its files are present."""
    sets = known_sets(root)
    width = max(len(name) for name in sets)
    for name, config in sets.items():
        missing = missing_part(config, root)
        yield f"{name:<{width}}  {config.format or 'any':<9}  {f'missing {missing}' if missing else 'ready'}"
    yield f"data folder: {data_root(root).absolute()} (--root or GLIP_DATA sets it)"


def check_dataset(config: SetConfig, root: str | None, *, number: int, decode: bool) -> tuple[list[str], bool]:
    """Counts and problems of a dataset's first samples (0: all) as lines, and whether there are problems.

    Every image is decoded if ``decode``, else only its header.
    """
    found = _read_first(config, root, number)
    prompts = class_prompts(config, root, found.vocabulary)
    written = {name: prompt.text for name, prompt in prompts.items()}
    report = check(found, tokenizer=ASSETS / BUNDLED, written=written, decode=decode)
    return [f"{len(found.samples)} samples", *report.lines()], bool(report.problems)


def show_dataset(config: SetConfig, root: str | None, *, number: int, seed: int, out: Path) -> str:
    """Draw randomly chosen samples with their boxes and words on one sheet; gives a line about it."""
    samples = read_set(config, root).samples
    chosen = sorted(random.Random(seed).sample(range(len(samples)), min(number, len(samples))))
    save_image(contact_sheet([samples[index] for index in chosen]), out)
    return f"{out}: {len(chosen)} of {len(samples)} samples"


def convert_dataset(config: SetConfig, root: str | None, *, number: int, to: str, out: Path) -> Iterator[str]:
    """Write a dataset in another format; gives lines about what was written, skipped and lost."""
    found, annotations = _read_first(config, root, number), data_root(root) / config.annotations
    folders = [data_root(root) / folder for folder in config.images]
    folders.append(annotations if annotations.is_dir() else annotations.parent)  # where shards are
    lost = _WRITERS[to](found, out, folders)
    yield f"{out}: {len(found.samples)} samples as {to}; image names are relative to {folders[0]}"
    if to == "odvg" and found.vocabulary:
        yield f"{writers.label_map_of(out)}: its label map"
    if to == "label-studio":
        yield f"{interface_of(out)}: its labelling interface; serve {folders[0].absolute().parent} as the local root"
    if found.skipped:
        yield from ("skipped while reading:", *found.skipped.lines())
    if lost:
        yield from (f"not expressible in {to}:", *lost.lines())


def _read_first(config: SetConfig, root: str | None, number: int) -> SampleSet:
    """The first samples of a dataset; 0: all."""
    found = read_set(config, root)
    return found.select(range(min(number, len(found.samples)))) if number else found
