"""Draw the images that the README and ``make demo`` use, and its example of one's own boxes; run once, committed.

python tools/draw_demo.py docs/images
"""

import argparse
import json
from pathlib import Path

import numpy as np
from drawn_world.scenes import Thing, draw_scene

STREET = (
    Thing("sun", "yellow", "plain", (392, 18, 470, 96)),
    Thing("cloud", "white", "plain", (70, 26, 190, 88)),
    Thing("house", "red", "plain", (168, 122, 300, 246)),
    Thing("tree", "green", "plain", (42, 112, 132, 252)),
    Thing("tree", "green", "plain", (350, 134, 432, 252)),
    Thing("car", "blue", "plain", (92, 262, 214, 330)),
    Thing("car", "yellow", "plain", (300, 258, 422, 326)),
)
SHELF = (
    Thing("cup", "blue", "plain", (36, 150, 118, 232)),
    Thing("heart", "red", "plain", (164, 156, 234, 224)),
    Thing("fish", "orange", "plain", (272, 160, 396, 228)),
    Thing("star", "purple", "plain", (60, 34, 132, 104)),
    Thing("boat", "green", "plain", (172, 32, 262, 112)),
    Thing("triangle", "black", "plain", (310, 40, 380, 106)),
)
OWN = (("key", "red"), ("bell", "blue"), ("umbrella", "green"))  # the classes of the example set
NUMBER, SIDE, CELL = 12, 240, 110


def main() -> None:
    """Draw both scenes, and a small COCO set."""
    parser = argparse.ArgumentParser(description="Draw the images of the README.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    draw_scene(STREET, (500, 350), seed=2).save(folder / "street.png")
    draw_scene(SHELF, (440, 270), seed=0).save(folder / "shelf.png")
    draw_set(folder / "example")


def draw_set(folder: Path) -> None:
    """Twelve images with up to four things each, and ``boxes.json`` in COCO's format."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    categories = [{"id": number + 1, "name": f"{colour} {kind}"} for number, (kind, colour) in enumerate(OWN)]
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(NUMBER):
        rng = np.random.default_rng(number)
        things = []
        for cell in rng.permutation(4)[: rng.integers(1, 5)].tolist():
            kind, colour = OWN[int(rng.integers(len(OWN)))]
            width, height = rng.integers(40, 90, 2).tolist()
            x, y = cell % 2 * CELL + int(rng.integers(5, 25)), cell // 2 * CELL + int(rng.integers(5, 25))
            things.append(Thing(kind, colour, "plain", (x, y, x + width, y + height)))
            row = {"image_id": number, "category_id": 1 + OWN.index((kind, colour)), "bbox": [x, y, width, height]}
            annotations.append({"id": len(annotations) + 1, **row, "area": width * height, "iscrowd": 0})
        draw_scene(things, (SIDE, SIDE), seed=number).save(folder / "images" / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": SIDE, "height": SIDE})
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(tree, indent=1))


if __name__ == "__main__":
    main()
