"""The files of ``glip detect``, one writer for each format; all but the JSON lines replace an old file when whole.

A writer is a context manager that gives the function to add one image's detections. It gets the file to write, the
images, and the prompt.
"""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

from PIL import Image

from glip.data.sets import SampleSet
from glip.data.writers import ImageFolders, write_coco, write_labels
from glip.files import atomic_write, begin_run, writing
from glip.results import COLUMNS
from glip.structures import Detections, Prompt, Sample
from glip.visualize import save_image

Add = Callable[[Path, Image.Image, Detections], object]
Writer = Callable[[Path, Sequence[Path], Prompt], AbstractContextManager[Add]]
_ESCAPED = "backslashreplace"  # bytes in a file's name that are no text, as JSON escapes
CLASSES = "classes.txt"  # the names of YOLO's class numbers, one a line


def to_line(path: Path, detections: Detections) -> str:
    """One image's JSON line: boxes are xyxy pixels of the image, labels index ``phrases``, spans the caption."""
    height, width = detections.size
    record = {
        "image": str(path),
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
            }
            for found, phrase in zip(detections, detections.phrases, strict=True)
        ],
    }
    return json.dumps(record, ensure_ascii=False)


@contextmanager
def write_lines(file: Path, *_: object) -> Iterator[Add]:
    """JSON lines, each as its result comes; to standard output for "-"."""
    with (
        writing(file),
        nullcontext(sys.stdout) if str(file) == "-" else file.open("w", encoding="utf-8", errors=_ESCAPED) as lines,
    ):
        yield lambda path, _, found: print(to_line(path, found), file=lines, flush=True)


@contextmanager
def write_list(file: Path, *_: object) -> Iterator[Add]:
    """The same records as one JSON list."""
    with atomic_write(file) as text:
        before = chain(["["], repeat(","))
        yield lambda path, _, found: text.write(f"{next(before)}\n{to_line(path, found)}")
        text.write("\n]\n" if next(before) == "," else "[]\n")


@contextmanager
def write_csv(file: Path, *_: object) -> Iterator[Add]:
    """A row for each detection: the image, its size, then the columns of ``Detections.to_dataframe``."""
    with atomic_write(file) as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("image", "width", "height", *COLUMNS))
        yield lambda path, image, found: table.writerows(
            (path, *image.size, phrase, label, round(score, 4), *(round(value, 2) for value in box))
            for box, score, label, phrase in found
        )


def _write_set(write: Callable[[SampleSet, Path, ImageFolders], object], *, of_names: bool) -> Writer:
    """A dataset; a sentence's is one of captions, or of the names in it."""

    @contextmanager
    def write_set(file: Path, images: Sequence[Path], prompt: Prompt) -> Iterator[Add]:
        samples, listed = list[Sample](), of_names or prompt.is_list
        vocabulary = prompt.texts if listed else ()

        def add(path: Path, image: Image.Image, found: Detections) -> None:
            place, phrases = Path(os.path.abspath(path)), tuple((label,) for label in found.labels.tolist())
            sample = Sample(place, found.boxes.cpu(), phrases, vocabulary, None if listed else prompt, size=image.size)
            scores = tuple(round(score, 4) for score in found.scores.tolist())
            samples.append(replace(sample, image_id=len(samples) + 1, scores=scores))

        yield add
        write(SampleSet(samples, vocabulary), file, [image_folder(images)])

    return write_set


@contextmanager
def write_yolo_texts(folder: Path, images: Sequence[Path], prompt: Prompt) -> Iterator[Add]:
    """A text for each image, also for one without detections, and the names of the classes beside them."""
    names = output_names(images, folder, ".txt")
    begin_run(folder, {"classes": prompt.texts})  # refuses a folder with those of other classes
    with atomic_write(folder / CLASSES) as text:
        text.writelines(f"{' '.join(name.split())}\n" for name in prompt.texts)

    def add(path: Path, _: Image.Image, found: Detections) -> None:
        with atomic_write(names[path]) as text:
            text.write(found.to_yolo())

    yield add


@contextmanager
def write_crops(folder: Path, images: Sequence[Path], _: Prompt) -> Iterator[Add]:
    """The part of the image in each box: FOLDER/PHRASE/IMAGE-NUMBER.png, in the order of the detections."""
    names = output_names(images, folder, ".png")

    def add(path: Path, image: Image.Image, found: Detections) -> None:
        for number, (crop, one) in enumerate(zip(found.crops(image), found, strict=True), start=1):
            phrase = re.sub(r"[^\w-]+", "_", one.phrase).strip("_")[:60] or f"phrase-{one.label}"
            save_image(crop, folder / phrase / f"{names[path].stem}-{number}.png")

    yield add


WRITERS: dict[str, tuple[str, Writer]] = {  # by format: the file or folder, and what writes it
    "jsonl": ("detections.jsonl", write_lines),
    "json": ("detections.json", write_list),
    "csv": ("detections.csv", write_csv),
    "coco": ("coco.json", _write_set(write_coco, of_names=True)),
    "yolo": ("yolo", write_yolo_texts),
    "labels": ("labels.jsonl", _write_set(write_labels, of_names=False)),
}


def image_folder(images: Sequence[Path]) -> Path:
    """The folder that holds all images, in its sub-folders or itself."""
    return Path(os.path.commonpath([Path(os.path.abspath(path)).parent for path in images]))


def output_names(paths: Sequence[Path], folder: Path, ending: str = "") -> dict[Path, Path]:
    """Where each image's file goes: its own name, numbered where two share one or it would replace a given image.

    Without an ``ending`` it is an image, of the same kind where glip writes that.
    """
    names: dict[Path, Path] = {}
    taken = {path.resolve() for path in paths} | {(folder / CLASSES).resolve()}
    for path in paths:
        suffix = ending or (path.suffix if path.suffix.lower() in {".jpg", ".jpeg", ".png"} else ".png")
        name, number = folder / f"{path.stem}{suffix}", 1
        while name.resolve() in taken:
            number += 1
            name = folder / f"{path.stem}-{number}{suffix}"
        taken.add(name.resolve())
        names[path] = name
    return names
