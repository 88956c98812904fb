"""Words in images: their colours and fonts, and captions written with each phrase in the colour of its boxes."""

import re
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby, pairwise

from PIL import Image, ImageDraw, ImageFont

from glip.text.prompt import SEPARATOR, Prompt

Colour = tuple[int, int, int]
INK, PALE = (40, 40, 44), (222, 222, 218)
# The colours of Okabe and Ito, which colour-blind people tell apart too, with a redder red.
BLUE, RED, GREEN, ORANGE = (0, 114, 178), (204, 51, 17), (0, 158, 115), (230, 159, 0)
SKY, PINK, YELLOW = (86, 180, 233), (204, 121, 167), (240, 228, 66)
COLOURS = (
    *(BLUE, RED, GREEN, ORANGE, SKY, PINK, YELLOW),
    *((150, 25, 250), (100, 0, 100), (0, 250, 125), (125, 0, 0), (75, 50, 175)),
)
_FIRST, MOST_APART = 7, len(COLOURS)  # how many colours to begin with, and of how many names they differ
_SAID = {"red": RED, "orange": ORANGE, "yellow": YELLOW, "green": GREEN, "blue": BLUE, "pink": PINK}
_SAID |= {"cyan": SKY, "purple": COLOURS[7], "brown": (130, 80, 30)}
_NEUTRAL = {"white": (140, 140, 136), "grey": (100, 100, 100), "black": (48, 48, 48)}
_COLOUR_WORD = re.compile(rf"\b({'|'.join(_SAID | _NEUTRAL)})\b")
_FONTS = (  # of Linux, macOS and Windows: first those of alphabets, then those of Chinese, Japanese and Korean
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "FreeSans.ttf", "Arial.ttf", "arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "unifont.otf"),
    *("Arial Unicode.ttf", "Hiragino Sans GB.ttc", "PingFang.ttc", "AppleSDGothicNeo.ttc"),
    *("msyh.ttc", "YuGothM.ttc", "malgun.ttf", "ipaexg.ttf"),
)
_NO_LETTER = "\U0010ffff"  # drawn as what a font has for letters that it lacks, mostly an empty square
_MISSING = (
    "no font of this system has all letters of these words: they are drawn with '?'; install one of their script, such "
    "as Noto Sans CJK (on Debian and Ubuntu: apt install fonts-noto-cjk)"
)


@dataclass(frozen=True)
class TextRun:
    """Letters of one line: of a phrase (the colour of its field) or of the words between."""

    text: str
    colour: Colour | None


# ---- colours


def palette(names: Iterable[str]) -> list[Colour]:
    """A colour for each name: that which the name says, else one that depends on the name and on what is taken.

    Names that differ in case or in an article only share a colour. Beyond ``MOST_APART`` names colours repeat.
    """
    keys = [re.sub(r"^(an?|the) ", "", " ".join(name.casefold().split())) for name in names]
    chosen, used = dict[str, Colour](), Counter[Colour]()
    for key in sorted(dict.fromkeys(keys), key=lambda key: len(_candidates(key))):  # the least free first
        chosen[key] = min(_candidates(key), key=lambda colour: used[colour])  # the first of those used least
        used[chosen[key]] += 1
    return [chosen[key] for key in keys]


def _candidates(name: str) -> Sequence[Colour]:
    """The colours that a name may have, the best first."""
    word = _COLOUR_WORD.search(name)
    if word and word[0] in _SAID:  # light and dark shades serve a second and a third name
        red, green, blue = said = _SAID[word[0]]
        return said, ((red + 255) // 2, (green + 255) // 2, (blue + 255) // 2), (red // 2, green // 2, blue // 2)
    first = zlib.crc32(name.encode()) % _FIRST
    own = [_NEUTRAL[word[0]]] if word else []  # for the first such name: twelve chess pieces are not two greys
    return [*own, *COLOURS[first:_FIRST], *COLOURS[:first], *COLOURS[_FIRST:]]


def ink(colour: Colour | None) -> Colour:
    """What letters are read most easily in: black or white on a colour, dark grey on paper and on pale fields."""
    if colour is None or colour == PALE:
        return INK
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if luminance > 140 else (255, 255, 255)


# ---- fonts


@cache
def letters(size: int, file: str = "") -> ImageFont.FreeTypeFont:
    """A font at a size in pixels: Pillow's own, or that of a file."""
    font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@cache
def system_fonts() -> tuple[str, ...]:
    """The font files of this system that are known to have many scripts."""
    found = []
    for name in _FONTS:
        with suppress(OSError):
            found.append(str(ImageFont.truetype(name, 12).path))
    return tuple(found)


@lru_cache(4096)
def legible(text: str) -> tuple[str, str]:
    """A text as it can be drawn, and its font file; "" for Pillow's own, which has few letters beyond English.

    Where no font has all letters, accents are left out, then a letter that is in no font is drawn as "?".
    """
    kept = (" " if letter.isspace() else letter for letter in unicodedata.normalize("NFC", text))
    own = "".join(letter for letter in kept if not unicodedata.category(letter).startswith("C"))
    plain = (letter for letter in unicodedata.normalize("NFKD", own) if not unicodedata.combining(letter))
    fonts = ("",) if all(_has("", letter) for letter in own) else ("", *system_fonts())
    for form in (own, unicodedata.normalize("NFC", "".join(plain))):
        for file in fonts:
            if all(_has(file, letter) for letter in form):
                return form, file
    best = max(fonts, key=lambda file: sum(_has(file, letter) for letter in form))
    warnings.warn(_MISSING, stacklevel=2)  # Python shows it once
    return "".join(letter if _has(best, letter) else "?" for letter in form), best


@cache
def _has(file: str, letter: str) -> bool:
    return letter.isspace() or _shape(file, letter) != _shape(file, _NO_LETTER)


@lru_cache(64)
def _shape(file: str, letter: str) -> bytes:
    image = Image.new("L", (48, 48))
    ImageDraw.Draw(image).text((12, 8), letter, 255, font=letters(24, file))
    return image.tobytes()


def width_of(text: str, size: int) -> float:
    """Of a text as it is drawn, in pixels."""
    shown, file = legible(text)
    return letters(size, file).getlength(shown)


def put(pen: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, size: int, colour: Colour) -> None:
    """Write a text right of and below a corner; the letters of all fonts stand on one line."""
    shown, file = legible(text)
    base = corner[1] + letters(size).getmetrics()[0]
    pen.text((corner[0], base), shown, fill=colour, font=letters(size, file), anchor="ls")


def label(phrase: str, score: str, size: int, width: int) -> str:
    """Phrase and score on one line, the phrase cut to what fits."""
    words = " ".join(phrase.split())
    if width_of(words + score, size) <= width:
        return words + score
    while words and width_of(f"{words}...{score}", size) > width:
        words = words[: len(words) * 9 // 10]
    return f"{words}...{score}"


# ---- captions


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
    pen, y = ImageDraw.Draw(canvas), corner[1]
    for line in lines:
        x = float(corner[0])
        for run in line:
            end = x + _width([run], size)
            if run.colour:
                field = (x, y - size // 8, end - size // 6, y + size + size * 3 // 16)
                pen.rounded_rectangle(field, size // 4, fill=run.colour)
            put(pen, (x + (size // 4 if run.colour else 0), y - size // 16), run.text, size, ink(run.colour))
            x = end
        y += line_height(size)


def _width(line: Sequence[TextRun], size: int) -> float:
    """Of a line as it is written: letters, and the room in and behind coloured fields."""
    room = 2 * (size // 4) + size // 6
    return sum(width_of(run.text, size) + (room if run.colour else 0) for run in _merged_runs(line))


def _line_pieces(runs: Sequence[TextRun], size: int, width: int) -> Iterator[tuple[list[TextRun], list[TextRun]]]:
    """Words, each after its white space; a word may be of several runs, such as a phrase and its comma.

    A word that is wider than a line comes letter by letter.
    """
    parts = [TextRun(text, run.colour) for run in runs for text in re.findall(r"[\S\u00a0]+|[^\S\u00a0]+", run.text)]
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
