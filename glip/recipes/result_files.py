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
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

from PIL import Image

from glip.data.writers import label_row
from glip.errors import DataError
from glip.files import atomic_write
from glip.results import COLUMNS
from glip.structures import Detections, Prompt, Sample
from glip.visualize import save_image

Add = Callable[[Path, Image.Image, Detections], object]
Writer = Callable[[Path, Sequence[Path], Prompt], AbstractContextManager[Add]]
CLASSES = "classes.txt"  # the names of YOLO's class numbers, one a line


def to_record(path: Path, detections: Detections) -> dict[str, Any]:
    """One image's JSON line: boxes are xyxy pixels of the image, labels index ``phrases``, spans the caption."""
    height, width = detections.size
    return {
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


@contextmanager
def write_lines(file: Path, *_: object) -> Iterator[Add]:
    """JSON lines, each as its result comes; to standard output for "-"."""
    if str(file) != "-":
        file.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext(sys.stdout) if str(file) == "-" else file.open("w", encoding="utf-8") as lines:
        yield lambda path, _, found: print(_json(to_record(path, found)), file=lines, flush=True)


@contextmanager
def write_list(file: Path, *_: object) -> Iterator[Add]:
    """The same records as one JSON list."""
    with atomic_write(file) as text:
        before = chain(["["], repeat(","))
        yield lambda path, _, found: text.write(f"{next(before)}\n{_json(to_record(path, found))}")
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


@contextmanager
def write_coco_results(file: Path, images: Sequence[Path], prompt: Prompt) -> Iterator[Add]:
    """A COCO dataset whose annotations have scores; a category for each phrase, numbered from 1 like the images."""
    records, numbers, names, ids = list[Any](), count(1), relative_names(images), range(1, len(prompt.texts) + 1)
    with atomic_write(file) as text:

        def add(path: Path, image: Image.Image, found: Detections) -> None:
            size = {"width": image.width, "height": image.height}
            records.append({"id": len(records) + 1, "file_name": names[path], **size})
            for row in found.to_coco(len(records), ids):
                row |= {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
                number = next(numbers)
                text.write(("," if number > 1 else "") + f"\n{_json({'id': number, **row})}")

        text.write('{"annotations": [')
        yield add
        categories = [{"id": number, "name": name} for number, name in zip(ids, prompt.texts, strict=True)]
        text.write(f'\n],\n"images": {_json(records)},\n"categories": {_json(categories)}}}\n')


@contextmanager
def write_label_set(file: Path, images: Sequence[Path], prompt: Prompt) -> Iterator[Add]:
    """A dataset of our own (``data/labels.py``): names with boxes, or captions; scores make it pseudo-labels."""
    names, root, listed = relative_names(images), common_folder(images), prompt.is_list
    vocabulary, first = prompt.texts if listed else (), iter([{"names": prompt.texts}] if listed else [])
    with atomic_write(file) as text:

        def add(path: Path, image: Image.Image, found: Detections) -> None:
            sample = Sample(
                root / names[path],
                found.boxes.cpu(),
                tuple((label,) for label in found.labels.tolist()),
                vocabulary=vocabulary,
                prompt=None if listed else prompt,
                image_id=names[path],
                size=image.size,
                scores=tuple(found.scores.tolist()),
            )
            text.write(_json(label_row(sample, [root]) | next(first, {})) + "\n")

        yield add


@contextmanager
def write_yolo(folder: Path, images: Sequence[Path], prompt: Prompt) -> Iterator[Add]:
    """A text for each image, also for one without detections, and the names of the classes beside them.

    Raises:
        DataError: the folder holds files of other classes.
    """
    classes, names = folder / CLASSES, output_names(images, folder, ".txt")
    listed = "".join(f"{' '.join(name.split())}\n" for name in prompt.texts)
    if classes.is_file() and classes.read_text(encoding="utf-8") != listed:
        raise DataError(f"{str(folder)!r} holds files of other classes: give another --out, or delete it")
    with atomic_write(classes) as text:
        text.write(listed)

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
    "coco": ("coco.json", write_coco_results),
    "yolo": ("yolo", write_yolo),
    "labels": ("labels.jsonl", write_label_set),
}


def common_folder(images: Sequence[Path]) -> Path:
    """The folder that holds all images, in its sub-folders or itself."""
    return Path(os.path.commonpath([Path(os.path.abspath(path)).parent for path in images]))


def relative_names(images: Sequence[Path]) -> dict[Path, str]:
    """The name of each image in the folder that holds all."""
    root = common_folder(images)
    return {path: Path(os.path.abspath(path)).relative_to(root).as_posix() for path in images}


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


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
