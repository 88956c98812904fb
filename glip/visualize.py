"""Detections drawn into their image, samples on one sheet, and curves: a name has one colour in all that is drawn."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from glip import lettering
from glip.data.image import sample_image
from glip.errors import GlipError, ImageError
from glip.files import atomic_write
from glip.lettering import Colour, TextRun, label, letters, line_height, marked, width_of, wrapped
from glip.shapes import Tensor
from glip.structures import Detections, Sample

_ROOM = (160, 48)  # a narrower or lower canvas gets a white margin, so that a label can be read
_CELL, _GAP, _TEXT, _ROWS = 360, 18, 16, 5  # of a sheet: side of an image, space around it, letter size, lines of text
PAPER, _FAINT = (250, 250, 248), (140, 140, 146)  # colours of a sheet
_MASKED = [value * 2 // 5 for value in range(256)]  # how much of a mask's colour covers the image
_HIDDEN, _TAGGED = 0.25, 0.125  # the share of a box under tags that hides it, and the largest share of an image


def draw(image: Image.Image, detections: Detections, *, scores: bool = True, legend: bool = True) -> Image.Image:
    """A copy of the image with frame, tag and mask (if any) of each detection; small images are enlarged.

    Where tags would hide small boxes they are numbers, the labels of the results, and a legend below names them; where
    these hide them too, colours do if they differ. A sentence prompt is written below, each phrase in the colour of its
    boxes, in grey if it has none. The tag of a tracked object has its number: "a car #2".

    Args:
        image: the RGB image the detections belong to.
        detections: boxes in its pixels.
        scores: whether tags carry the score.
        legend: False writes tags also where they hide boxes, so that all frames of a video have one size.
    """
    factor = max(1, round(480 / max(image.size)))
    large = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (max(large.width, _ROOM[0]), max(large.height, _ROOM[1])), (255, 255, 255))
    canvas.paste(large)
    side, labels = min(canvas.size), detections.labels.tolist()
    size = max(11, side // 34)
    boxes, palette = _upright(detections.boxes, factor), lettering.palette(detections.prompt.texts)
    colours = [palette[index] for index in labels]
    for mask, colour in zip([] if detections.masks is None else detections.masks.cpu().numpy(), colours, strict=False):
        shape = Image.fromarray(mask).convert("L").point(_MASKED).resize(large.size)
        canvas.paste(colour, (0, 0, *large.size), shape)
    for box, colour in reversed([*zip(boxes.tolist(), colours, strict=True)]):  # the best on top
        _frame(canvas, box, colour, max(2, side // 200))
    ends = [f" {score:.2f}" if scores else "" for score in detections.scores.tolist()]
    if detections.tracks is not None:
        ends = [f"  #{track} {end}" if track > 0 else end for track, end in zip(detections.tracks, ends, strict=True)]
    tags = [label(found.phrase, end, size, canvas.width - 10) for found, end in zip(detections, ends, strict=True)]
    below = list[list[TextRun]]()
    if lettering.is_sentence(detections.prompt):
        below.append(marked(detections.prompt, dict(zip(labels, colours, strict=True))))
    if not _write_tags(canvas, boxes, tags, colours, size, always=not legend):
        numbered = {index: f"{index} {text}" for index, text in enumerate(detections.prompt.texts)}
        counts = {numbered[index]: count for index, count in sorted(Counter(labels).items())}
        below.append(counted_names(counts, dict(zip(numbered.values(), palette, strict=True))))
        if len(counts) > 1:
            repeated = len(set(colours)) < len(counts)  # then colours alone do not tell names apart
            _write_tags(canvas, boxes, [str(index) for index in labels], colours, size, always=repeated)
    return _captioned(canvas, below, size * 5 // 4) if below else canvas


@dataclass(frozen=True)
class Cell:
    """One image of a sheet: its sample, the colour and the tag ("": none) of each box, and what is written around."""

    sample: Sample
    colours: Sequence[Colour]
    tags: Sequence[str]
    words: Sequence[TextRun]  # below
    heading: str = ""


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """Samples side by side: boxes in the colours of their words, and below each image these words.

    That is its caption with the phrases marked, or the names of its boxes and how often each is there. An image that
    cannot be read is a grey field that says why.
    """
    every = dict.fromkeys(name for sample in samples for name in _names(sample))
    if len(every) > lettering.MOST_APART:
        every = dict.fromkeys(_names(s)[index] for s in samples for own in s.box_phrases for index in own)
    colours = dict(zip(every, lettering.palette(every), strict=True))
    return sheet([_sample_cell(sample, colours) for sample in samples])


def sheet(cells: Sequence[Cell], *, columns: int = 4) -> Image.Image:
    """Cells side by side."""
    drawn = [_drawn(cell) for cell in cells]
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    width = min(len(drawn), columns) * (_CELL + _GAP) + _GAP
    page = Image.new("RGB", (width, sum(max(cell.height for cell in row) + _GAP for row in rows) + _GAP), PAPER)
    y = _GAP
    for row in rows:
        for place, cell in enumerate(row):
            page.paste(cell, (_GAP + place * (_CELL + _GAP), y))
        y += max(cell.height for cell in row) + _GAP
    return page


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image whole or not at all; the format follows the name's ending."""
    form = Image.registered_extensions().get(Path(path).suffix.lower())
    if form is None:
        raise GlipError(f"image {str(path)!r}: unknown ending {Path(path).suffix!r}: use .jpg or .png")
    with atomic_write(path, "wb") as file:
        image.save(file, format=form)


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of a size in inches, its lines in our colours, written whole or not at all at the end."""
    import matplotlib
    from matplotlib import font_manager, rcsetup
    from matplotlib.figure import Figure

    colours = ["#" + bytes(colour).hex() for colour in lettering.COLOURS]
    fonts = [letters(12, file).getname()[0] for file in lettering.system_fonts()]
    for font_file in lettering.system_fonts():
        font_manager.fontManager.addfont(font_file)  # its list may be older than the font
    style: Any = {"axes.prop_cycle": rcsetup.cycler("color", colours)} | {"font.family": ["DejaVu Sans", *fonts]}
    with matplotlib.rc_context(style):
        canvas = Figure(figsize=(width, height), layout="constrained")
        yield canvas
        with atomic_write(path, "wb") as file:
            canvas.savefig(file, dpi=100, format=path.suffix[1:])


def _captioned(image: Image.Image, words: Sequence[Sequence[TextRun]], size: int) -> Image.Image:
    """The image with paragraphs below it, each of which takes as much room as the image at most."""
    margin, pitch = size, line_height(size)
    most = max(_ROWS, image.height // pitch)
    lines = [line for runs in words for line in wrapped(runs, size, image.width - 2 * margin, most)]
    canvas = Image.new("RGB", (image.width, image.height + 2 * margin + pitch * len(lines) - size // 4), PAPER)
    canvas.paste(image)
    lettering.write(canvas, lines, (margin, image.height + margin), size)
    return canvas


# ---- frames and tags


def _upright(boxes: Tensor, factor: float) -> np.ndarray:
    """Boxes in pixels of the canvas, their corners in order."""
    corners = np.sort(np.array(boxes.tolist()).reshape(-1, 2, 2) * factor, axis=1)
    return corners.reshape(-1, 4)


def _frame(canvas: Image.Image, box: Sequence[float], colour: Colour | None, width: int) -> None:
    """A frame within a thin dark line, which lets every colour stand out from every image; None: that line only."""
    pen, (left, top, right, bottom) = ImageDraw.Draw(canvas), box
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0))
    if colour:
        pen.rectangle((left, top, right, bottom), outline=colour, width=width)


def _write_tags(
    canvas: Image.Image,
    boxes: np.ndarray,
    tags: Sequence[str],
    colours: Sequence[Colour],
    size: int,
    always: bool = False,
) -> bool:
    """Write the tags of boxes ("": none) where they hide least; False, and none is written, where that is too much."""
    high = sum(letters(size).getmetrics()) + 2
    sizes = [(width_of(tag, size) + 6, high) if tag else (0, 0) for tag in tags]
    places = _places(boxes, sizes, canvas.size)
    hidden = _covered(boxes, places).sum(1) > _HIDDEN
    share = _areas(places).sum() / (canvas.width * canvas.height)
    if not always and (hidden.sum() > len(boxes) / 20 or share > _TAGGED):
        return False
    pen = ImageDraw.Draw(canvas)
    for place, tag, colour in [*zip(places.tolist(), tags, colours, strict=True)][::-1]:
        if tag:
            pen.rectangle(place, fill=colour)
            lettering.put(pen, (place[0] + 3, place[1] + 1), tag, size, lettering.ink(colour))
    return True


def _places(boxes: np.ndarray, sizes: Sequence[tuple[float, float]], canvas: tuple[int, int]) -> np.ndarray:
    """Where tags go: above, below, beside or in their box, where they cover least of other tags and of boxes."""
    placed = np.zeros((0, 4))
    for (left, top, right, bottom), (width, height) in zip(boxes, sizes, strict=True):
        x = np.array([left, right - width, left, right - width, left, right, left - width, left])
        y = np.array([top - height, top - height, bottom, bottom, top, top, top, bottom - height])
        x, y = x.clip(0, max(canvas[0] - width, 0)), y.clip(0, max(canvas[1] - height, 0))
        tries = np.stack([x, y, x + width, y + height], axis=1)
        cost = 4 * _covered(placed, tries).sum(0) + _covered(boxes, tries).sum(0)
        placed = np.concatenate([placed, tries[[cost.round(3).argmin()]]])
    return placed


def _covered(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of each box (rows) under each of the others (columns)."""
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = (np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - corner).clip(0)
    return sides.prod(2) / _areas(boxes)[:, None].clip(1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


# ---- one cell of a sheet


def _names(sample: Sample) -> Sequence[str]:
    return sample.prompt.texts if sample.prompt else sample.vocabulary


def _sample_cell(sample: Sample, colours: Mapping[str, Colour]) -> Cell:
    """Boxes in the colours of their names, tagged with the scores of pseudo-labels."""
    names = _names(sample)
    own = [colours[names[phrases[0]]] for phrases in sample.box_phrases]
    boxed = Counter(index for phrases in sample.box_phrases for index in phrases)
    words = [TextRun(sample.caption or "no boxes", None)]
    if sample.prompt and lettering.is_sentence(sample.prompt):
        words = marked(sample.prompt, {index: colours[names[index]] for index in boxed})
    elif boxed:
        words = counted_names({names[index]: count for index, count in boxed.most_common()}, colours)
    return Cell(sample, own, [f"{score:.2f}" for score in sample.scores] or [""] * len(own), words)


def counted_names(counts: Mapping[str, int], colours: Mapping[str, Colour]) -> list[TextRun]:
    """Names in their colours, each with its count."""
    ends = {name: f"\u00a0x{count}   " if count > 1 else "   " for name, count in counts.items()}
    runs = ((TextRun(name.replace(" ", "\u00a0"), colours[name]), TextRun(end, None)) for name, end in ends.items())
    return [run for pair in runs for run in pair]


def _drawn(cell: Cell) -> Image.Image:
    """Heading, image, words, and the image's name, in a column of the sheet."""
    sample, small = cell.sample, _TEXT - 4
    start = line_height(_TEXT) if cell.heading else 0
    image, lines = _image(cell), wrapped(cell.words, _TEXT, _CELL, _ROWS)
    top = start + image.height + 8
    end = top + line_height(_TEXT) * len(lines)
    column = Image.new("RGB", (_CELL, end + _TEXT + 4), PAPER)
    column.paste(image, ((_CELL - image.width) // 2, start))
    lettering.write(column, [[TextRun(cell.heading, None)]], (0, 2), _TEXT)
    lettering.write(column, lines, (0, top), _TEXT)
    drawn = isinstance(sample.image, Image.Image)
    name = f"sample {sample.image_id}" if drawn else str(sample.image).replace("\\", "/").rsplit("/", 1)[-1]
    lettering.put(ImageDraw.Draw(column), (0, end - 1), label(name, "", small, _CELL), small, _FAINT)
    return column


def _image(cell: Cell) -> Image.Image:
    """At the size of a cell, with boxes, the large ones below the small ones, and tags where they hide no box."""
    sample = cell.sample
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
    boxes = _upright(sample.boxes, factor)
    for index in np.argsort(-_areas(boxes), kind="stable").tolist():
        _frame(image, boxes[index].tolist(), None if index in sample.crowd else cell.colours[index], 2)
    _write_tags(image, boxes, cell.tags, cell.colours, _TEXT - 4)
    return image
