"""Words in images: colours that are told apart, captions as runs, lines that fit."""

import colorsys
from functools import partial

import pytest
from PIL import Image

from glip.lettering import (
    INK,
    MOST_APART,
    PALE,
    TextRun,
    ink,
    is_sentence,
    label,
    letters,
    line_height,
    marked,
    palette,
    phrase_colour,
    wrapped,
    write,
)
from glip.structures import Prompt

RED, BLUE = (230, 20, 20), (20, 20, 230)


def length(line: list[TextRun], size: int) -> float:
    pads = sum(size // 4 * 2 for run in line if run.colour)
    return sum(letters(size).getlength(run.text) for run in line) + pads


def test_colours_are_stable():
    assert phrase_colour("dog") == (37, 161, 250) == phrase_colour(" Dog ")
    colours = {phrase_colour(name) for name in ("dog", "cat", "car", "cart", "bus", "a red bus", "tree", "zebra")}
    assert len(colours) == 8


def nearest(names: list[str]) -> float:
    """Degrees of hue between the two colours that are nearest to each other."""
    hues = [colorsys.rgb_to_hsv(*(value / 255 for value in colour))[0] * 360 for colour in palette(names)]
    return min(min((a - b) % 360, (b - a) % 360) for i, a in enumerate(hues) for b in hues[:i])


def test_likely_confused_colours_are_set_apart():
    assert nearest(["red blood cell", "white blood cell", "platelet", "dog", "cat", "fox"]) > 38
    mixed = [f"{colour} {kind}" for colour in ("red", "blue", "green", "pink") for kind in ("dog", "bus")]
    assert nearest(mixed) > 15, "also where there is no room for the full distance"
    assert len(palette(f"thing {number}" for number in range(MOST_APART * 5))) == MOST_APART * 5
    first, other, again = palette(["A dog", "a cat", "a dog "])
    assert first == again != other


def test_labels_are_one_line_without_accents():
    font = letters(12)
    assert label(" café\ncrème ", " 0.50", font, 300) == "cafe creme 0.50"
    cut = label("a red bus " * 9, " 0.50", font, 100)
    assert cut.startswith("a red") and cut.endswith("... 0.50") and font.getlength(cut) <= 100


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
    assert not any(wrapped([TextRun(nothing, RED)], 16, 200, 5) for nothing in ("", " ", "\u0301"))


def test_fields_lie_behind_their_words():
    canvas = Image.new("RGB", (200, 60), (255, 255, 255))
    write(canvas, [[TextRun("dog", RED), TextRun(" or", None)], [TextRun("cat", BLUE)]], (10, 8), 16)
    high = line_height(16)
    across = partial(range, 10, 40)
    assert sum(canvas.getpixel((x, 8)) == RED for x in across()) > 20
    assert sum(canvas.getpixel((x, 8 + high)) == BLUE for x in across()) > 18
    assert not any(canvas.getpixel((x, y)) == RED for x in range(200) for y in range(8 + high, 60))
