"""Draw the pictures that the README and ``make demo`` use; run once, the results are committed.

python tools/draw_demo.py docs/pictures
"""

import argparse
from pathlib import Path

from glip.data.world import Thing, draw_scene

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


def main() -> None:
    """Draw both scenes."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the README.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    draw_scene(STREET, (500, 350), seed=2).save(folder / "street.png")
    draw_scene(SHELF, (440, 270), seed=0).save(folder / "shelf.png")


if __name__ == "__main__":
    main()
