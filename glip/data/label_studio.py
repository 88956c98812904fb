"""Label Studio: tasks for its import, to be corrected by people, and its export ("JSON") read back.

A task shows the image, its caption, and one label for each phrase (or name). A teacher's boxes become predictions
with scores, people's boxes become annotations. The sample without its boxes is stored in ``data.glip`` as a line of a
label file (spans and all), and label i of ``data.labels`` is phrase i of it, so that nothing is lost. Tasks of other
projects with rectangles are a detection dataset, whose names are all labels of the file. Coordinates are per cent of
the image; a turned rectangle becomes the upright one around it.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from glip.data.image import size_if_readable
from glip.data.labels import read_names, sample_of_row
from glip.data.records import as_list, as_map, is_number, is_text, is_visible, pack_sample_set, parse_file, read_size
from glip.data.sets import Folders, Row, SampleSet, SkipCounter, require
from glip.data.writers import ImageFolders, cut_box, each_row, image_name, label_row
from glip.files import atomic_write
from glip.lettering import palette
from glip.structures import Sample

SHORT_EXPORT = "annotation_id"  # a key of JSON-MIN's tasks, which hold the image and one answer, without its type
LOCAL_FILES = "/data/local-files/"  # where Label Studio serves files of its own machine, as ?d=<path under its root>
_CROWD = "crowd"  # the remark at a box that marks a group
_RECTANGLE = "rectanglelabels"
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
_INTERFACE = """<View>
  <Header value="$caption"/>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="phrase" toName="image" value="$labels" choice="{choice}" canRotate="false"/>
</View>
"""


def write_label_studio(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write tasks for Label Studio's import, and the labelling interface beside them (``interface_of``).

    Arguments and result as for ``write_coco``. Label Studio has to serve the image folders: its
    LOCAL_FILES_DOCUMENT_ROOT is the folder above, and each is added to the project as a local storage.
    """
    path, lost = Path(path), SkipCounter()
    with atomic_write(path) as file:
        file.write("[")
        for number, task in enumerate(each_row(samples, lambda sample: _task(sample, images, lost), lost)):
            file.write((",\n" if number else "\n") + json.dumps(task))
        file.write("\n]\n")
    several = any(len(phrases) > 1 for sample in samples.samples for phrases in sample.box_phrases)
    with atomic_write(interface_of(path)) as file:
        file.write(_INTERFACE.format(choice="multiple" if several else "single"))
    return lost


def interface_of(path: Path) -> Path:
    """The file of the labelling interface of tasks: ``tasks.json`` has ``tasks_interface.xml``."""
    return path.with_name(f"{path.stem}_interface.xml")


def _task(sample: Sample, images: ImageFolders, lost: SkipCounter) -> Row:
    texts = [phrase.text for phrase in sample.prompt.phrases] if sample.prompt else list(sample.vocabulary)
    require(texts, "caption without phrases")
    name, row = image_name(sample, images, "Label Studio"), label_row(sample, images)
    assert isinstance(sample.image, Path)
    size = sample.size or size_if_readable(sample.image)
    require(size, "image that cannot be read")
    width, height = size or (0, 0)
    labels = _distinct(texts)
    results = list(_results(row.pop("boxes"), labels, width, height, lost))
    row |= {"width": width, "height": height} | ({"names": texts} if not sample.prompt else {})
    # the path under Label Studio's root, which has to be above the folder of the images
    root = sample.image.absolute().parents[len(PurePosixPath(name).parts) - 1]
    colours = ("#" + bytes(colour).hex() for colour in palette(labels))
    data = {
        "image": f"{LOCAL_FILES}?d={quote(os.fsencode(f'{root.name}/{name}'))}",
        "caption": row.get("caption", ""),
        "labels": [{"value": label, "background": colour} for label, colour in zip(labels, colours, strict=True)],
        "glip": row,
    }
    if not sample.scores:
        return {"data": data, "annotations": [{"result": results}]}
    score = sum(sample.scores) / len(sample.scores)
    return {"data": data, "predictions": [{"model_version": "glip", "score": score, "result": results}]}


def _distinct(texts: Sequence[str]) -> list[str]:
    """Labels that differ: the second "a man" of a caption becomes "a man #2"."""
    labels: dict[str, None] = {}
    for text in texts:
        numbered = chain([text], (f"{text} #{number}" for number in count(2)))
        labels[next(label for label in numbered if label not in labels)] = None
    return list(labels)


def _results(boxes: Sequence[Row], labels: Sequence[str], width: int, height: int, lost: SkipCounter) -> Iterator[Row]:
    """The boxes in per cent of the image, within it: Label Studio refuses tasks with others."""
    for number, item in enumerate(boxes):
        cut = cut_box(item["box"], (width, height), lost)
        if not cut:
            continue
        value = {
            "x": cut[0] / width * 100,
            "y": cut[1] / height * 100,
            "width": (cut[2] - cut[0]) / width * 100,
            "height": (cut[3] - cut[1]) / height * 100,
            "rotation": 0,
            _RECTANGLE: [labels[phrase] for phrase in item["phrases"]],
        }
        sides = {"original_width": width, "original_height": height, "image_rotation": 0}
        result: Row = {"id": f"box{number}", "type": _RECTANGLE, "from_name": "phrase", "to_name": "image"}
        result |= sides | {"value": value} | ({"score": item["score"]} if "score" in item else {})
        yield result | ({"meta": {"text": [_CROWD]}} if item.get("crowd") else {})


# ---- reading


def read_label_studio(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read Label Studio's JSON export, or tasks made for its import.

    The annotation used for a task is the one marked as ground truth, else the one last changed. Predictions are used
    where there is no annotation at all, with their scores; tasks that people skipped are counted. Arguments as for
    ``read_coco``.
    """
    path, skipped = Path(annotations), SkipCounter()
    tasks = parse_file(path) if tree is None else tree
    whole = isinstance(tasks, list) and not any(SHORT_EXPORT in as_map(task) for task in tasks[:1])
    require(whole, f"{path}: not Label Studio's JSON, a list of tasks: export the project as JSON, not JSON-MIN")
    folders = Folders(images or [path.parent])
    names = tuple(dict.fromkeys(label for task in tasks for label in _foreign_labels(as_map(task))))
    samples = skipped.each(enumerate(tasks), lambda task: _read_task(as_map(task), names, folders, skipped), "task")
    return pack_sample_set(path, samples, skipped)


def _read_task(task: Row, names: tuple[str, ...], folders: Folders, skipped: SkipCounter) -> Sample:
    data, people = as_map(task.get("data")), _maps(task.get("annotations"))
    done = [answer for answer in people if answer.get("was_cancelled") is not True]
    require(done or not people, "task that people skipped")
    answers = done or _maps(task.get("predictions"))
    require(answers, "task without annotation and prediction")
    best = max(reversed(answers), key=_answer_rank)
    if len(answers) > 1:
        skipped.add("answer to a task that has a later one, or one marked as ground truth", times=len(answers) - 1)
    results = _maps(best.get("result"))
    if isinstance(data.get("glip"), dict):
        row = dict(data["glip"])
        texts = [str(option.get("value")) for option in _maps(data.get("labels"))]
        names = read_names(row["names"]) if "names" in row else ()
    else:
        row, texts = {"image": _image_name(data), "id": task.get("id")}, list(names)
    stated = ({"width": one.get("original_width"), "height": one.get("original_height")} for one in results)
    size = next(filter(None, map(read_size, [row, *stated])), None)
    if size is None and results:
        size = size_if_readable(folders.locate(row.get("image")))
        require(size, "boxes in per cent of an image that cannot be read")
    row |= {"width": size[0], "height": size[1]} if size else {}
    labels = {text: index for index, text in enumerate(texts)}
    row["boxes"] = list(_rectangles(results, labels, size or (0, 0), skipped, scored=not done))
    return sample_of_row(row, names, folders, skipped)


def _answer_rank(answer: Row) -> tuple[bool, str]:
    """Sorting key of answers: the ground truth, else the one last changed."""
    return answer.get("ground_truth") is True, str(answer.get("updated_at") or answer.get("created_at") or "")


def _rectangles(
    results: Sequence[Row], labels: dict[str, int], size: tuple[int, int], skipped: SkipCounter, *, scored: bool
) -> Iterator[Row]:
    """The rectangles as boxes of a label file; people's have no scores."""
    for result in results:
        if result.get("type") != _RECTANGLE:
            skipped.add("mark that is no labelled rectangle")
        elif result.get("image_rotation"):
            skipped.add("box on an image that was turned in Label Studio")
        else:
            own = [labels[label] for label in _rectangle_labels(result) if label in labels]
            crowd = _CROWD in as_list(as_map(result.get("meta")).get("text"))
            box = {"box": _rectangle_corners(as_map(result.get("value")), size), "phrases": own, "crowd": crowd}
            yield box | ({"score": result["score"]} if scored and result.get("score") is not None else {})


def _rectangle_corners(value: Row, size: tuple[int, int]) -> list[float]:
    """The upright box around a rectangle, in pixels; [] where it is none.

    Its x and y are the corner around which it is turned clockwise.
    """
    parts = [part for part in map(value.get, ("x", "y", "width", "height")) if is_number(part)]
    if len(parts) < 4:
        return []
    turn = value.get("rotation")
    left, top, across, down = (part * side / 100 for part, side in zip(parts, size * 2, strict=True))
    angle = math.radians(turn) if is_number(turn) else 0.0
    cos, sin = math.cos(angle), math.sin(angle)
    xs = [left + a * across * cos - b * down * sin for a in (0, 1) for b in (0, 1)]
    ys = [top + a * across * sin + b * down * cos for a in (0, 1) for b in (0, 1)]
    return [min(xs), min(ys), max(xs), max(ys)]


def _image_name(data: Row) -> str:
    """The name of a task's image: of a local file, an upload, or a path in a bucket or on the web."""
    values = [data.get("image"), *data.values()]
    link = next((value for value in values if is_text(value) and PurePosixPath(value).suffix), "")
    try:
        parts = urlsplit(link)
        served = parse_qs(parts.query).get("d", [""])[0] if parts.path.endswith(LOCAL_FILES) else ""
    except ValueError:  # an address that is none
        return ""
    name = served or unquote(parts.path)
    if "/upload/" in name:
        name = _UPLOADED.sub("", PurePosixPath(name).name)
    return name.lstrip("/")


def _foreign_labels(task: Row) -> Iterator[str]:
    """The labels in a task that glip did not write."""
    if not isinstance(as_map(task.get("data")).get("glip"), dict):
        answers = [*_maps(task.get("annotations")), *_maps(task.get("predictions"))]
        results = (result for answer in answers for result in _maps(answer.get("result")))
        yield from (label for one in results if one.get("type") == _RECTANGLE for label in _rectangle_labels(one))


def _rectangle_labels(result: Row) -> list[str]:
    given = as_list(as_map(result.get("value")).get(_RECTANGLE))
    return [label for label in given if is_text(label) and is_visible(label)]


def _maps(value: Any) -> list[Row]:
    return [item for item in as_list(value) if isinstance(item, dict)]
