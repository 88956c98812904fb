"""Tiles of a large image: where they are, what is kept of them, and that small things are found."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_world.scenes import Thing, draw_scene

from glip.config import InferenceConfig
from glip.detector import Detector
from glip.geometry.boxes import greedy_hits
from glip.model.weights import ASSETS
from glip.recipes.tiles import _starts, detect_in_tiles
from glip.structures import Detections, Prompt

PROMPT = Prompt.from_names(["red star", "blue circle"])


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "starts"),
    [(100, 100, 0.2, [0]), (50, 100, 0.2, [0]), (101, 100, 0.2, [0, 1]), (260, 100, 0.2, [0, 80, 160])]
    + [(250, 100, 0.0, [0, 75, 150]), (1000, 100, 0.8, list(range(0, 901, 20)))],
)
def test_where_tiles_begin(side, tile, overlap, starts):
    assert _starts(side, tile, overlap) == starts


@pytest.mark.parametrize(
    ("box", "sees_whole", "count"),
    [
        ((100, 70, 118, 90), False, 1),  # in two tiles: suppressed once
        ((45, 30, 155, 50), True, 1),  # larger than a tile: cut off in each, found in the whole image
        ((45, 30, 155, 50), False, 0),
        ((0, 0, 30, 40), False, 1),  # at the edge of the image
        ((170, 100, 199, 149), False, 1),
    ],
)
@pytest.mark.unchecked
def test_boxes_that_a_tile_cuts_off_are_left_out(box, sees_whole, count):
    """The detector is a stub: it finds the box of what is red, with the higher score where it sees less of it."""
    left, top, right, bottom = box
    pixels = np.zeros((150, 200, 3), np.uint8)
    pixels[top : bottom + 1, left : right + 1, 0] = 255

    def stream(images, prompt, **_):
        for image in images:
            (rows, columns), size = np.asarray(image)[:, :, 0].nonzero(), image.size[::-1]
            seen = len(rows) and (sees_whole or size != (150, 200))
            edges = [[columns.min(), rows.min(), columns.max(), rows.max()]] if seen else np.zeros((0, 4))
            boxes, scores = torch.tensor(np.array(edges)).float(), torch.full((len(edges),), 1 / (1 + len(rows)))
            yield Detections(boxes, scores, torch.zeros(len(edges), dtype=torch.long), prompt, size)

    stub = SimpleNamespace(stream=stream, config=SimpleNamespace(inference=InferenceConfig()))
    (found,) = detect_in_tiles(stub, [pixels], PROMPT, tile=100, overlap=0.2)
    assert found.boxes.tolist() == [[float(side) for side in box]] * count and found.size == (150, 200)


@pytest.mark.skipif(
    not (ASSETS / "glip-nano" / "model.safetensors").is_file(), reason="the bundled weights are not in this checkout"
)
def test_small_things_of_a_large_drawing_are_found():
    rng, things = np.random.default_rng(0), []
    for number, (column, row) in enumerate(np.ndindex(4, 3)):
        x, y = (np.array([column, row]) * 150 + rng.uniform(20, 100, 2)).tolist()
        colour, kind = PROMPT.texts[number % 2].split()
        things.append(Thing(kind, colour, "plain", (x, y, x + 26, y + 26)))
    image, detector = (
        draw_scene(things, (640, 480), 0),
        Detector.from_pretrained("glip-nano", device="cpu").resized(160),
    )
    hits = []
    (tiled,) = detect_in_tiles(detector, [image], PROMPT, tile=160, threshold=0.4)
    for found in (detector(image, PROMPT, threshold=0.4), tiled):
        truth = [[thing.box for thing in things[label::2]] for label in range(2)]
        boxes = [found.boxes[found.labels == label].tolist() for label in range(2)]
        hits.append(sum(sum(greedy_hits(*pair, 0.5)) for pair in zip(boxes, truth, strict=True)))
    assert hits[0] <= 3 and hits[1] >= 11, hits
