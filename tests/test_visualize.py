"""Drawings are readable at any size, the same in every run, and written whole or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from glip import visualize
from glip.structures import Detections, Prompt
from glip.visualize import draw, phrase_colour, save_picture

SIZES = [(1, 1), (8, 2000), (4000, 30), (2, 3), (640, 480), (1500, 1500)]


def detections(size: tuple[int, int], names: list[str], count: int = 3) -> Detections:
    width, height = size
    corners = torch.rand(count, 2, 2).sort(1).values * torch.tensor([width, height])
    labels = torch.arange(count) % len(names)
    return Detections(
        corners.flatten(1), torch.rand(count).sort().values, labels, Prompt.from_names(names), (height, width)
    )


@pytest.fixture
def places(monkeypatch):
    """The rectangles of the labels drawn, and the canvas of each."""
    seen = []
    place = visualize._place

    def recorded(size, box, canvas, taken):
        seen.append((place(size, box, canvas, taken), canvas))
        return seen[-1][0]

    monkeypatch.setattr(visualize, "_place", recorded)
    return seen


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_drawn_with_labels_inside(places, size):
    picture = Image.new("RGB", size, (200, 200, 200))
    drawn = draw(picture, detections(size, ["a red bus", "dog", "a phrase so long that it hardly fits " * 9]))
    assert drawn.mode == "RGB" and min(drawn.size) >= 48 and max(drawn.size) >= 160
    assert len(places) == 3
    for (left, top, right, bottom), (width, height) in places:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert right - left >= 30 and bottom - top >= 11, "large enough to be read"


def test_the_picture_itself_is_kept():
    picture = Image.new("RGB", (640, 480), (10, 20, 30))
    none = detections((640, 480), ["dog"], count=1).select(torch.zeros(1, dtype=torch.bool))
    assert np.array_equal(np.asarray(draw(picture, none)), np.asarray(picture))
    draw(picture, detections((640, 480), ["dog"]))
    assert picture.getcolors() == [(640 * 480, (10, 20, 30))], "a copy is drawn on"


def test_frames_lie_on_the_boxes():
    box = torch.tensor([[100.0, 120.0, 300.0, 260.0]])
    found = Detections(box, torch.tensor([0.5]), torch.tensor([0]), Prompt.from_names(["dog"]), (480, 640))
    drawn = draw(Image.new("RGB", (640, 480)), found, scores=False)
    colour = phrase_colour("dog")
    for place in ((100, 200), (300, 200), (200, 260), (200, 120)):
        assert drawn.getpixel(place) == colour
    assert drawn.getpixel((200, 200)) == drawn.getpixel((310, 270)) == (0, 0, 0)


def test_small_pictures_are_enlarged():
    assert draw(Image.new("RGB", (20, 10)), detections((20, 10), ["dog"])).size == (480, 240)


def test_colours_are_stable():
    assert phrase_colour("dog") == (37, 161, 250) == phrase_colour(" Dog ")
    colours = {phrase_colour(name) for name in ("dog", "cat", "car", "cart", "bus", "a red bus", "tree", "zebra")}
    assert len(colours) == 8


def test_drawing_is_the_same_every_time():
    picture, found = Image.new("RGB", (300, 200)), detections((300, 200), ["dog", "cat"], count=9)
    assert draw(picture, found).tobytes() == draw(picture, found).tobytes()


def test_many_detections(places):
    draw(Image.new("RGB", (640, 480)), detections((640, 480), ["dog", "cat"], count=400))
    assert len(places) == 400


def test_labels_do_not_cover_each_other_while_there_is_room(places):
    box = torch.tensor([[100.0, 120.0, 300.0, 260.0]]).repeat(4, 1)
    names = ["dog", "cat", "fox", "owl"]
    found = Detections(box, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.arange(4), Prompt.from_names(names), (480, 640))
    draw(Image.new("RGB", (640, 480)), found)
    rectangles = [place for place, _ in places]
    assert not any(visualize._overlap(a, b) for i, a in enumerate(rectangles) for b in rectangles[:i])


@pytest.mark.parametrize("name", ["café", "北京烤鸭", "🐈", "עברית", "a\nb\tc", "x" * 500, "\u0301", "!"])
def test_any_characters(places, name):
    draw(Image.new("RGB", (300, 200)), detections((300, 200), [name]))
    assert len(places) == 3


def test_labels_are_one_line_without_accents():
    font = ImageFont.load_default(size=12)
    assert visualize._label(" café\ncrème ", " 0.50", font, 300) == "cafe creme 0.50"
    cut = visualize._label("a red bus " * 9, " 0.50", font, 100)
    assert cut.startswith("a red") and cut.endswith("... 0.50") and font.getlength(cut) <= 100


def test_boxes_of_no_area_or_upside_down():
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0], [90.0, 80.0, 10.0, 20.0], [-50.0, -50.0, 900.0, 900.0]])
    found = Detections(boxes, torch.rand(3), torch.zeros(3, dtype=torch.long), Prompt.from_names(["dog"]), (100, 100))
    assert draw(Image.new("RGB", (100, 100)), found).size == (500, 500)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "deep/er/a.webp", "a.bmp"])
def test_saving(tmp_path, name):
    save_picture(Image.new("RGB", (9, 7), (1, 2, 3)), tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.size == (9, 7)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.txt"])
def test_unknown_endings_are_explained(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}': unknown ending '.*': use \.jpg or \.png"):
        save_picture(Image.new("RGB", (9, 7)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_picture(Image.new("RGB", (9, 7), (255, 0, 0)), path)
    before = path.read_bytes()

    def full(self: Image.Image, to: str, **_: object) -> None:
        with open(to, "wb") as file:
            file.write(b"half a pict")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_picture(Image.new("RGB", (9, 7)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
