"""Draw the pictures that the README and ``make demo`` use; run once, the results are committed.

python tools/draw_demo.py docs/pictures
"""

import argparse
from pathlib import Path

from glip.data.world import Thing, draw_scene

STREET = (
    Thing("sun", "yellow", "plain", (392, 18, 470, 96)),
    Thing("cloud", "white", "plain", (70, 26, 190, 88)),
    Thing("balloon", "pink", "plain", (318, 34, 362, 118)),
    Thing("house", "red", "plain", (168, 122, 300, 246)),
    Thing("tree", "green", "plain", (42, 112, 132, 252)),
    Thing("tree", "green", "plain", (330, 146, 402, 252)),
    Thing("bird", "purple", "plain", (224, 38, 282, 84)),
    Thing("car", "blue", "plain", (92, 258, 214, 326)),
    Thing("bus", "orange", "striped", (276, 244, 440, 330)),
)
TABLE = (
    Thing("cup", "blue", "plain", (40, 150, 122, 232)),
    Thing("apple", "red", "plain", (160, 176, 226, 244)),
    Thing("apple", "green", "plain", (246, 60, 306, 122)),
    Thing("key", "yellow", "plain", (70, 50, 152, 92)),
    Thing("star", "purple", "plain", (190, 40, 232, 82)),
    Thing("umbrella", "red", "striped", (300, 150, 396, 250)),
    Thing("mushroom", "brown", "plain", (336, 40, 402, 108)),
)


def main() -> None:
    """Draw both scenes."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the README.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    draw_scene(STREET, (500, 350), seed=2).save(folder / "street.png")
    draw_scene(TABLE, (440, 280), seed=0).save(folder / "table.png")


if __name__ == "__main__":
    main()
