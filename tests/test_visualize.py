"""Drawings are readable at any size, the same in every run, and written whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glip import visualize
from glip.lettering import PALE, palette, phrase_colour
from glip.structures import Detections, Prompt, Sample
from glip.visualize import contact_sheet, draw, save_image

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
    image = Image.new("RGB", size, (200, 200, 200))
    drawn = draw(image, detections(size, ["a red bus", "dog", "a phrase so long that it hardly fits " * 9]))
    assert drawn.mode == "RGB" and min(drawn.size) >= 48 and max(drawn.size) >= 160
    assert len(places) == 3
    for (left, top, right, bottom), (width, height) in places:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert right - left >= 30 and bottom - top >= 11, "large enough to be read"


def test_the_image_itself_is_kept():
    image = Image.new("RGB", (640, 480), (10, 20, 30))
    none = detections((640, 480), ["dog"], count=1).select(torch.zeros(1, dtype=torch.bool))
    assert np.array_equal(np.asarray(draw(image, none)), np.asarray(image))
    found = detections((640, 480), ["dog", "cat"], count=9)
    assert draw(image, found).tobytes() == draw(image, found).tobytes(), "drawing is the same every time"
    assert image.getcolors() == [(640 * 480, (10, 20, 30))], "a copy is drawn on"


def test_frames_lie_on_the_boxes():
    box = torch.tensor([[100.0, 120.0, 300.0, 260.0]])
    found = Detections(box, torch.tensor([0.5]), torch.tensor([0]), Prompt.from_names(["dog"]), (480, 640))
    drawn = draw(Image.new("RGB", (640, 480)), found, scores=False)
    colour = phrase_colour("dog")
    for place in ((100, 200), (300, 200), (200, 260), (200, 120)):
        assert drawn.getpixel(place) == colour
    assert drawn.getpixel((200, 200)) == drawn.getpixel((310, 270)) == (0, 0, 0)


def test_labels_do_not_cover_each_other_while_there_is_room(places):
    box = torch.tensor([[100.0, 120.0, 300.0, 260.0]]).repeat(4, 1)
    names = ["dog", "cat", "fox", "owl"]
    found = Detections(box, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.arange(4), Prompt.from_names(names), (480, 640))
    draw(Image.new("RGB", (640, 480)), found)
    rectangles = [place for place, _ in places]
    assert not any(visualize._overlap(a, b) for i, a in enumerate(rectangles) for b in rectangles[:i])


def test_any_characters_and_boxes(places):
    names = ["café", "北京烤鸭", "🐈", "עברית", "a\nb\tc", "x" * 500, "\u0301", "!"]
    draw(Image.new("RGB", (300, 200)), detections((300, 200), names, count=len(names)))
    assert len(places) == len(names)
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0], [90.0, 80.0, 10.0, 20.0], [-50.0, -50.0, 900.0, 900.0]])
    found = Detections(boxes, torch.rand(3), torch.zeros(3, dtype=torch.long), Prompt.from_names(["dog"]), (100, 100))
    assert draw(Image.new("RGB", (100, 100)), found).size == (500, 500)


def test_the_format_follows_the_ending(tmp_path):
    for name in ("a.png", "a.JPEG", "deep/er/a.webp"):
        save_image(Image.new("RGB", (9, 7), (1, 2, 3)), tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert saved.size == (9, 7) and saved.format == Path(name).suffix[1:].upper()
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644
    for name in ("b", "b.txt"):
        with pytest.raises(ValueError, match=rf"{name}': unknown ending '.*': use \.jpg or \.png"):
            save_image(Image.new("RGB", (9, 7)), tmp_path / name)
        assert not (tmp_path / name).exists()


# ---- captions below images

CAPTION = "a dog, a cat and a dog near a tree"


def captioned(size: tuple[int, int], labels: list[int], caption: str = CAPTION, phrases=None) -> Detections:
    prompt = Prompt.from_caption(caption, phrases or ["a dog", "a cat", "a dog", "a tree"])
    boxes = torch.tensor([[0.0, 0.0, size[0] / 2, size[1] / 2]]).repeat(len(labels), 1)
    return Detections(boxes, torch.ones(len(labels)), torch.tensor(labels, dtype=torch.long), prompt, size[::-1])


def strip(size: tuple[int, int], found: Detections) -> Image.Image:
    """What is below the image."""
    drawn = draw(Image.new("RGB", size, (1, 2, 3)), found)
    return drawn.crop((0, round(drawn.width * size[1] / size[0]), *drawn.size))


def test_a_caption_is_written_below_in_the_colours_of_its_boxes():
    dog, cat, dog_again, tree = palette(captioned((640, 480), []).prompt.texts)
    drawn = draw(Image.new("RGB", (640, 480), (1, 2, 3)), captioned((640, 480), [0, 1]), scores=False)
    assert drawn.width == 640 and 480 < drawn.height < 560 and dog == dog_again != cat
    below = colours_of(drawn.crop((0, 480, *drawn.size)))
    assert {dog, cat, PALE} <= below and tree not in below, "a phrase that was not found is grey"
    assert dog in colours_of(drawn.crop((0, 0, 640, 480))) and PALE not in colours_of(drawn.crop((0, 0, 640, 480)))


def test_boxes_and_words_of_a_sentence_have_the_same_colours_also_where_these_were_set_apart():
    names = ["a tree", "a house"]
    second = palette(names)[1]
    assert second != phrase_colour(names[1]), "its own is too near the first one's"
    found = captioned((640, 480), [1], " beside ".join(names), names)
    drawn = draw(Image.new("RGB", (640, 480)), found, scores=False)
    for part in (drawn.crop((0, 0, 640, 480)), drawn.crop((0, 480, *drawn.size))):
        assert second in colours_of(part) and phrase_colour(names[1]) not in colours_of(part)


def test_of_two_equal_phrases_the_one_that_was_not_found_is_grey():
    found, both = strip((640, 480), captioned((640, 480), [0])), strip((640, 480), captioned((640, 480), [0, 2]))
    dog = palette(["a dog"])[0]
    first, twice = (dict((c, n) for n, c in image.getcolors(10**6)) for image in (found, both))
    assert first[dog] < twice[dog] and first[PALE] > twice[PALE]


def test_lists_have_no_words_below():
    for found in (
        detections((640, 480), ["dog", "cat"]),
        captioned((640, 480), [0], "a dog. a cat", ["a dog", "a cat"]),
    ):
        assert draw(Image.new("RGB", (640, 480)), found).size == (640, 480), "as a task of glip tune writes its names"
    assert draw(Image.new("RGB", (640, 480)), captioned((640, 480), [], "a dog", ["a dog"])).height > 480


@pytest.mark.parametrize(
    "caption", ["word " * 10_000, "x" * 5_000, "街上有一辆红色的汽车" * 30, "🐈\n\tÁ \u0301\u200b 한국 עברית"]
)
@pytest.mark.parametrize("size", [(20, 20), (20, 3), (1, 1), (8, 2000), (4000, 30), (640, 480)])
def test_any_caption_below_any_image(size, caption):
    found = captioned(size, [0], caption, [(0, 1), (2, 4), (1, len(caption))])
    drawn = draw(Image.new("RGB", size), found)
    plain = draw(Image.new("RGB", size), found.select(torch.zeros(1, dtype=torch.bool)))
    assert drawn.width >= 160 and drawn.size == plain.size
    assert drawn.height < 2 * max(visualize._ROOM[1], 480, size[1]) + 150, (
        "words take as much room as the image at most"
    )


# ---- contact sheets


def sample(name="dog", boxes=((60.0, 30.0, 180.0, 90.0),), **fields) -> Sample:
    own = {
        "image": Image.new("RGB", (240, 120), (9, 9, 9)),
        "vocabulary": (name,),
        "box_phrases": ((0,),) * len(boxes),
    }
    return Sample(boxes=torch.tensor(boxes).reshape(-1, 4), **(own | fields))


def colours_of(image: Image.Image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in image.getcolors(image.width * image.height)}


def test_a_sheet_has_a_cell_for_each_sample():
    cell, gap = visualize._CELL, visualize._GAP
    one, five = contact_sheet([sample()]), contact_sheet([sample()] * 5)
    assert one.width == cell + 2 * gap and five.width == 4 * (cell + gap) + gap and five.height > 1.8 * one.height
    assert contact_sheet([sample()] * 5, columns=2).width == 2 * (cell + gap) + gap


def test_boxes_have_the_colour_of_their_words():
    sheet, colour, gap = contact_sheet([sample()]), phrase_colour("dog"), visualize._GAP
    for x, y in ((60, 60), (180, 60), (120, 30), (120, 90)):
        assert sheet.getpixel((gap + round(x * 1.5), gap + round(y * 1.5))) == colour
    assert colour in colours_of(sheet.crop((0, gap + 180, *sheet.size))), "the name below the image"
    assert phrase_colour("cat") not in colours_of(sheet)
    crowd = contact_sheet([sample(crowd=(0,))]).crop((0, 0, 396, 198))
    assert colour not in colours_of(crowd), "a crowd is framed without colour"


def test_phrases_of_a_caption_are_marked_and_the_others_are_not():
    prompt = Prompt.from_caption("a dog near a tree", ["a dog", "a tree"])
    sheet = contact_sheet([sample(vocabulary=(), prompt=prompt)])
    below = colours_of(sheet.crop((0, visualize._GAP + 180, *sheet.size)))
    assert phrase_colour("a dog") in below and phrase_colour("a tree") not in below


def test_a_short_vocabulary_is_coloured_as_a_whole_and_of_a_long_one_what_has_a_box():
    names = ("red blood cell", "white blood cell", "platelet")
    assert set(visualize._palette(sample(vocabulary=names))) == {0, 1, 2}, "the same below every image"
    many = tuple(f"thing {number}" for number in range(40))
    one = sample(vocabulary=many, box_phrases=((7,),))
    assert visualize._palette(one) == {7: phrase_colour("thing 7")}


def test_scores_and_unreadable_images_and_empty_samples(tmp_path, places):
    contact_sheet([sample(scores=(0.87,)), sample()])
    assert len(places) == 1
    sheet = contact_sheet([sample(image=tmp_path / "missing.jpg"), sample(boxes=()), sample(boxes=(), vocabulary=())])
    assert (220, 220, 220) in colours_of(sheet) and sheet.width > 1000


@pytest.mark.parametrize("caption", ["x" * 400, "word " * 200, "", "a\nb\tc", "Á 日本 \U0001f408"])
@pytest.mark.parametrize("size", [(1, 900), (900, 1), (3, 2)])
def test_any_caption_and_size(caption, size):
    one = sample(image=Image.new("RGB", size), boxes=(), vocabulary=(), caption=caption)
    sheet = contact_sheet([one])
    assert sheet.height < 600 and sheet.width == visualize._CELL + 2 * visualize._GAP
