"""What ``glip data`` does: list datasets, check one, draw a sheet of samples, convert one to another format."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from glip.config import SetConfig
from glip.data import writers
from glip.data.catalog import data_root, known_sets, missing_part, read_set
from glip.data.check import Counts, Report, check
from glip.data.label_studio import interface_of, write_label_studio
from glip.data.sets import SampleSet, SkipCounter
from glip.experiment import read_yaml
from glip.model.weights import ASSETS, BUNDLED
from glip.structures import Sample
from glip.text.class_prompts import read_prompts
from glip.text.tokens import Tokenizer
from glip.visualize import contact_sheet, save_image

_RAREST = 5  # classes with the fewest boxes that are printed


def list_datasets(root: str | None) -> Iterator[str]:
    """A line for each dataset of the catalog: its format, and whether its files are present."""
    sets = known_sets(root)
    width = max(len(name) for name in sets)
    for name, config in sets.items():
        missing = missing_part(config, root)
        yield f"{name:<{width}}  {config.format or 'any':<9}  {f'missing {missing}' if missing else 'ready'}"
    yield f"data folder: {data_root(root).absolute()} (--root or GLIP_DATA sets it)"


def check_dataset(config: SetConfig, root: str | None, *, number: int, decode: bool) -> tuple[list[str], bool]:
    """Counts and problems of a dataset as lines, and whether there are problems.

    Args:
        config: which dataset.
        root: the data root.
        number: use only this many first samples; 0 for all.
        decode: decode every image, not only its header.
    """
    found = read_set(config, root)
    samples = _First(found.samples, number, "check")
    file = data_root(root) / config.prompts
    prompts = read_prompts(read_yaml(file), found.vocabulary) if config.prompts else {}
    written = {name: prompt.text for name, prompt in prompts.items()}
    report = check(
        replace(found, samples=samples), tokenizer=Tokenizer(ASSETS / BUNDLED), written=written, decode=decode
    )
    lines = [f"{len(samples)} samples", *(f"  {line}" for line in _count_lines(report.counts)), *_problem_lines(report)]
    return lines, bool(report.problems)


def show_dataset(config: SetConfig, root: str | None, *, number: int, seed: int, out: Path) -> str:
    """Draw randomly chosen samples with their boxes and words on one sheet; gives a line about it."""
    samples = read_set(config, root).samples
    chosen = sorted(random.Random(seed).sample(range(len(samples)), min(number, len(samples))))
    save_image(contact_sheet([samples[index] for index in chosen]), out)
    return f"{out}: {len(chosen)} of {len(samples)} samples"


def convert_dataset(config: SetConfig, root: str | None, *, number: int, to: str, out: Path) -> Iterator[str]:
    """Write a dataset in another format; gives lines about what was written, skipped and lost."""
    found, annotations = read_set(config, root), data_root(root) / config.annotations
    folders = [data_root(root) / folder for folder in config.images]
    folders.append(annotations if annotations.is_dir() else annotations.parent)  # where shards are
    samples = _First(found.samples, number, "convert")
    lost = _write(replace(found, samples=samples), out, folders, to)
    yield f"{out}: {len(samples)} samples as {to}; image names are relative to {folders[0]}"
    if to == "odvg" and found.vocabulary:
        yield f"{writers.label_map_of(out)}: its label map"
    if to == "label-studio":
        yield f"{interface_of(out)}: its labelling interface; serve {folders[0].absolute().parent} as the local root"
    if found.skipped:
        yield from ("skipped while reading:", *_places(found.skipped))
    if lost:
        yield from (f"not expressible in {to}:", *_places(lost))


def _write(found: SampleSet, out: Path, folders: Sequence[Path], to: str) -> SkipCounter:
    write = {
        "coco": writers.write_coco,
        "mdetr": writers.write_mdetr,
        "odvg": writers.write_odvg,
        "labels": writers.write_labels,
        "label-studio": write_label_studio,
    }[to]
    return write(found, out, folders)


def _count_lines(counts: Counts) -> Iterator[str]:
    """The counts; what a kind of dataset does not have is not mentioned."""
    yield f"images    {counts.images} ({counts.without_boxes} of {counts.samples} samples without boxes)"
    if counts.boxes:
        small, medium, large = counts.areas
        yield f"boxes     {counts.boxes}: {small} small, {medium} medium, {large} large; {counts.crowd} crowd"
    if counts.words:
        words = counts.words
        yield (
            f"captions  {words.total()}: {min(words)} to {max(words)} words, median {_median(words)}; "
            f"{counts.phrases} phrases"
        )
    if counts.per_name:
        times = Counter(counts.per_name.values())
        yield f"classes   {len(counts.per_name)}: {min(times)} to {max(times)} boxes each, median {_median(times)}"
        rarest = sorted(counts.per_name.items(), key=lambda item: (item[1], item[0]))[:_RAREST]
        yield f"rarest    {', '.join(f'{name} {boxes}' for name, boxes in rarest)}"


def _median(times: Counter[int]) -> int:
    """The lower median of values that each occur some times."""
    return sorted(times.elements())[(times.total() - 1) // 2]


def _problem_lines(report: Report) -> Iterator[str]:
    for kind, counter in (("remarks", report.remarks), ("problems", report.problems)):
        if counter:
            yield f"{kind}:"
            yield from _places(counter)
    if report.problems.counts.get("image that is not there", 0) > report.counts.images / 2:
        yield "most images are missing: give their folder with --images, or the data folder with --root"
    if not report.problems:
        yield "no problems"


def _places(counter: SkipCounter) -> Iterator[str]:
    for reason, count in counter.counts.items():
        yield f"  {count:>6} x {reason}"
        for place in counter.places[reason]:
            yield f"           {' '.join(place.split())}"


class _First(Sequence[Sample]):
    """The first samples; iterating shows a progress bar on a terminal."""

    def __init__(self, samples: Sequence[Sample], number: int, title: str) -> None:
        self._samples, self._title = samples, title
        self._count = min(number or len(samples), len(samples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self._samples[range(self._count)[index]]

    def __iter__(self) -> Iterator[Sample]:
        bar = tqdm(range(self._count), desc=self._title, unit="sample", disable=None, delay=1)
        return (self._samples[index] for index in bar)
