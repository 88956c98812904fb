"""``glip data list | check | show | convert``: what sets there are, what is in one, what is wrong with it."""

import argparse
import random
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from glip.config import Format, SetConfig
from glip.errors import ConfigError

if TYPE_CHECKING:
    from glip.data.check import Counts, Report
    from glip.data.sets import SampleSet, SkipCounter
    from glip.structures import Sample

_DRAWN = 200  # images of a set that is drawn without end
_RAREST = 5  # names with the fewest boxes that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's own verbs and their arguments."""
    verbs = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    listing = verbs.add_parser("list", help="the known sets, and whether their files are there")
    _add_root(listing)
    check = _add_set(verbs.add_parser("check", help="count what is in a set and name what is wrong (exit code 1)"))
    check.add_argument("--decode", action="store_true", help="read every image whole, not only its header")
    check.add_argument("--number", type=int, default=0, metavar="N", help="only the first N samples")
    show = _add_set(verbs.add_parser("show", help="draw samples with their boxes and words on one sheet"))
    show.add_argument("--out", default="sheet.png", metavar="FILE", help="the image to write (default: sheet.png)")
    show.add_argument("--number", type=int, default=16, metavar="N", help="how many samples (default: 16)")
    show.add_argument("--seed", type=int, default=0, help="which samples (default: 0)")
    convert = _add_set(verbs.add_parser("convert", help="write a set in another format"))
    convert.add_argument("out", metavar="OUT", help="the file to write; drawn images go to the folder images beside")
    targets = ("coco", "mdetr", "odvg", "labels", "label-studio")
    convert.add_argument("--to", required=True, choices=targets, help="the format")
    convert.add_argument("--number", type=int, default=0, metavar="N", help="only the first N samples")


def _add_set(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("name", metavar="NAME", help="a set of datasets.yaml (glip data list), or a file or folder")
    parser.add_argument(
        "--images", action="append", default=[], metavar="DIR", help="where its images are; may be repeated"
    )
    parser.add_argument("--format", choices=typing.get_args(Format), help="how it is written (default: told from it)")
    _add_root(parser)
    return parser


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", default=None, metavar="DIR", help="the data folder (default: GLIP_DATA, else here)")


def run(args: argparse.Namespace) -> int:
    """Do what is asked; 1 if a check finds problems."""
    if args.what == "list":
        return _list(args.root)
    from glip.data.catalog import find_set, read_set

    least = 1 if args.what == "show" else 0
    if args.number < least:
        raise ConfigError(f"--number {args.number}: give how many samples, such as 16")
    images = [str(Path(folder).absolute()) for folder in args.images]
    config = find_set(args.name, images=images, format=args.format, root=args.root)
    samples = read_set(config, args.root)
    match args.what:
        case "check":
            return _check(args, config, samples)
        case "show":
            return _show(args, samples)
        case _:
            return _convert(args, config, samples)


# ---- list


def _list(root: str | None) -> int:
    from glip.data.catalog import data_root, known_sets, missing_part

    sets = known_sets(root)
    width = max(len(name) for name in sets)
    for name, config in sets.items():
        missing = missing_part(config, root)
        drawn = f"drawn, {config.count} images" if config.count else "drawn, without end"
        state = drawn if config.format == "world" else f"no {missing}" if missing else "ready"
        print(f"{name:<{width}}  {config.format or 'any':<9}  {state}")
    print(f"data root: {data_root(root).absolute()} (--root or GLIP_DATA sets it)")
    return 0


# ---- check


def _check(args: argparse.Namespace, config: SetConfig, samples: "SampleSet") -> int:
    from glip.data.catalog import data_root
    from glip.data.check import check
    from glip.experiment import read_yaml
    from glip.model.weights import ASSETS, BUNDLED
    from glip.text.class_prompts import read_prompts
    from glip.text.tokens import Tokenizer

    chosen = _Chosen(samples.samples, _count(args, config, len(samples.samples)), "check")
    tokenizer = Tokenizer(ASSETS / BUNDLED)
    file = data_root(args.root) / config.prompts
    prompts = read_prompts(read_yaml(file), samples.vocabulary) if config.prompts else {}
    written = {name: prompt.text for name, prompt in prompts.items()}
    report = check(replace(samples, samples=chosen), tokenizer=tokenizer, written=written, decode=args.decode)
    print(f"{args.name}: {len(chosen)} samples")
    for line in _counted(report.counts):
        print(f"  {line}")
    for line in _found(report):
        print(line)
    return 1 if report.problems else 0


def _counted(counts: "Counts") -> Iterator[str]:
    """The counts as lines; what a kind of set does not have is not mentioned."""
    yield f"images  {counts.images} ({counts.without_boxes} of {counts.samples} samples without boxes)"
    if counts.boxes:
        small, medium, large = counts.areas
        yield f"boxes     {counts.boxes}: {small} small, {medium} medium, {large} large; {counts.crowd} mark a crowd"
    if counts.words:
        words = counts.words
        yield (
            f"captions  {words.total()}: {min(words)} to {max(words)} words, median {_median(words)}; "
            f"{counts.phrases} phrases"
        )
    if counts.per_name:
        times = Counter(counts.per_name.values())
        yield f"names     {len(counts.per_name)}: {min(times)} to {max(times)} boxes each, median {_median(times)}"
        rarest = sorted(counts.per_name.items(), key=lambda item: (item[1], item[0]))[:_RAREST]
        yield f"rarest    {', '.join(f'{name} {boxes}' for name, boxes in rarest)}"


def _median(times: Counter[int]) -> int:
    """The lower median of values that each occur some times."""
    half, passed = (times.total() + 1) // 2, 0
    for value in sorted(times):
        passed += times[value]
        if passed >= half:
            return value
    return 0


def _found(report: "Report") -> Iterator[str]:
    for kind, tally in (("remarks", report.remarks), ("problems", report.problems)):
        if tally:
            yield f"{kind}:"
            yield from _places(tally)
    missing = report.problems.counts.get("image that is not there", 0)
    if missing > report.counts.images / 2:
        yield "most images are not there: give their folder with --images, or the data root with --root"
    if not report.problems:
        yield "no problems"


def _places(tally: "SkipCounter") -> Iterator[str]:
    for reason, count in tally.counts.items():
        yield f"  {count:>6} x {reason}"
        for place in tally.places[reason]:
            yield f"           {' '.join(place.split())}"


# ---- show


def _show(args: argparse.Namespace, samples: "SampleSet") -> int:
    from glip.visualize import contact_sheet, save_image

    total = len(samples.samples)
    chosen = sorted(random.Random(args.seed).sample(range(total), min(args.number, total)))
    save_image(contact_sheet([samples.samples[index] for index in chosen]), args.out)
    print(f"{args.out}: {len(chosen)} of {total} samples of {args.name}")
    return 0


# ---- convert


def _convert(args: argparse.Namespace, config: SetConfig, samples: "SampleSet") -> int:
    from glip.data import writers
    from glip.data.catalog import data_root
    from glip.data.label_studio import interface_of, write_label_studio

    out, root = Path(args.out), data_root(args.root)
    count = _count(args, config, len(samples.samples))
    if config.format == "world":
        folders = [out.parent / "images"]
    else:
        annotations = root / config.annotations
        folders = [root / folder for folder in config.images]
        folders.append(annotations if annotations.is_dir() else annotations.parent)  # where shards lie
    chosen = _Chosen(samples.samples, count, "convert", lambda sample, index: _with_file(sample, index, out))
    write = {
        "coco": writers.write_coco,
        "mdetr": writers.write_mdetr,
        "odvg": writers.write_odvg,
        "labels": writers.write_labels,
        "label-studio": write_label_studio,
    }[args.to]
    lost = write(replace(samples, samples=chosen), out, folders)
    print(f"{out}: {count} samples of {args.name} as {args.to}; image names are relative to {folders[0]}")
    if args.to == "odvg" and samples.vocabulary:
        print(f"{writers.label_map_of(out)}: its label map")
    if args.to == "label-studio":
        print(f"{interface_of(out)}: its labelling interface; serve {folders[0].absolute().parent} as the local root")
    if samples.skipped:
        print("left out when read:", *_places(samples.skipped), sep="\n")
    if lost:
        print(f"what {args.to} cannot say:", *_places(lost), sep="\n")
    return 0


def _with_file(sample: "Sample", index: int, out: Path) -> "Sample":
    """A drawn image is saved beside the file that names it."""
    from PIL import Image

    from glip.visualize import save_image

    if not isinstance(sample.image, Image.Image):
        return sample
    file = out.parent / "images" / f"{out.stem}_{index:06d}.png"
    save_image(sample.image, file)
    return replace(sample, image=file, size=sample.image.size)


# ---- the samples that are gone through


class _Chosen(Sequence["Sample"]):
    """The first so many samples, each prepared when its turn comes; going through them shows a bar on a terminal."""

    def __init__(
        self,
        samples: "Sequence[Sample]",
        count: int,
        what: str,
        prepare: "Callable[[Sample, int], Sample]" = lambda sample, _: sample,
    ) -> None:
        self._samples, self._count, self._what, self._prepare = samples, count, what, prepare

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> "Sample":  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(f"sample {index} of {self._count}")
        return self._prepare(self._samples[index], index)

    def __iter__(self) -> "Iterator[Sample]":
        from tqdm import tqdm

        for index in tqdm(range(self._count), desc=self._what, unit="sample", disable=None, delay=1):
            yield self[index]


def _count(args: argparse.Namespace, config: SetConfig, total: int) -> int:
    """How many samples to go through; a set that is drawn without end has to end somewhere."""
    endless = config.format == "world" and not config.count
    if endless and not args.number:
        print(f"{args.name} is drawn without end: the first {_DRAWN} (--number says how many)")
    return min(total, args.number or (_DRAWN if endless else total))
