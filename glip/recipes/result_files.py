"""The files of ``glip detect``, one writer for each format; all but the JSON lines replace an old file when whole.

A writer is a context manager that gives the function to add one image's detections. It gets the file to write, the
images, and the prompt.
"""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from glip.data.sets import SampleSet
from glip.data.video import is_video, video_header, write_video
from glip.data.writers import ImageFolders, write_coco, write_labels
from glip.data.yolo import place_image, yolo_table
from glip.files import atomic_write, begin_run, exclusive, file_name, remove_partials, writing
from glip.recipes.detect_config import DetectConfig
from glip.results import COLUMNS
from glip.structures import Detections, Prompt, Sample
from glip.visualize import draw, save_image

Source = Path | str  # a file; a URL or a webcam's number


class Item(NamedTuple):
    """One image to detect in; ``frame`` and ``time`` (in seconds) of one that is a frame of a video."""

    source: Source
    image: Image.Image
    frame: int | None = None
    time: float = 0.0


Add = Callable[[Item, Detections], object]
Writer = Callable[[Path, Sequence[Source], Prompt], AbstractContextManager[Add]]
RESULTS = "results"  # the folder of files beside the drawn images, which no dataset's reader takes for its images
_ESCAPED = "backslashreplace"  # bytes in a file's name that are no text, as JSON escapes
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # the beginnings that OWASP lists
CLASSES = "classes.txt"  # the names of YOLO's class numbers, one a line


def to_line(item: Item, detections: Detections) -> str:
    """One image's JSON line: boxes are xyxy pixels of the image, labels index ``phrases``, spans the caption.

    A frame has its number and time too, a tracked object the number of its track, one with a mask
    its run lengths.
    """
    (height, width), masks = detections.size, detections.to_rle() or [{}] * len(detections)
    record = {
        "image": str(item.source),
        **({} if item.frame is None else {"frame": item.frame, "time": round(item.time, 3)}),
        "width": width,
        "height": height,
        "caption": detections.prompt.caption,
        "phrases": list(detections.prompt.texts),
        "detections": [
            {
                "box": [round(value, 2) for value in found.box],
                "score": round(found.score, 4),
                "label": found.label,
                "phrase": found.phrase,
                "spans": [list(span) for span in phrase.spans],
                **({} if detections.tracks is None else {"track": track}),
                **({"mask": mask} if mask else {}),
            }
            for found, phrase, track, mask in zip(
                detections, detections.phrases, _tracks(detections), masks, strict=True
            )
        ],
    }
    return json.dumps(record, ensure_ascii=False)


def _tracks(detections: Detections) -> list[int | None]:
    """The track of each detection, if any."""
    tracks = [-1] * len(detections) if detections.tracks is None else detections.tracks.tolist()
    return [track if track > 0 else None for track in tracks]


@contextmanager
def write_lines(file: Path, *_: object) -> Iterator[Add]:
    """JSON lines, each as its result comes; to standard output for "-"."""
    with (
        writing(file),
        nullcontext(sys.stdout) if str(file) == "-" else file.open("w", encoding="utf-8", errors=_ESCAPED) as lines,
    ):
        yield lambda item, found: print(to_line(item, found), file=lines, flush=True)


@contextmanager
def write_list(file: Path, *_: object) -> Iterator[Add]:
    """The same records as one JSON list."""
    with atomic_write(file) as text:
        before = chain(["["], repeat(","))
        yield lambda item, found: text.write(f"{next(before)}\n{to_line(item, found)}")
        text.write("\n]\n" if next(before) == "," else "[]\n")


@contextmanager
def write_csv(file: Path, sources: Sequence[Source], _: Prompt) -> Iterator[Add]:
    """A row for each detection: the image, its size, then the columns of ``Detections.to_dataframe``.

    With a video among the sources also frame and time, before the size, and at the end the track. A text that a
    spreadsheet would run as a formula gets ' in front, as does one that is such a text with ' before it.
    """
    timed = any(map(is_video, sources))
    with atomic_write(file) as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("image", *("frame", "time") * timed, "width", "height", *COLUMNS, *("track",) * timed))

        def add(item: Item, found: Detections) -> None:
            frame = (None, None) if item.frame is None else (item.frame, round(item.time, 3))
            start = (_safe(str(item.source)), *frame * timed, *item.image.size)
            for (box, score, label, phrase), track in zip(found, _tracks(found), strict=True):
                row: tuple[Any, ...] = (_safe(phrase), label, round(score, 4), *(round(value, 2) for value in box))
                table.writerow((*start, *row, *(track,) * timed))

        yield add


def _safe(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) else text


def _write_set(write: Callable[[SampleSet, Path, ImageFolders], object], *, of_names: bool) -> Writer:
    """A dataset; a sentence's is one of captions, or of the names in it."""

    @contextmanager
    def write_set(file: Path, images: Sequence[Source], prompt: Prompt) -> Iterator[Add]:
        samples, listed = list[Sample](), of_names or prompt.is_list
        vocabulary = prompt.texts if listed else ()

        def add(item: Item, found: Detections) -> None:
            place, phrases = Path(os.path.abspath(item.source)), tuple((label,) for label in found.labels.tolist())
            words, size = None if listed else prompt, found.size[::-1]
            sample = Sample(place, found.boxes.cpu(), phrases, vocabulary, words, size=size)
            scores = tuple(round(score, 4) for score in found.scores.tolist())
            masks = tuple(found.to_rle())
            samples.append(replace(sample, image_id=len(samples) + 1, scores=scores, masks=masks))

        yield add
        write(SampleSet(samples, vocabulary), file, [image_folder(images)])

    return write_set


@contextmanager
def write_yolo_texts(folder: Path, images: Sequence[Source], prompt: Prompt) -> Iterator[Add]:
    """A text for each image, also for one without detections, with a link to it, and the names of the classes."""
    names = output_names(images, folder, ".txt")
    begin_run(folder, {"classes": prompt.texts})  # refuses a folder with those of other classes
    with atomic_write(folder / CLASSES) as text:
        text.writelines(f"{' '.join(name.split())}\n" for name in prompt.texts)
    with atomic_write(folder / "data.yaml") as text:
        text.write(yolo_table(prompt.texts, "."))

    def add(item: Item, found: Detections) -> None:
        source, file = Path(item.source), names[item.source]
        place_image(source, file.with_suffix(source.suffix))
        with atomic_write(file) as text:
            text.write(found.to_yolo())

    yield add


@contextmanager
def write_crops(folder: Path, images: Sequence[Source], prompt: Prompt) -> Iterator[Add]:
    """The part of the image in each box: FOLDER/PHRASE/IMAGE[-FRAME]-NUMBER.png, in the order of the detections."""
    names, phrases = output_names(images, folder, ".png"), list[str]()
    for text in prompt.texts:
        phrases.append(file_name("_".join(text.split()), phrases))

    def add(item: Item, found: Detections) -> None:
        name = names[item.source].stem + ("" if item.frame is None else f"-{item.frame:06}")
        for number, (crop, one) in enumerate(zip(found.crops(item.image), found, strict=True), start=1):
            save_image(crop, folder / phrases[one.label] / f"{name}-{number}.png")

    yield add


@contextmanager
def write_drawn(names: Mapping[Source, Path], scores: bool) -> Iterator[Add]:
    """The drawn images; the frames of a video become a video, which appears when its last frame is written."""
    with ExitStack() as video:
        begun = dict[Source, Callable[[Image.Image, float], None]]()  # the videos, of which the last one is open

        def add(item: Item, found: Detections) -> None:
            drawn, file = draw(item.image, found, scores=scores, legend=item.frame is None), names[item.source]
            if item.frame is not None and item.source not in begun:
                video.close()
                begun[item.source] = video.enter_context(write_video(file, video_header(item.source).rate))
            write = begun.get(item.source, lambda image, _: save_image(image, file))
            write(drawn, item.time)

        yield add


WRITERS: dict[str, tuple[str, Writer]] = {  # by format: the file or folder, and what writes it
    "jsonl": ("detections.jsonl", write_lines),
    "json": ("detections.json", write_list),
    "csv": ("detections.csv", write_csv),
    "coco": ("coco.json", _write_set(write_coco, of_names=True)),
    "yolo": ("yolo", write_yolo_texts),
    "labels": ("labels.jsonl", _write_set(write_labels, of_names=False)),
}


def result_files(config: DetectConfig) -> dict[Path, Writer]:
    """What is written beside the drawn images, and where."""
    files = {Path(config.out, RESULTS, name): write for form, (name, write) in WRITERS.items() if form in config.format}
    files = {Path("-"): write_lines} if config.out == "-" else files
    return files | ({Path(config.crops): write_crops} if config.crops else {})


@contextmanager
def open_writers(
    config: DetectConfig, sources: Sequence[Source], asked: Prompt, drawn: Mapping[Source, Path]
) -> Iterator[list[Add]]:
    """What adds an image to each file; no other run writes results to the same folder meanwhile.

    Args:
        config: which files are written.
        sources: all that will be added.
        asked: what is looked for.
        drawn: the file of each drawn image; {} where none is drawn.
    """
    files = result_files(config)
    for file in [*files, *list(drawn.values())[:1]]:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)  # refused here, where it cannot be
    remove_partials(config.out)
    with ExitStack() as stack:
        if any(file.parent.name == RESULTS for file in files):
            stack.enter_context(exclusive(Path(config.out, RESULTS)))
        writers = [stack.enter_context(write(file, sources, asked)) for file, write in files.items()]
        yield writers + ([stack.enter_context(write_drawn(drawn, config.scores))] if drawn else [])


def image_folder(images: Sequence[Source]) -> Path:
    """The folder that holds all images, in its sub-folders or itself."""
    return Path(os.path.commonpath([Path(os.path.abspath(path)).parent for path in images]))


def output_names(sources: Sequence[Source], folder: Path, ending: str = "") -> dict[Source, Path]:
    """Where each image's file goes: its own name, numbered where two share one or it would replace a given image.

    Without an ``ending`` it is an image, of the same kind where glip writes that, or a video.
    """
    names: dict[Source, Path] = {}
    taken = {_folded(Path(source)) for source in sources} | {_folded(folder / CLASSES)}
    for source in sources:
        path = Path(source)
        own = path.suffix if path.suffix.lower() in {".jpg", ".jpeg", ".png"} else ".png"
        suffix, stem = ending or (".mp4" if is_video(source) else own), path.stem
        stem = file_name(stem) if isinstance(source, str) else stem  # of a URL
        name, number = folder / f"{stem}{suffix}", 1
        while _folded(name) in taken:
            number += 1
            name = folder / f"{stem}-{number}{suffix}"
        taken.add(_folded(name))
        names[source] = name
    return names


def _folded(path: Path) -> str:
    """A path as systems compare it that ignore the case of letters."""
    return str(path.resolve()).casefold()
