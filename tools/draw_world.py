"""Draw synthetic scenes and write them as a dataset: images with class names, and the same images with captions.

    python tools/draw_world.py OUT --images 48000 [--split train] [--first 0] [--sides 200 360] [--format jpg]

OUT/images has the images. OUT/names.jsonl has boxes with class names, each image with a list of its own of present and
absent names (format labels); OUT/grounding.json has boxes with the phrases of a caption (format mdetr); and
OUT/captions.jsonl has the captions alone, for ``glip label`` and ``glip self-train``. Image i is drawn from seed
``--first`` + i. docs/data.md has the commands for the datasets of the shipped configs.
"""

import argparse
import pickle
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path

from drawn_world.scenes import Split, World, draw_both, draw_sample
from PIL import Image
from tqdm import tqdm

from glip.data.sets import SampleSet
from glip.data.writers import write_labels, write_mdetr
from glip.files import write_jsonl
from glip.structures import Sample

QUALITY = 92  # of JPEG files
AT_ONCE = 32  # scenes a worker draws before it reports
NAMES, GROUNDING, CAPTIONS = "names.jsonl", "grounding.json", "captions.jsonl"


@dataclass(frozen=True)
class Files:
    """How images become files, and what is written about each: names and a caption, or one of the two."""

    images: Path
    format: str = "jpg"
    both: bool = True


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--images", type=int, default=400, metavar="N", help="number of images (default: 400)")
    parser.add_argument("--split", choices=typing.get_args(Split), default="train", help="default: train")
    parser.add_argument(
        "--first", type=int, default=0, metavar="SEED", help="seed of the first image; each image adds one (default: 0)"
    )
    parser.add_argument(
        "--sides", type=int, nargs=2, default=(200, 360), metavar=("MIN", "MAX"), help="width and height, in pixels"
    )
    parser.add_argument("--most", type=int, default=9, choices=range(1, 10), help="maximum things in an image")
    parser.add_argument(
        "--captioned",
        type=float,
        metavar="SHARE",
        help="share of the images that have a caption instead of class names (default: every image has both)",
    )
    parser.add_argument(
        "--plain", action="store_true", help="class names without articles and synonyms, for evaluation"
    )
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="image files (default: jpg)")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw (default: 2)")
    args = parser.parse_args()
    if min(args.sides) < 64:
        parser.error(f"--sides {args.sides[0]} {args.sides[1]}: scenes need sides of at least 64 pixels")
    world = World(args.split, args.captioned or 0.0, (min(args.sides), max(args.sides)), args.plain, args.most)
    both = args.captioned is None
    write_world(args.out, world, args.images, first=args.first, both=both, format=args.format, workers=args.workers)
    written = [file for file in (NAMES, GROUNDING, CAPTIONS) if (args.out / file).is_file()]
    print(f"{args.out}: {args.images} images, {', '.join(written)}")


def write_world(
    out: Path,
    world: World,
    count: int,
    *,
    first: int = 0,
    both: bool = True,
    format: str = "jpg",
    workers: int = 0,
) -> None:
    """Draw the scenes of seeds ``first``, ``first`` + 1, ... and write them as a dataset.

    Annotation files are written last, so a folder that has them is complete.

    Args:
        out: folder of the dataset.
        world: which scenes.
        count: number of images.
        first: seed of the first image.
        both: whether each image has class names and a caption; else ``world.captioned`` decides which of the two.
        format: jpg or png.
        workers: processes that draw; 0 draws in this one.
    """
    files = Files(out / "images", format, both)
    files.images.mkdir(parents=True, exist_ok=True)
    for file in (NAMES, GROUNDING, CAPTIONS):
        (out / file).unlink(missing_ok=True)
    named, captioned = list[Sample](), list[Sample]()
    drawn = _drawn(files, world, range(first, first + count), workers)
    for sample in tqdm(drawn, total=count * (1 + both), unit="sample", disable=None):
        (captioned if sample.prompt else named).append(sample)
    if named:
        write_labels(SampleSet(named), out / NAMES, [files.images])
    if captioned:
        write_mdetr(SampleSet(captioned), out / GROUNDING, [files.images])
        write_jsonl(out / CAPTIONS, [_caption_row(sample) for sample in captioned])


def _drawn(files: Files, world: World, seeds: range, workers: int) -> Iterator[Sample]:
    draw = partial(draw_files, files, world)
    if not workers:
        for pickled in map(draw, seeds):
            yield from pickle.loads(pickled)
        return
    with Pool(workers) as pool:
        for pickled in pool.imap(draw, seeds, chunksize=AT_ONCE):
            yield from pickle.loads(pickled)


def draw_files(files: Files, world: World, seed: int) -> bytes:
    """Draw and save one image; its samples with the file in place of the pixels.

    They are pickled here, since torch would pass each tensor between processes by a file descriptor of its own.
    """
    samples = draw_both(seed, world) if files.both else (draw_sample(seed, world),)
    file = files.images / f"{seed:08d}.{files.format}"
    image = samples[0].image
    assert isinstance(image, Image.Image)
    image.save(file, quality=QUALITY)
    return pickle.dumps([replace(sample, image=file) for sample in samples])


def _caption_row(sample: Sample) -> dict[str, str]:
    assert isinstance(sample.image, Path) and sample.prompt is not None
    return {"image": sample.image.name, "caption": sample.prompt.caption}


if __name__ == "__main__":
    main()
