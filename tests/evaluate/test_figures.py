"""Figures: the worst images tell right, wrong and missed apart; axes have titles and whole epochs."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from glip.evaluate import figures
from glip.evaluate.coco import Ranking
from glip.lettering import BLUE, GREEN, RED
from glip.structures import Detections, Prompt, Sample


@pytest.fixture
def canvases(monkeypatch):
    """The matplotlib figures that are drawn."""
    seen, figure = [], figures.figure

    @contextmanager
    def kept(*args):
        with figure(*args) as canvas:
            yield canvas
            seen.append(canvas)

    monkeypatch.setattr(figures, "figure", kept)
    return seen


@pytest.mark.parametrize("crowded", [False, True])
def test_the_worst_images_show_right_wrong_and_missed_in_three_colours(tmp_path, crowded):
    names, image = ("dog", "cat"), Image.new("RGB", (200, 100), (9, 9, 9))
    boxes, others = [[10, 10, 50, 50], [100, 10, 150, 60]], [[60, 60, 90, 90]] * (20 if crowded else 1)
    sample = Sample(image, torch.tensor(boxes).float(), ((0,), (1,)), names)
    scores, labels = torch.full((len(others) + 1,), 0.9), torch.tensor([0] + [1] * len(others))
    prompt = Prompt.from_names(names)
    found = Detections(torch.tensor([boxes[0], *others]).float(), scores, labels, prompt, (100, 200))
    figures.draw_worst([(0, sample, found)], [sample], 0.5, tmp_path / "worst.png")
    with Image.open(tmp_path / "worst.png") as page:
        sides = [page.crop((left, 0, left + 378, page.height)) for left in (9, 387)]
    for side, colours in zip(sides, ({GREEN, RED}, {GREEN, BLUE}), strict=True):
        every = {colour for _, colour in side.getcolors(10**6)}
        assert every & {GREEN, RED, BLUE} == colours
        assert np.asarray(side.crop((9, 18, 200, 40))).min() < 100, "a heading"


def test_epochs_are_whole_and_panels_have_titles(tmp_path, canvases):
    figures.draw_epochs([0.01, 0.02, 0.015], [0.9, 0.8], tmp_path / "epochs.png")
    ranking = Ranking(np.zeros(2, int), np.array([True, False]), np.array([0.9, 0.2]), np.zeros(1, int))
    figures.draw_curves(["a $ cat"], [ranking], tmp_path / "curves.png")
    for panel in (panel for canvas in canvases for panel in canvas.axes):
        assert panel.get_title() and panel.get_xlabel() and panel.get_ylabel() and panel.get_ylim()[0] >= 0
    for panel in canvases[0].axes:
        assert all(tick == int(tick) for tick in panel.get_xticks())
