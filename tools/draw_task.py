"""A drawn task whose words nobody knows: held-out looks under invented names, as a COCO set with three splits.

    python tools/draw_task.py DATA/drawn_words [--images 160 40 80] [--seed 0]

Each name stands for a pair of colour and kind that the drawn world's training never shows (docs/claims.md). Beside
things of the task each image has others that share the kind or the colour of one, so that both must be learned.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from drawn_world.icons import COLOURS, KINDS
from drawn_world.scenes import Thing, draw_scene
from drawn_world.words import is_novel

WORDS = ("blicket", "dax", "fep", "gorp", "kiki", "modi", "toma", "wug")
SPLITS = ("train", "val", "test")
SIDES, THINGS, SIZE = (160, 221), (3, 6), (36, 72)  # pixels, things in an image, pixels of a thing


def main() -> None:
    """Draw the three splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs=3, default=(160, 40, 80), metavar="N", help="train, val, test")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    looks = choose_looks(np.random.default_rng(args.seed))
    print(", ".join(f"{word}: {colour} {kind}" for word, (colour, kind) in zip(WORDS, looks, strict=True)))
    (args.folder / "images").mkdir(parents=True, exist_ok=True)
    (args.folder / "annotations").mkdir(exist_ok=True)
    for number, (split, count) in enumerate(zip(SPLITS, args.images, strict=True)):
        tree = draw_split(args.folder / "images", split, count, looks, (args.seed, number))
        (args.folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))


def choose_looks(rng: np.random.Generator) -> list[tuple[str, str]]:
    """A held-out pair of colour and kind for each word, no colour and no kind twice."""
    pairs = [(c, k) for c in COLOURS for k in KINDS if is_novel({"colour": c, "kind": k})]
    chosen: list[tuple[str, str]] = []
    for index in rng.permutation(len(pairs)).tolist():
        colour, kind = pairs[index]
        if len(chosen) < len(WORDS) and all(colour != c and kind != k for c, k in chosen):
            chosen.append((colour, kind))
    return chosen


def draw_split(
    images: Path, split: str, count: int, looks: list[tuple[str, str]], seed: tuple[int, int]
) -> dict[str, list[dict[str, object]]]:
    """Draw and save images; gives their COCO tree."""
    rng = np.random.default_rng(seed)
    tree: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    tree["categories"] = [{"id": number, "name": word} for number, word in enumerate(WORDS, start=1)]
    for number in range(count):
        size = (int(rng.integers(*SIDES)), int(rng.integers(*SIDES)))
        things = place(rng, size, looks)
        name = f"{split}_{number:03d}.jpg"
        draw_scene(things, size, int(rng.integers(2**31))).save(images / name, quality=92)
        tree["images"].append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for thing in things:
            if (thing.colour, thing.kind) in looks:
                x1, y1, x2, y2 = thing.box
                row = {"id": len(tree["annotations"]) + 1, "image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                label = looks.index((thing.colour, thing.kind)) + 1
                tree["annotations"].append({**row, "category_id": label, "iscrowd": 0, "area": (x2 - x1) * (y2 - y1)})
    return tree


def place(rng: np.random.Generator, size: tuple[int, int], looks: list[tuple[str, str]]) -> list[Thing]:
    """Things that do not overlap; about half are of the task, the others share a colour or a kind with one."""
    things: list[Thing] = []
    for _ in range(200):
        if len(things) == int(rng.integers(THINGS[0], THINGS[1] + 1)):
            break
        side = rng.uniform(*SIZE)
        x, y = rng.uniform(2, size[0] - side - 2), rng.uniform(2, size[1] - side - 2)
        box = (float(x), float(y), float(x + side), float(y + side))
        if any(overlapping(box, thing.box) for thing in things):
            continue
        colour, kind = looks[int(rng.integers(len(looks)))]
        if things and rng.random() < 0.5:
            if rng.random() < 0.5:
                colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
            else:
                kind = KINDS[int(rng.integers(len(KINDS)))]
        things.append(Thing(kind, colour, "plain", box))
    return things


def overlapping(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes come closer than four pixels."""
    gap = 4
    across = one[0] < other[2] + gap and other[0] < one[2] + gap
    return across and one[1] < other[3] + gap and other[1] < one[3] + gap


if __name__ == "__main__":
    main()
