"""Label Studio's export ("JSON"): what people drew, or corrected of a teacher's boxes.

Tasks that ``glip data convert --to label-studio`` wrote come back with their captions, spans and ids. Tasks of other
projects with rectangles are a detection set, whose names are all labels of the file. Coordinates are per cent of the
image; a turned rectangle becomes the upright one around it.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from glip.data.image import image_size
from glip.data.label_studio import CROWD, LOCAL_FILES
from glip.data.readers.fields import InvalidRecord, is_text, is_visible, parse_json, read_image, read_size, sample_set
from glip.data.readers.labels import read_names, sample_of_row
from glip.data.sets import Folders, SampleSet, SkipCounter
from glip.errors import DataError, ImageError
from glip.structures import Sample

SHORT_EXPORT = "annotation_id"  # a key of JSON-MIN's tasks, which hold the image and one answer, without its type

Row = dict[str, Any]
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
_FARTHEST = 1e6  # per cent, or degrees


@dataclass(frozen=True)
class _Answer:
    """What is believed of a task: the rows of its ``result``; scored: they are a model's."""

    rows: list[Row]
    scored: bool


def read_label_studio(annotations: str | Path, images: Sequence[str | Path]) -> SampleSet:
    """Read Label Studio's JSON export, or tasks made for its import.

    Of a task the annotation counts that is marked as ground truth, else the one last changed. Predictions count
    where there is no annotation at all, with their scores; a task that people skipped is left out.

    Args:
        annotations: the json, a list of tasks.
        images: folders of the images.

    Raises:
        FileNotFoundError: the file or a folder is not there.
        ValueError: not such a list, or no task of it can be used.
    """
    path, tally = Path(annotations), SkipCounter()
    tasks = parse_json(path)
    if not isinstance(tasks, list) or any(SHORT_EXPORT in _map(task) for task in tasks[:1]):
        raise DataError(f"{path}: not Label Studio's JSON, a list of tasks: export the project as JSON, not JSON-MIN")
    lists: dict[tuple[str, ...], None] = {}
    found = sample_set(path, _read(tasks, Folders(images or [path.parent]), tally, lists), tally)
    return SampleSet(found.samples, next(iter(lists)) if len(lists) == 1 else (), tally)


def _read(
    tasks: list[Any], folders: Folders, tally: SkipCounter, lists: dict[tuple[str, ...], None]
) -> Iterator[Sample]:
    names = _all_labels(tasks)
    for number, task in enumerate(tasks):
        place = f"tasks[{number}]"
        try:
            sample = _sample(_map(task), names, folders, place, tally)
        except InvalidRecord as reason:
            tally.add(str(reason), place)
            continue
        lists[sample.vocabulary] = None
        yield sample


def _sample(task: Row, names: tuple[str, ...], folders: Folders, place: str, tally: SkipCounter) -> Sample:
    data = _map(task.get("data"))
    answer = _answer(task, place, tally)
    ours = isinstance(data.get("glip"), dict)
    row = dict(data["glip"]) if ours else {"image": _image_name(data), "id": task.get("id")}
    if ours:
        labels = {str(option.get("value")): index for index, option in enumerate(_maps(data.get("labels")))}
        names = read_names(row["names"]) if "names" in row else ()
    else:
        labels = {name: index for index, name in enumerate(names)}
    size = read_size(row) or _size(answer.rows, folders, row)
    row |= {"width": size[0], "height": size[1]} if size else {}
    row["boxes"] = list(_boxes(answer, labels, size or (0, 0), place, tally))
    return sample_of_row(row, names, folders, place, tally)


def _answer(task: Row, place: str, tally: SkipCounter) -> _Answer:
    people, models = _maps(task.get("annotations", task.get("completions"))), _maps(task.get("predictions"))
    whole = [answer for answer in people if answer.get("was_cancelled") is not True]
    if people and not whole:
        raise InvalidRecord("task that people skipped")
    if not whole and not models:
        raise InvalidRecord("task without annotation and prediction")
    chosen = whole or models
    best = max(enumerate(chosen), key=lambda item: (item[1].get("ground_truth") is True, _changed(item[1]), item[0]))[1]
    if len(chosen) > 1:
        kind = "annotation" if whole else "prediction"
        tally.add(f"{kind} of a task that has a later one or one marked as ground truth", place, len(chosen) - 1)
    return _Answer(_maps(best.get("result")), scored=not whole)


def _changed(answer: Row) -> str:
    return str(answer.get("updated_at") or answer.get("created_at") or "")


def _boxes(
    answer: _Answer, labels: dict[str, int], size: tuple[int, int], place: str, tally: SkipCounter
) -> Iterator[Row]:
    for row in answer.rows:
        value = _map(row.get("value"))
        if row.get("type") != "rectanglelabels":
            tally.add("mark that is no labelled rectangle", place)
        elif row.get("image_rotation"):
            tally.add("box on an image that was turned in Label Studio", place)
        else:
            own = [labels[label] for label in _labels(row) if label in labels]
            box: Row = {"box": _upright(value, size), "phrases": own}
            remarks = _map(row.get("meta")).get("text")
            box |= {"crowd": True} if isinstance(remarks, list) and CROWD in remarks else {}
            yield box | ({"score": row["score"]} if answer.scored and "score" in row else {})


def _upright(value: Row, size: tuple[int, int]) -> list[float]:
    """The box in pixels, [] where it is none; x and y are the corner around which a rectangle is turned clockwise."""
    x, y, width, height, turn = (_number(value.get(key)) for key in ("x", "y", "width", "height", "rotation"))
    if any(map(math.isnan, (x, y, width, height))):
        return []
    left, top, across, down = (part * side / 100 for part, side in zip((x, y, width, height), size * 2, strict=True))
    if not turn or math.isnan(turn):
        return [left, top, left + across, top + down]
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    xs = [left + a * across * cos - b * down * sin for a in (0, 1) for b in (0, 1)]
    ys = [top + a * across * sin + b * down * cos for a in (0, 1) for b in (0, 1)]
    return [min(xs), min(ys), max(xs), max(ys)]


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and abs(value) < _FARTHEST else math.nan


def _size(rows: Sequence[Row], folders: Folders, row: Row) -> tuple[int, int] | None:
    """Of a task that does not state it: as its boxes state it, else of the image itself."""
    stated = (read_size({"width": one.get("original_width"), "height": one.get("original_height")}) for one in rows)
    if size := next((size for size in stated if size), None):
        return size
    if not rows:
        return None
    try:
        return image_size(read_image(folders, row.get("image")))
    except ImageError:
        raise InvalidRecord("boxes in per cent of an image that cannot be read") from None


def _image_name(data: Row) -> str:
    """The name of a task's image: of a local file, an upload, or a path in a bucket or on the web."""
    values = [data.get("image"), *data.values()]
    link = next((value for value in values if is_text(value) and PurePosixPath(value).suffix), "")
    try:
        parts = urlsplit(link)
        served = parse_qs(parts.query).get("d", [""])[0] if parts.path.endswith(LOCAL_FILES) else ""
    except ValueError:
        raise InvalidRecord("image whose address is none") from None
    name = served or unquote(parts.path)
    if "/upload/" in name:
        name = _UPLOADED.sub("", PurePosixPath(name).name)
    return name.lstrip("/")


def _all_labels(tasks: list[Any]) -> tuple[str, ...]:
    """The labels of tasks that glip did not write, in order of appearance."""
    found: dict[str, None] = {}
    for task in map(_map, tasks):
        if isinstance(_map(task.get("data")).get("glip"), dict):
            continue
        for answer in [*_maps(task.get("annotations", task.get("completions"))), *_maps(task.get("predictions"))]:
            rows = (row for row in _maps(answer.get("result")) if row.get("type") == "rectanglelabels")
            found |= {label: None for row in rows for label in _labels(row)}
    return tuple(found)


def _labels(row: Row) -> list[str]:
    given = _map(row.get("value")).get("rectanglelabels")
    return [label for label in given if is_text(label) and is_visible(label)] if isinstance(given, list) else []


def _map(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _maps(value: Any) -> list[Row]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
