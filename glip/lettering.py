"""Words in images: their colours, and captions written with each phrase in the colour of its boxes."""

import colorsys
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise

from PIL import Image, ImageDraw, ImageFont

from glip.text.prompt import SEPARATOR, Prompt

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]
INK, PALE = (40, 40, 44), (222, 222, 218)
_APART = 40  # degrees of hue between the colours of one palette
MOST_APART = 360 // _APART  # number of names whose colours nobody confuses


@dataclass(frozen=True)
class TextRun:
    """Letters of one line: of a phrase (the colour of its field) or of the words between."""

    text: str
    colour: Colour | None


@cache
def letters(size: int) -> Font:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size=size)


def phrase_colour(phrase: str) -> Colour:
    """The colour of a phrase: the same in every image and every run."""
    return _shade(phrase, _colour_number(phrase) % 360)


def palette(names: Iterable[str]) -> list[Colour]:
    """A colour for each name; one whose own colour is near another's here gets a more different one.

    Names that differ in case only share a colour. Beyond ``MOST_APART`` names, colours come near each other again.
    """
    colours, hues = list[Colour](), dict[str, int]()

    def distance(hue: int) -> int:
        return min((min((hue - other) % 360, (other - hue) % 360) for other in hues.values()), default=360)

    for name in names:
        key, own = name.strip().lower(), _colour_number(name) % 360
        turned = [(own + 137 * turn) % 360 for turn in range(12)]  # the golden angle: each turn lands far from the last
        if key not in hues:
            hues[key] = next((hue for hue in turned if distance(hue) >= _APART), max(turned, key=distance))
        colours.append(_shade(name, hues[key]))
    return colours


def ink(colour: Colour | None) -> Colour:
    """What letters are read most easily in: black or white on a colour, dark grey on paper and on pale fields."""
    if colour is None or colour == PALE:
        return INK
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if luminance > 140 else (255, 255, 255)


def without_accents(text: str) -> str:
    """The letters without accents, which Pillow's own font lacks, and every white space a space."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(" " if letter.isspace() else letter for letter in parts if not unicodedata.combining(letter))


def label(phrase: str, score: str, font: Font, width: int) -> str:
    """Phrase and score on one line, the phrase cut to what fits."""
    words = " ".join(without_accents(phrase).split())
    if font.getlength(words + score) <= width:
        return words + score
    while words and font.getlength(f"{words}...{score}") > width:
        words = words[: len(words) * 9 // 10]
    return f"{words}...{score}"


def is_sentence(prompt: Prompt) -> bool:
    """Whether a prompt was asked as a sentence: its words are worth reading, not only its phrases."""
    return not prompt.is_list and (len(prompt.phrases) == 1 or prompt.caption != SEPARATOR.join(prompt.texts))


def marked(prompt: Prompt, colours: Mapping[int, Colour]) -> list[TextRun]:
    """A caption as runs: phrases (by index) that have a colour in it, others pale grey, the words between in none."""
    edges = sorted({0, len(prompt.caption), *(edge for p in prompt.phrases for span in p.spans for edge in span)})
    runs = []
    for start, end in pairwise(edges):
        over = [index for index, p in enumerate(prompt.phrases) if any(a <= start < b for a, b in p.spans)]
        coloured = [index for index in over if index in colours]
        colour = PALE if over else None
        if coloured:  # the shortest, so that a phrase within a phrase is seen
            colour = colours[min(coloured, key=lambda index: len(prompt.texts[index]))]
        runs.append(TextRun(prompt.caption[start:end], colour))
    return runs


def wrapped(runs: Sequence[TextRun], size: int, width: int, rows: int) -> list[list[TextRun]]:
    """Runs broken into lines of a width, at spaces, or where a word alone is wider; what is too much ends in dots."""
    lines: list[list[TextRun]] = [[]]
    for gap, piece in _line_pieces(runs, size, width):
        longer = [*lines[-1], *gap, *piece] if lines[-1] else piece
        if lines[-1] and _width(longer, size) > width:
            lines.append(piece)
        else:
            lines[-1] = longer
        if len(lines) > rows:
            lines = [*lines[: rows - 1], [*lines[rows - 1][:-1], TextRun("...", None)]]
            break
    return [_merged_runs(line) for line in lines if line]


def line_height(size: int) -> int:
    """From line to line, in pixels, of letters of a size."""
    return size + size // 2


def write(canvas: Image.Image, lines: Sequence[Sequence[TextRun]], corner: tuple[int, int], size: int) -> None:
    """Write lines below a corner, each phrase on a field of its colour."""
    pen, font, y = ImageDraw.Draw(canvas), letters(size), corner[1]
    for line in lines:
        x = float(corner[0])
        for run in line:
            end = x + _width([run], size)
            if run.colour:
                field = (x, y - size // 8, end, y + size + size * 3 // 16)
                pen.rounded_rectangle(field, size // 4, fill=run.colour)
            pen.text((x + _pad(run, size), y - size // 16), run.text, fill=ink(run.colour), font=font)
            x = end
        y += line_height(size)


def _colour_number(phrase: str) -> int:
    return zlib.crc32(phrase.strip().lower().encode())


def _shade(phrase: str, hue: int) -> Colour:
    value = 0.80 + (_colour_number(phrase) >> 9) % 3 * 0.09
    red, green, blue = colorsys.hsv_to_rgb(hue / 360, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _pad(run: TextRun, size: int) -> int:
    return size // 4 if run.colour else 0


def _width(line: Sequence[TextRun], size: int) -> float:
    """Of a line as it is written: letters, and the room at the sides of coloured fields."""
    return sum(letters(size).getlength(run.text) + 2 * _pad(run, size) for run in _merged_runs(line))


def _line_pieces(runs: Sequence[TextRun], size: int, width: int) -> Iterator[tuple[list[TextRun], list[TextRun]]]:
    """Words, each after its white space; a word may be of several runs, such as a phrase and its comma.

    A word that is wider than a line comes letter by letter.
    """
    parts = [TextRun(text, run.colour) for run in runs for text in re.findall(r"\S+|\s+", without_accents(run.text))]
    gap = list[TextRun]()
    for is_gap, group in groupby(parts, key=lambda part: part.text.isspace()):
        word = list(group)
        if is_gap:
            gap = word
            continue
        whole = _width(word, size) <= width
        for piece in [word] if whole else [[TextRun(letter, part.colour)] for part in word for letter in part.text]:
            yield gap, piece
            gap = []


def _merged_runs(line: Sequence[TextRun]) -> list[TextRun]:
    """Neighbours of one colour as one run, so that a phrase is one coloured field."""
    groups = groupby(line, key=lambda run: run.colour)
    return [TextRun("".join(run.text for run in group), colour) for colour, group in groups]
