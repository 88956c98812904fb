"""Samples -> tasks of Label Studio, to be corrected by people; ``readers/label_studio.py`` reads them back.

A task shows the image, its caption, and one label for each phrase (or name). A teacher's boxes become predictions
with scores, people's boxes become annotations. The whole sample but its boxes stands in ``data.glip`` as a line of a
label file (spans and all), and label i of ``data.labels`` is phrase i of it, so that nothing is lost on the way.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from glip.data.image import image_size
from glip.data.sets import SampleSet, SkipCounter
from glip.data.writers import Folders, Row, label_row, whole_file
from glip.errors import DataError, ImageError
from glip.lettering import palette
from glip.structures import Sample

LOCAL_FILES = "/data/local-files/"  # where Label Studio serves files of its own machine, as ?d=<path under its root>
CROWD = "crowd"  # the remark at a box that marks a group

_CONFIG = """<View>
  <Header value="$caption"/>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="phrase" toName="image" value="$labels" choice="{choice}" canRotate="false"/>
</View>
"""


def write_label_studio(samples: SampleSet, path: str | Path, images: Folders) -> SkipCounter:
    """Write tasks for Label Studio's import, and the labelling interface beside them (``interface_of``).

    Args:
        samples: images with phrases or names.
        path: the json.
        images: folders of the images. Label Studio has to serve them: its LOCAL_FILES_DOCUMENT_ROOT is the folder
            above, and each is added to the project as a local storage.

    Returns:
        What was left out or changed, counted.

    Raises:
        ValueError: no sample has phrases; an image in an archive, drawn, or outside the folders.
    """
    path, lost, count, choice = Path(path), SkipCounter(), 0, "single"
    with whole_file(path) as file:
        for sample in samples.samples:
            task = _task(sample, images, lost)
            if task is None:
                continue
            file.write(("[\n" if not count else ",\n") + json.dumps(task))
            count += 1
            choice = "multiple" if any(len(phrases) > 1 for phrases in sample.box_phrases) else choice
        if not count:
            raise DataError(
                f"nothing to show in Label Studio ({lost or 'no sample'}): give images with names or phrases, such "
                "as those that a teacher labelled"
            )
        file.write("\n]\n")
    with whole_file(interface_of(path)) as file:
        file.write(_CONFIG.format(choice=choice))
    return lost


def interface_of(path: str | Path) -> Path:
    """Where the labelling interface of a file of tasks lies: ``tasks.json`` has ``tasks_interface.xml``."""
    return Path(path).with_name(f"{Path(path).stem}_interface.xml")


def _task(sample: Sample, images: Folders, lost: SkipCounter) -> Row | None:
    place = f"image {sample.image_id!r}"
    texts = [phrase.text for phrase in sample.prompt.phrases] if sample.prompt else list(sample.vocabulary)
    if not texts:
        lost.add("caption without phrases", place)
        return None
    row = label_row(sample, images)
    if not isinstance(sample.image, Path):
        raise DataError(f"{place} lies in an archive, which Label Studio cannot show: unpack it, or write --to labels")
    try:
        width, height = sample.size or image_size(sample.image)
    except ImageError:
        lost.add("image that cannot be read", place)
        return None
    labels = _distinct(texts)
    results = _results(row.pop("boxes"), labels, (width, height), place, lost)
    row |= {"width": width, "height": height} | ({"names": texts} if not sample.prompt else {})
    data = {
        "image": f"{LOCAL_FILES}?d={quote(_served(sample.image, row['image']))}",
        "caption": row.get("caption", ""),
        "labels": [
            {"value": label, "background": "#" + bytes(colour).hex()}
            for label, colour in zip(labels, palette(labels), strict=True)
        ],
        "glip": row,
    }
    if not sample.scores:
        return {"data": data, "annotations": [{"result": results}]}
    score = sum(sample.scores) / len(sample.scores)
    return {"data": data, "predictions": [{"model_version": "glip", "score": score, "result": results}]}


def _distinct(texts: Sequence[str]) -> list[str]:
    """Labels that can be told apart: the second "a man" of a caption becomes "a man #2"."""
    times: dict[str, int] = {}
    labels: dict[str, None] = {}
    for text in texts:
        label = text
        while label in labels:
            times[text] = times.get(text, 1) + 1
            label = f"{text} #{times[text]}"
        labels[label] = None
    return list(labels)


def _served(file: Path, name: str) -> str:
    """The path under Label Studio's root, which may not be the folder of the images itself but has to be above it."""
    folder = file.absolute().parents[len(PurePosixPath(name).parts) - 1]
    return f"{folder.name}/{name}"


def _results(
    boxes: Sequence[dict[str, Any]], labels: Sequence[str], size: tuple[int, int], place: str, lost: SkipCounter
) -> list[Row]:
    """The boxes in per cent of the image, within it: Label Studio refuses tasks with others."""
    width, height = size
    results = []
    for number, item in enumerate(boxes):
        left, top, right, bottom = item["box"]
        cut = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if not (cut[2] > cut[0] and cut[3] > cut[1]):
            lost.add("box outside the image", place)
            continue
        if cut != (left, top, right, bottom):
            lost.add("part of a box outside the image", place)
        value = {
            "x": cut[0] / width * 100,
            "y": cut[1] / height * 100,
            "width": (cut[2] - cut[0]) / width * 100,
            "height": (cut[3] - cut[1]) / height * 100,
            "rotation": 0,
            "rectanglelabels": [labels[phrase] for phrase in item["phrases"]],
        }
        result: Row = {
            "id": f"box{number}",
            "type": "rectanglelabels",
            "from_name": "phrase",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": value,
        }
        result |= {"score": item["score"]} if "score" in item else {}
        results.append(result | ({"meta": {"text": [CROWD]}} if item.get("crowd") else {}))
    return results
