"""Detections drawn into their picture: readable labels, one stable colour for each phrase, any size."""

import colorsys
import os
import tempfile
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from glip.structures import Detections

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
_ROOM = (160, 48)  # a narrower or lower canvas gets a white margin, so that a label can be read


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
        pen.rectangle(place, fill=colour)
        ink = (0, 0, 0) if _luminance(colour) > 140 else (255, 255, 255)
        pen.text((place[0] + 3, place[1] + 1), text, fill=ink, font=font)
    return canvas


def phrase_colour(phrase: str) -> Colour:
    """The colour of a phrase: the same in every picture and every run."""
    number = zlib.crc32(phrase.strip().lower().encode())
    hue = number % 360 / 360
    value = 0.80 + (number >> 9) % 3 * 0.09
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
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


def _label(phrase: str, score: str, font: Font, width: int) -> str:
    """Phrase and score on one line, the phrase cut to what fits; Pillow's own font has no accents."""
    letters = unicodedata.normalize("NFKD", phrase)
    words = " ".join("".join(letter for letter in letters if not unicodedata.combining(letter)).split())
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


def _luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
