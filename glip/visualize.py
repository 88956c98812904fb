"""Detections drawn into their image, and samples on one sheet: one stable colour for each phrase, any size."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from glip import lettering
from glip.data.image import sample_image
from glip.errors import GlipError, ImageError
from glip.files import atomic_write
from glip.lettering import Colour, Font, TextRun, label, letters, line_height, marked, phrase_colour, wrapped
from glip.structures import Detections, Sample

Rectangle = tuple[float, float, float, float]
_ROOM = (160, 48)  # a narrower or lower canvas gets a white margin, so that a label can be read
_CELL, _GAP, _TEXT, _ROWS = 360, 18, 16, 5  # of a sheet: side of an image, space around it, letter size, lines of text
_PAPER, _FAINT = (250, 250, 248), (140, 140, 146)


def draw(image: Image.Image, detections: Detections, *, scores: bool = True) -> Image.Image:
    """A copy of the image with a frame and a label for each detection; small images are enlarged to be readable.

    A sentence prompt is written below, each phrase in the colour of its boxes, in grey if it has none.

    Args:
        image: the RGB image the detections belong to.
        detections: boxes in its pixels.
        scores: whether labels carry the score.
    """
    factor = max(1, round(480 / max(image.size)))
    large = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (max(large.width, _ROOM[0]), max(large.height, _ROOM[1])), (255, 255, 255))
    canvas.paste(large)
    pen = ImageDraw.Draw(canvas)
    side = min(canvas.size)
    line, size = max(2, side // 200), max(11, side // 34)
    font = letters(size)
    sentence = lettering.is_sentence(detections.prompt)
    texts, boxed = detections.prompt.texts, set(detections.labels.tolist())
    colours = _colours(texts, boxed, all_of=len(texts) <= lettering.MOST_APART) if sentence else {}
    palette = {index: colour for index, colour in colours.items() if index in boxed}
    drawn = [
        (found, [value * factor for value in found.box], palette.get(found.label) or phrase_colour(found.phrase))
        for found in detections
    ]
    for _, box, colour in reversed(drawn):  # the best on top
        pen.rectangle(_sorted(box), outline=colour, width=line)
    taken: list[Rectangle] = []
    for found, box, colour in drawn:
        text = label(found.phrase, f" {found.score:.2f}" if scores else "", font, canvas.width - 10)
        _draw_label(canvas, text, box, colour, font, taken)
    return _captioned(canvas, marked(detections.prompt, palette), size * 5 // 4) if sentence else canvas


def contact_sheet(samples: Sequence[Sample], *, columns: int = 4) -> Image.Image:
    """Samples side by side: boxes in the colours of their words, and below each image these words.

    That is its caption with the phrases marked, or the names of its boxes and how often each is there. An image that
    cannot be read is a grey field that says why.
    """
    cells = [_sheet_cell(sample) for sample in samples]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = min(len(cells), columns) * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(max(cell.height for cell in row) + _GAP for row in rows) + _GAP), _PAPER)
    y = _GAP
    for row in rows:
        for place, cell in enumerate(row):
            sheet.paste(cell, (_GAP + place * (_CELL + _GAP), y))
        y += max(cell.height for cell in row) + _GAP
    return sheet


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image whole or not at all; the format follows the name's ending."""
    form = Image.registered_extensions().get(Path(path).suffix.lower())
    if form is None:
        raise GlipError(f"image {str(path)!r}: unknown ending {Path(path).suffix!r}: use .jpg or .png")
    with atomic_write(path, "wb") as file:
        image.save(file, format=form)


def _colours(names: Sequence[str], boxed: set[int], *, all_of: bool) -> dict[int, Colour]:
    """The colours of the names (indices) that have a box; or ``all_of`` few names, the same in every image."""
    own = range(len(names)) if all_of else sorted(boxed)
    return dict(zip(own, lettering.palette(names[index] for index in own), strict=True))


def _captioned(image: Image.Image, words: Sequence[TextRun], size: int) -> Image.Image:
    """The image with words below it, which take as much room as the image at most."""
    margin, pitch = size, line_height(size)
    lines = wrapped(words, size, image.width - 2 * margin, max(_ROWS, image.height // pitch))
    canvas = Image.new("RGB", (image.width, image.height + 2 * margin + pitch * len(lines) - size // 4), _PAPER)
    canvas.paste(image)
    lettering.write(canvas, lines, (margin, image.height + margin), size)
    return canvas


def _draw_label(
    canvas: Image.Image, text: str, box: Sequence[float], colour: Colour, font: Font, taken: list[Rectangle]
) -> None:
    """Write the label of a box where no other label is, and add its place to those taken."""
    pen = ImageDraw.Draw(canvas)
    place = _place(pen.textbbox((0, 0), text, font=font), box, canvas.size, taken)
    taken.append(place)
    pen.rectangle(place, fill=colour)
    pen.text((place[0] + 3, place[1] + 1), text, fill=lettering.ink(colour), font=font)


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


# ---- one cell of a sheet


def _sheet_cell(sample: Sample) -> Image.Image:
    """Image, words, and the image's name, in a column of the sheet."""
    palette = _palette(sample)
    image, lines = _image(sample, palette), wrapped(_text_below(sample, palette), _TEXT, _CELL, _ROWS)
    top, end = image.height + 8, image.height + 8 + line_height(_TEXT) * len(lines)
    cell = Image.new("RGB", (_CELL, end + _TEXT + 4), _PAPER)
    cell.paste(image, ((_CELL - image.width) // 2, 0))
    lettering.write(cell, lines, (0, top), _TEXT)
    drawn, small = isinstance(sample.image, Image.Image), letters(_TEXT - 4)
    name = f"sample {sample.image_id}" if drawn else str(sample.image).replace("\\", "/").rsplit("/", 1)[-1]
    ImageDraw.Draw(cell).text((0, end - 1), label(name, "", small, _CELL), fill=_FAINT, font=small)
    return cell


def _image(sample: Sample, palette: dict[int, Colour]) -> Image.Image:
    """At the size of a cell, with boxes, the large ones below the small ones, and the scores of pseudo-labels."""
    try:
        image = sample_image(sample)
    except ImageError as error:
        grey = Image.new("RGB", (_CELL, _CELL * 3 // 4), (220, 220, 220))
        said = wrapped([TextRun(str(error), None)], _TEXT - 2, _CELL - 16, _ROWS)
        lettering.write(grey, said, (8, 8), _TEXT - 2)
        return grey
    factor = _CELL / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    pen, font = ImageDraw.Draw(image), letters(_TEXT - 4)
    boxes = [_sorted(box) for box in (sample.boxes * factor).tolist()]
    taken: list[Rectangle] = []
    for index in sorted(range(len(boxes)), key=lambda i: -(boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1])):
        left, top, right, bottom = boxes[index]
        colour = palette[sample.box_phrases[index][0]]
        # a thin dark line outside lets every colour stand out from every image; a crowd has that line only
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0))
        if index not in sample.crowd:
            pen.rectangle(boxes[index], outline=colour, width=2)
        if sample.scores:
            _draw_label(image, f"{sample.scores[index]:.2f}", boxes[index], colour, font, taken)
    return image


def _palette(sample: Sample) -> dict[int, Colour]:
    """The colours of what has a box; of a short vocabulary all, so that they are the same below every image."""
    names = sample.prompt.texts if sample.prompt else sample.vocabulary
    boxed = {index for phrases in sample.box_phrases for index in phrases}
    return _colours(names, boxed, all_of=0 < len(sample.vocabulary) <= lettering.MOST_APART)


def _text_below(sample: Sample, palette: dict[int, Colour]) -> list[TextRun]:
    """The words below an image."""
    if sample.prompt:
        return marked(sample.prompt, palette)
    if not sample.vocabulary:
        return [TextRun(sample.caption, None)]
    times = Counter(index for phrases in sample.box_phrases for index in phrases)
    if not times:
        return [TextRun("no boxes", None)]
    runs = []
    for index, count in times.most_common():
        often = f" x{count}   " if count > 1 else "   "
        runs += [TextRun(sample.vocabulary[index], palette[index]), TextRun(often, None)]
    return runs
