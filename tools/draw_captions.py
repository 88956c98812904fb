"""Draw captioned images as people have them, images beside a list of captions, and apart from it the true boxes.

    python tools/draw_captions.py FOLDER [--count 2000] [--sides 112 176] [--first 0] [--most 9]

FOLDER/captions.jsonl is what a teacher gets (``glip label``); FOLDER/truth.jsonl has the same captions with the boxes
of their phrases (``glip select --ground-truth``). Beside other drawn sets give a ``--first`` that they do not reach.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from glip.data.sets import PackedSamples, SampleSet
from glip.data.world import Drawings, World
from glip.data.writers import write_labels
from glip.files import atomic_write


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--sides", type=int, nargs=2, default=(112, 176), metavar=("LEAST", "GREATEST"))
    parser.add_argument("--split", choices=("train", "seen", "novel"), default="train")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--most", type=int, default=9, choices=range(1, 10), help="things in an image at most")
    args = parser.parse_args()
    draw_captions(args.folder, World(args.split, 1.0, tuple(args.sides), most=args.most), args.first, args.count)


def draw_captions(folder: Path, world: World, first: int, count: int) -> None:
    """Save the images of seeds from ``first`` on, their captions, and the truth."""
    images, drawings, samples = folder / "images", Drawings(world), []
    images.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "captions.jsonl") as file:
        for seed in tqdm(range(first, first + count), unit="image"):
            sample = drawings[seed]
            assert isinstance(sample.image, Image.Image) and sample.prompt is not None
            path = images / f"{seed:08d}.jpg"
            sample.image.save(path, quality=92)
            file.write(json.dumps({"image": path.name, "caption": sample.prompt.caption}) + "\n")
            samples.append(replace(sample, image=path, size=sample.image.size))
    write_labels(SampleSet(PackedSamples(samples)), folder / "truth.jsonl", [images])


if __name__ == "__main__":
    main()
