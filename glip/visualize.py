"""Detections drawn into their picture, and samples on one sheet: one stable colour for each phrase, any size."""

import colorsys
import os
import re
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from glip.data.picture import PictureError, open_any
from glip.structures import Detections, Prompt, Sample

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
_ROOM = (160, 48)  # a narrower or lower canvas gets a white margin, so that a label can be read
# of a sheet: side of a picture, space around it, letter size, lines of text, space in a coloured field, degrees of hue
_CELL, _GAP, _TEXT, _ROWS, _PAD, _APART = 360, 18, 16, 5, 3, 40
_PAPER, _INK, _FAINT = (250, 250, 248), (40, 40, 44), (140, 140, 146)


def draw(picture: Image.Image, detections: Detections, *, scores: bool = True) -> Image.Image:
    """A copy of the picture with a frame and a label for each detection; small pictures are enlarged to be readable.

    Args:
        picture: the RGB picture the detections belong to.
        detections: boxes in its pixels.
        scores: whether labels carry the score.
    """
    factor = max(1, round(480 / max(picture.size)))
    large = picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (max(large.width, _ROOM[0]), max(large.height, _ROOM[1])), (255, 255, 255))
    canvas.paste(large)
    pen = ImageDraw.Draw(canvas)
    side = min(canvas.size)
    line, font = max(2, side // 200), ImageFont.load_default(size=max(11, side // 34))
    ordered = list(detections)[::-1]  # the best on top
    boxes = [tuple(value * factor for value in found.box) for found in ordered]
    colours = [phrase_colour(found.phrase) for found in ordered]
    for box, colour in zip(boxes, colours, strict=True):
        pen.rectangle(_sorted(box), outline=colour, width=line)
    taken: list[Rectangle] = []
    for found, box, colour in reversed(list(zip(ordered, boxes, colours, strict=True))):
        text = _label(found.phrase, f" {found.score:.2f}" if scores else "", font, canvas.width - 10)
        place = _place(pen.textbbox((0, 0), text, font=font), box, canvas.size, taken)
        taken.append(place)
        _tag(pen, text, place, colour, font)
    return canvas


def contact_sheet(samples: Sequence[Sample], *, columns: int = 4) -> Image.Image:
    """Samples side by side: boxes in the colours of their words, and below each picture these words.

    That is its caption with the phrases marked, or the names of its boxes and how often each is there. A picture that
    cannot be read is a grey field that says why.

    Raises:
        ValueError: no sample.
    """
    if not samples:
        raise ValueError("a contact sheet of no samples: give at least one")
    cells = [_cell(sample) for sample in samples]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = max(len(row) for row in rows) * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(max(cell.height for cell in row) + _GAP for row in rows) + _GAP), _PAPER)
    y = _GAP
    for row in rows:
        for place, cell in enumerate(row):
            sheet.paste(cell, (_GAP + place * (_CELL + _GAP), y))
        y += max(cell.height for cell in row) + _GAP
    return sheet


def phrase_colour(phrase: str) -> Colour:
    """The colour of a phrase: the same in every picture and every run."""
    return _shade(phrase, _number(phrase) % 360)


def _number(phrase: str) -> int:
    return zlib.crc32(phrase.strip().lower().encode())


def _shade(phrase: str, hue: int) -> Colour:
    value = 0.80 + (_number(phrase) >> 9) % 3 * 0.09
    red, green, blue = colorsys.hsv_to_rgb(hue / 360, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture whole or not at all; the format follows the name's ending.

    Raises:
        ValueError: an ending that is no picture format.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"picture {str(path)!r}: unknown ending {path.suffix!r}: use .jpg or .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=f".partial{path.suffix}")
    os.close(handle)
    try:
        picture.save(partial)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _tag(pen: ImageDraw.ImageDraw, text: str, place: Rectangle, colour: Colour, font: Font) -> None:
    pen.rectangle(place, fill=colour)
    pen.text((place[0] + 3, place[1] + 1), text, fill=_ink(colour), font=font)


def _plain(text: str) -> str:
    """The letters without accents, which Pillow's own font lacks, and every white space a space."""
    letters = unicodedata.normalize("NFKD", text)
    return "".join(" " if letter.isspace() else letter for letter in letters if not unicodedata.combining(letter))


def _label(phrase: str, score: str, font: Font, width: int) -> str:
    """Phrase and score on one line, the phrase cut to what fits."""
    words = " ".join(_plain(phrase).split())
    if font.getlength(words + score) <= width:
        return words + score
    while words and font.getlength(f"{words}...{score}") > width:
        words = words[: len(words) * 9 // 10]
    return f"{words}...{score}"


def _place(size: Sequence[float], box: Sequence[float], canvas: tuple[int, int], taken: list[Rectangle]) -> Rectangle:
    """Where a label goes: above its box, else inside its top, else below; moved down past labels already there."""
    width, height = size[2] + 6, size[3] + 4
    x = min(max(box[0], 0), max(canvas[0] - width, 0))
    tries = [box[1] - height, box[1], box[3]] + [box[1] + step * height for step in range(1, 6)]
    places = [(x, y, x + width, y + height) for y in (min(max(t, 0), max(canvas[1] - height, 0)) for t in tries)]
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _sorted(box: Sequence[float]) -> Rectangle:
    return min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever is read more easily on a colour."""
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if luminance > 140 else (255, 255, 255)


# ---- one cell of a sheet


@dataclass(frozen=True)
class _Run:
    """Letters of one line: of a phrase (its colour) or of the words between."""

    text: str
    colour: Colour | None


def _cell(sample: Sample) -> Image.Image:
    """Picture, words, and the picture's name, in a column of the sheet."""
    picture = _picture(sample)
    text = _written(sample, _palette(sample))
    font, small = ImageFont.load_default(size=_TEXT), ImageFont.load_default(size=_TEXT - 4)
    lines = _wrapped(text, font)
    cell = Image.new("RGB", (_CELL, picture.height + 8 + (_TEXT + 8) * len(lines) + _TEXT + 4), _PAPER)
    cell.paste(picture, ((_CELL - picture.width) // 2, 0))
    pen, y = ImageDraw.Draw(cell), picture.height + 8
    for line in lines:
        x = 0.0
        for run in line:
            pad, length = (_PAD if run.colour else 0), font.getlength(run.text)
            if run.colour:
                pen.rounded_rectangle((x, y - 2, x + length + 2 * pad, y + _TEXT + 3), 4, fill=run.colour)
            pen.text((x + pad, y - 1), run.text, fill=_ink(run.colour) if run.colour else _INK, font=font)
            x += length + 2 * pad
        y += _TEXT + 8
    drawn = isinstance(sample.picture, Image.Image)
    name = f"sample {sample.image_id}" if drawn else str(sample.picture).replace("\\", "/").rsplit("/", 1)[-1]
    pen.text((0, y - 1), _label(name, "", small, _CELL), fill=_FAINT, font=small)
    return cell


def _picture(sample: Sample) -> Image.Image:
    """The sample's picture at the size of a cell, with its boxes, the large ones below the small ones."""
    try:
        picture = open_any(sample.picture)
    except PictureError as error:
        grey = Image.new("RGB", (_CELL, _CELL * 3 // 4), (220, 220, 220))
        font = ImageFont.load_default(size=_TEXT - 2)
        for number, line in enumerate(_wrapped([_Run(str(error), None)], font)):
            words = "".join(run.text for run in line)
            ImageDraw.Draw(grey).text((8, 8 + number * (_TEXT + 4)), words, fill=_INK, font=font)
        return grey
    factor = _CELL / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    scaled = picture.resize(size, Image.Resampling.LANCZOS)
    _frames(scaled, sample, factor)
    return scaled


def _frames(picture: Image.Image, sample: Sample, factor: float) -> None:
    """Draw a sample's boxes, the large ones below the small ones, and the scores of pseudo-labels."""
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=_TEXT - 4)
    names, palette = _names(sample), _palette(sample)
    boxes = [_sorted(box) for box in (sample.boxes * factor).tolist()]
    order = sorted(range(len(boxes)), key=lambda i: -(boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1]))
    taken: list[Rectangle] = []
    for index in order:
        left, top, right, bottom = boxes[index]
        colour = palette[names[sample.box_phrases[index][0]]]
        # a thin dark line outside lets every colour stand out from every picture; a crowd has that line only
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0))
        if index not in sample.crowd:
            pen.rectangle(boxes[index], outline=colour, width=2)
        if sample.scores:
            text = f"{sample.scores[index]:.2f}"
            place = _place(pen.textbbox((0, 0), text, font=font), boxes[index], picture.size, taken)
            taken.append(place)
            _tag(pen, text, place, colour, font)


def _names(sample: Sample) -> Sequence[str]:
    return sample.prompt.texts if sample.prompt else sample.vocabulary


def _palette(sample: Sample) -> dict[str, Colour]:
    """The colours of what has a box; a phrase whose own colour is near another's here gets a more different one.

    A short vocabulary is coloured as a whole, so that its names have the same colours below every picture.
    """
    names, palette, hues = _names(sample), dict[str, Colour](), list[int]()
    boxed = sorted({index for phrases in sample.box_phrases for index in phrases})
    short = 0 < len(sample.vocabulary) <= 360 // _APART
    for name in sample.vocabulary if short else dict.fromkeys(names[index] for index in boxed):
        own = _number(name) % 360
        turned = [(own + 137 * turn) % 360 for turn in range(12)]  # the golden angle: each turn lands far from the last
        free = (hue for hue in turned if all(min((hue - o) % 360, (o - hue) % 360) >= _APART for o in hues))
        hues.append(next(free, own))
        palette[name] = _shade(name, hues[-1])
    return palette


def _written(sample: Sample, palette: dict[str, Colour]) -> list[_Run]:
    """The words below a picture."""
    prompt = sample.prompt
    if prompt:
        edges = sorted({0, len(prompt.caption), *(edge for p in prompt.phrases for span in p.spans for edge in span)})
        parts = zip(edges, edges[1:], strict=False)
        return [_Run(prompt.caption[start:end], _colour_at(prompt, start, palette)) for start, end in parts]
    if not sample.vocabulary:
        return [_Run(sample.caption, None)]
    times = Counter(sample.vocabulary[index] for phrases in sample.box_phrases for index in phrases)
    if not times:
        return [_Run("no boxes", None)]
    runs = []
    for name, count in times.most_common():
        runs += [_Run(name, palette[name]), _Run(f" x{count}   " if count > 1 else "   ", None)]
    return runs


def _colour_at(prompt: Prompt, place: int, palette: dict[str, Colour]) -> Colour | None:
    """The colour of the shortest phrase with a box over a character, so that a phrase within a phrase is seen."""
    over = [p.text for p in prompt.phrases if p.text in palette and any(start <= place < end for start, end in p.spans)]
    return palette[min(over, key=len)] if over else None


def _wrapped(runs: Sequence[_Run], font: Font) -> list[list[_Run]]:
    """Runs broken at spaces into lines of the width of a cell; what is too much ends in dots."""
    lines: list[list[_Run]] = [[]]
    used = 0.0
    for run in runs:
        for word in re.findall(r"\S+\s*|\s+", _plain(run.text)):
            if used and used + font.getlength(word.rstrip()) + 2 * _PAD > _CELL:
                lines.append([])
                used, word = 0.0, word.lstrip()
            starts = not lines[-1] or lines[-1][-1].colour != run.colour
            used += font.getlength(word) + (2 * _PAD if starts and run.colour else 0)
            lines[-1].append(_Run(word, run.colour))
    if len(lines) > _ROWS:
        lines = [*lines[: _ROWS - 1], [*lines[_ROWS - 1][:-1], _Run("...", None)]]
    return [_joined(line) for line in lines]


def _joined(line: Sequence[_Run]) -> list[_Run]:
    """Neighbours of one colour as one run, so that a phrase is one coloured field; no space at the end."""
    joined: list[_Run] = []
    for run in line:
        if joined and joined[-1].colour == run.colour:
            run = _Run(joined.pop().text + run.text, run.colour)
        joined.append(run)
    return [*joined[:-1], _Run(joined[-1].text.rstrip(), joined[-1].colour)] if joined else []
