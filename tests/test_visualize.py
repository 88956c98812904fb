"""Drawings are readable at any size; colours are told apart, captions are runs, lines fit."""

from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from glip import lettering, visualize
from glip.lettering import (
    BLUE,
    COLOURS,
    INK,
    MOST_APART,
    PALE,
    RED,
    YELLOW,
    TextRun,
    ink,
    is_sentence,
    label,
    legible,
    letters,
    line_height,
    marked,
    palette,
    wrapped,
    write,
)
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
    """The rectangles of the tags of each drawing, and its canvas."""
    seen = []
    place = visualize._places

    def recorded(boxes, sizes, canvas):
        seen.append((place(boxes, sizes, canvas), canvas))
        return seen[-1][0]

    monkeypatch.setattr(visualize, "_places", recorded)
    return seen


@pytest.fixture
def no_fonts(monkeypatch):
    """A system without fonts."""
    monkeypatch.setattr(lettering, "system_fonts", lambda: ())
    lettering.legible.cache_clear()
    yield
    lettering.legible.cache_clear()


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_drawn_with_labels_inside(places, size):
    image = Image.new("RGB", size, (200, 200, 200))
    drawn = draw(image, detections(size, ["a red bus", "dog", "a phrase so long that it hardly fits " * 9]))
    assert drawn.mode == "RGB" and min(drawn.size) >= 48 and max(drawn.size) >= 160
    found = detections(size, ["café", "\u0301北京烤鸭\n🐈"])
    draw(image, Detections(found.boxes[:, [2, 3, 0, 1]], found.scores, found.labels, found.prompt, found.size))
    assert len(places) >= 2, "any characters, and boxes that are upside down"
    for rectangles, (width, height) in places:
        for left, top, right, bottom in rectangles.tolist():
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert right - left >= 11 and bottom - top >= 11, "large enough to be read"


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
    [colour] = palette(["dog"])
    for place in ((100, 200), (300, 200), (200, 260), (200, 120)):
        assert drawn.getpixel(place) == colour
    assert drawn.getpixel((200, 200)) == drawn.getpixel((310, 270)) == (0, 0, 0)


def test_labels_do_not_cover_each_other_while_there_is_room(places):
    box = torch.tensor([[100.0, 120.0, 300.0, 260.0]]).repeat(4, 1)
    names = ["dog", "cat", "fox", "owl"]
    found = Detections(box, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.arange(4), Prompt.from_names(names), (480, 640))
    draw(Image.new("RGB", (640, 480)), found)
    [(rectangles, _)] = places
    assert not (visualize._covered(rectangles, rectangles) - np.eye(4)).any()


@pytest.mark.parametrize("names", [["cell"], ["cell", "platelet"]])
def test_tags_do_not_hide_dense_objects(names):
    """Numbers stand for names where these would cover the things, and a legend below explains them."""
    x, y = np.meshgrid(np.arange(10, 600, 60.0), np.arange(20, 460, 40.0))
    corners = torch.from_numpy(np.stack([x, y, x + 24, y + 24], 2).reshape(-1, 4)).float()
    labels, count = torch.arange(len(corners)) % len(names), len(corners)
    found = Detections(corners, torch.full((count,), 0.87), labels, Prompt.from_names(names), (480, 640))
    image = Image.new("RGB", (640, 480), (1, 2, 3))
    for drawn in (draw(image, found), draw(image, found, scores=False)):
        pixels = np.asarray(drawn)
        seen = [
            (pixels[int(y) + 3 : int(y) + 22, int(x) + 3 : int(x) + 22] == (1, 2, 3)).mean() for x, y, *_ in corners
        ]
        assert drawn.height > 480 and min(seen) > 0.75
        assert set(palette(names)) <= colours_of(drawn.crop((0, 480, *drawn.size))), "the legend"


def test_the_ending_is_the_format(tmp_path):
    for name in ("a.png", "a.JPEG", "deep/er/a.webp"):
        save_image(Image.new("RGB", (9, 7)), tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert saved.size == (9, 7) and (tmp_path / name).stat().st_mode & 0o777 == 0o644
    for name in ("a.xyz", "a"):
        with pytest.raises(ValueError, match=rf"{name}': unknown ending '.*': use \.jpg or \.png"):
            save_image(Image.new("RGB", (9, 7)), tmp_path / name)
        assert not (tmp_path / name).exists()


# ---- captions below images

CAPTION = "a dog, a cat and a dog near a tree"


def captioned(size: tuple[int, int], labels: list[int], caption: str = CAPTION, phrases=None) -> Detections:
    prompt = Prompt.from_caption(caption, phrases or ["a dog", "a cat", "a dog", "a tree"])
    boxes = torch.tensor([[0.0, 0.0, size[0] / 2, size[1] / 2]]).repeat(len(labels), 1)
    return Detections(boxes, torch.ones(len(labels)), torch.tensor(labels, dtype=torch.long), prompt, size[::-1])


def test_a_caption_is_written_below_in_the_colours_of_its_boxes():
    dog, cat, dog_again, tree = palette(captioned((640, 480), []).prompt.texts)
    drawn = draw(Image.new("RGB", (640, 480), (1, 2, 3)), captioned((640, 480), [0, 1]), scores=False)
    assert drawn.width == 640 and 480 < drawn.height < 560 and dog == dog_again != cat
    below = colours_of(drawn.crop((0, 480, *drawn.size)))
    assert {dog, cat, PALE} <= below and tree not in below, "a phrase that was not found is grey"
    assert dog in colours_of(drawn.crop((0, 0, 640, 480))) and PALE not in colours_of(drawn.crop((0, 0, 640, 480)))


@pytest.mark.parametrize(
    "caption", ["word " * 10_000, "x" * 5_000, "街上有一辆红色的汽车" * 30, "🐈\n\tÁ \u0301\u200b 한국 עברית"]
)
@pytest.mark.parametrize("size", [(20, 3), (1, 1), (8, 2000), (4000, 30), (640, 480)])
def test_any_caption_below_any_image(size, caption):
    found = captioned(size, [0], caption, [(0, 1), (2, 4), (1, len(caption))])
    drawn = draw(Image.new("RGB", size), found)
    plain = draw(Image.new("RGB", size), found.select(torch.zeros(1, dtype=torch.bool)))
    assert drawn.width >= 160 and drawn.size == plain.size
    most = 2 * max(visualize._ROOM[1], 480, size[1]) + 150
    assert drawn.height < most, "words take as much room as the image at most"


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


def test_boxes_have_the_colour_of_their_words():
    sheet, [colour], gap = contact_sheet([sample()]), palette(["dog"]), visualize._GAP
    for x, y in ((60, 60), (180, 60), (120, 30), (120, 90)):
        assert sheet.getpixel((gap + round(x * 1.5), gap + round(y * 1.5))) == colour
    assert colour in colours_of(sheet.crop((0, gap + 180, *sheet.size))), "the name below the image"
    crowd = contact_sheet([sample(crowd=(0,))]).crop((0, 0, 396, 198))
    assert colour not in colours_of(crowd), "a crowd is framed without colour"


def test_phrases_of_a_caption_are_marked_and_the_others_are_not():
    prompt = Prompt.from_caption("a dog near a tree", ["a dog", "a tree"])
    sheet = contact_sheet([sample(vocabulary=(), prompt=prompt)])
    below = colours_of(sheet.crop((0, visualize._GAP + 180, *sheet.size)))
    dog, tree = palette(["a dog", "a tree"])
    assert dog in below and tree not in below


def test_a_name_has_one_colour_in_a_whole_sheet():
    one, other = (
        sample(
            vocabulary=(), prompt=Prompt.from_caption(" and ".join(names), names), box_phrases=((names.index(own),),)
        )
        for own, names in (("yellow fish", ["dog", "yellow fish"]), ("A yellow fish", ["a red cup", "A yellow fish"]))
    )
    many = sample(vocabulary=tuple(f"thing {number}" for number in range(40)), box_phrases=((7,),))
    for samples in ([one, other], [other, one, many]):
        sheet = contact_sheet(samples)
        for place in range(2):
            left = visualize._GAP + place * (visualize._CELL + visualize._GAP)
            assert sheet.getpixel((left + 90, visualize._GAP + 90)) == YELLOW


def test_unreadable_images_and_empty_samples_have_cells_too(tmp_path, places):
    sheet = contact_sheet([sample(image=tmp_path / "missing.jpg"), sample(boxes=()), sample(boxes=(), vocabulary=())])
    assert (220, 220, 220) in colours_of(sheet) and sheet.width > 1000
    for size, caption in (((1, 900), "x" * 400), ((900, 1), "word " * 200), ((3, 2), "a\nb\tc Á 日本")):
        one = sample(image=Image.new("RGB", size), boxes=(), vocabulary=(), caption=caption)
        assert contact_sheet([one]).height < 600
    assert not any(visualize._areas(rectangles).any() for rectangles, _ in places), "only scores are tags"
    contact_sheet([sample(scores=(0.87,))])
    assert visualize._areas(places[-1][0]).all()


# ---- words in images


def length(line: list[TextRun], size: int) -> float:
    pads = sum(size // 4 * 2 for run in line if run.colour)
    return sum(letters(size).getlength(run.text) for run in line) + pads


def blended(colour, matrix):
    """A colour as a colour-blind person sees it (Machado, Oliveira and Fernandes 2009), in CIELAB."""
    linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
    seen = (np.array(matrix) @ linear).clip(0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    x, y, z = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / (0.9505, 1, 1.089)]
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
    ids=["all", "protanopia", "deuteranopia", "tritanopia"],
)
def test_colours_are_told_apart_by_colour_blind_people_too(matrix):
    seen = [blended(colour, matrix) for colour in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 16


def test_names_have_different_colours_and_those_that_they_say():
    names = ["dog", "cat", "a blue car", "the red house", "white king", "white queen", "black king", "bus", "tree"]
    colours = dict(zip(names, palette(names), strict=True))
    assert len(set(colours.values())) == len(names)
    assert colours["a blue car"] == BLUE and colours["the red house"] == RED
    assert colours["white king"] == (140, 140, 136), "neutral"
    assert palette(["dog"]) == palette([" Dog "]) == palette(["a dog"])
    first, other, again = palette(["A dog", "a cat", "a dog "])
    assert first == again != other
    assert len(palette(f"thing {number}" for number in range(MOST_APART * 5))) == MOST_APART * 5


def test_labels_are_one_line():
    assert label(" café\ncrème ", " 0.50", 12, 300) == "café crème 0.50"
    cut = label("a red bus " * 9, " 0.50", 12, 100)
    assert cut.startswith("a red") and cut.endswith("... 0.50") and letters(12).getlength(cut) <= 100


def test_letters_are_read_on_their_field():
    assert [ink((255, 255, 0)), ink((0, 0, 200)), ink(PALE), ink(None)] == [(0, 0, 0), (255, 255, 255), INK, INK]


def test_phrases_are_marked_where_they_stand():
    prompt = Prompt.from_caption("a red dog, a cat.", [(2, 9), (6, 9), (11, 16)])
    assert marked(prompt, {0: RED, 1: BLUE}) == [
        TextRun("a ", None),
        TextRun("red ", RED),
        TextRun("dog", BLUE),  # the phrase within the phrase
        TextRun(", ", None),
        TextRun("a cat", PALE),
        TextRun(".", None),
    ]
    assert marked(prompt, {0: RED})[1:3] == [TextRun("red ", RED), TextRun("dog", RED)]
    parts = Prompt.from_caption("red and blue cars", [[(0, 3), (13, 17)]])
    assert marked(parts, {0: RED}) == [TextRun("red", RED), TextRun(" and blue ", None), TextRun("cars", RED)]


def test_a_sentence_says_more_than_its_names():
    assert is_sentence(Prompt.from_caption("a dog near a tree", ["a dog", "a tree"]))
    assert is_sentence(Prompt.from_caption("a dog", ["a dog"]))
    assert not is_sentence(Prompt.from_caption("a dog. a tree", ["a dog", "a tree"]))
    assert not is_sentence(Prompt.from_names(["a dog"])) and not is_sentence(Prompt.parse("a dog. a tree"))


def test_long_captions_wrap_at_words_and_end_in_dots():
    lines = wrapped([TextRun("a red dog ", RED), TextRun("and other words " * 30, None)], 16, 360, 5)
    assert len(lines) == 5 and lines[0][0] == TextRun("a red dog ", RED)
    assert all(length(line, 16) <= 360 for line in lines)
    assert "".join(run.text for run in lines[-1]).endswith("...")
    assert not any(line[0].text.startswith(" ") or line[-1].text.endswith(" ") for line in lines)


def test_all_words_are_written_where_there_is_room():
    text = "a man in a red shirt, who rides a brown horse, waves. " * 3
    said = [TextRun(text[:60], RED), TextRun(text[60:], None)]
    for width in (90, 133, 360, 2000):
        lines = wrapped(said, 14, width, 99)
        assert " ".join("".join(run.text for run in line) for line in lines) == text.strip()
        assert all(length(line, 14) <= width for line in lines)
    for width in range(60, 140):
        lines = wrapped([TextRun("brown horse", RED), TextRun(", and", None)], 16, width, 9)
        assert not any(line[0].text.startswith(",") for line in lines), "no line begins with a comma"


@pytest.mark.parametrize("text", ["x" * 200, "街上有一辆红色的汽车" * 8])
def test_words_wider_than_a_line_break_at_letters(text):
    lines = wrapped([TextRun("so: ", None), TextRun(text, RED)], 16, 200, 99)
    assert all(length(line, 16) <= 200 for line in lines) and len(lines) > 3
    assert "".join(run.text for line in lines for run in line if run.colour) == text
    assert wrapped([TextRun(" \n", RED)], 16, 200, 5) == [], "nothing is no line"


def test_fields_lie_behind_their_words():
    canvas = Image.new("RGB", (200, 60), (255, 255, 255))
    write(canvas, [[TextRun("dog", RED), TextRun(" or", None)], [TextRun("cat", BLUE)]], (10, 8), 16)
    high = line_height(16)
    assert sum(canvas.getpixel((x, 8)) == RED for x in range(10, 40)) > 20
    assert sum(canvas.getpixel((x, 8 + high)) == BLUE for x in range(10, 40)) > 18
    assert not any(canvas.getpixel((x, y)) == RED for x in range(200) for y in range(8 + high, 60))


# ---- other scripts


def test_without_fonts_accents_are_dropped_and_other_letters_are_told(no_fonts):
    assert legible("a red bus") == ("a red bus", "") and legible("café\n\u200bcrème") == ("cafe creme", "")
    for text, shown in (("\u5317\u4eac 2", "?? 2"), ("дом", "???")):
        with pytest.warns(UserWarning, match="no font of this system .* install one of their script"):
            assert legible(text) == (shown, "")


def test_letters_that_pillow_lacks_come_from_a_font_of_the_system():
    if not any("DejaVuSans" in file for file in lettering.system_fonts()):
        pytest.skip("DejaVu Sans is not installed")
    for text in ("café", "красный дом", "κόκκινο σπίτι"):
        shown, file = legible(text)
        assert shown == text and file
        pixels = [lettering._shape(file, letter) for letter in set(text) if letter != " "]
        assert len(set(pixels)) == len(pixels), "no letter is an empty square"
