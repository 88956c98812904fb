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
from contextlib import nullcontext
from dataclasses import replace
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


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to write")
    add("--images", type=int, default=400, metavar="N", help="number of images (default: 400)")
    add("--split", choices=typing.get_args(Split), default="train", help="default: train")
    add("--first", type=int, default=0, metavar="SEED", help="seed of the first image; each adds one (default: 0)")
    add("--sides", type=int, nargs=2, default=(200, 360), metavar=("MIN", "MAX"), help="width and height, in pixels")
    add("--most", type=int, default=9, choices=range(1, 10), help="maximum things in an image")
    share = "share of the images with a caption instead of class names (default: every image has both)"
    add("--captioned", type=float, metavar="SHARE", help=share)
    add("--plain", action="store_true", help="class names without articles and synonyms, for evaluation")
    add("--format", choices=("jpg", "png"), default="jpg", help="image files (default: jpg)")
    add("--workers", type=int, default=2, help="processes that draw (default: 2)")
    args = parser.parse_args()
    if min(args.sides) < 64:
        parser.error(f"--sides {args.sides[0]} {args.sides[1]}: scenes need sides of at least 64 pixels")
    world = World(args.split, args.captioned or 0.0, (min(args.sides), max(args.sides)), args.plain, args.most)
    both = args.captioned is None
    write_world(args.out, world, args.images, first=args.first, both=both, format=args.format, workers=args.workers)
    written = [file for file in (NAMES, GROUNDING, CAPTIONS) if (args.out / file).is_file()]
    print(f"{args.out}: {args.images} images, {', '.join(written)}")


def write_world(
    out: Path, world: World, count: int, *, first: int = 0, both: bool = True, format: str = "jpg", workers: int = 0
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
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in (NAMES, GROUNDING, CAPTIONS):
        (out / name).unlink(missing_ok=True)
    named, captioned = list[Sample](), list[Sample]()
    draw, seeds = partial(draw_files, images, format, both, world), range(first, first + count)
    with Pool(workers) if workers else nullcontext() as pool:
        drawn = pool.imap(draw, seeds, chunksize=AT_ONCE) if pool else map(draw, seeds)
        for pickled in tqdm(drawn, total=count, unit="image", disable=None):
            for sample in pickle.loads(pickled):  # from our own processes  # nosec B301
                (captioned if sample.prompt else named).append(sample)
    if named:
        write_labels(SampleSet(named), out / NAMES, [images])
    if captioned:
        write_mdetr(SampleSet(captioned), out / GROUNDING, [images])
        write_jsonl(out / CAPTIONS, [_caption_row(sample) for sample in captioned])


def _caption_row(sample: Sample) -> dict[str, str]:
    assert isinstance(sample.image, Path) and sample.prompt is not None
    return {"image": sample.image.name, "caption": sample.prompt.caption}


def draw_files(folder: Path, format: str, both: bool, world: World, seed: int) -> bytes:
    """Draw and save one image; its samples with the file in place of the pixels.

    They are pickled here, since torch would pass each tensor between processes by a file descriptor of its own.
    """
    samples = draw_both(seed, world) if both else (draw_sample(seed, world),)
    file, image = folder / f"{seed:08d}.{format}", samples[0].image
    assert isinstance(image, Image.Image)
    image.save(file, quality=QUALITY)
    return pickle.dumps([replace(sample, image=file) for sample in samples])


if __name__ == "__main__":
    main()
