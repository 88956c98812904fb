"""COCO-format json -> Samples; any category ids, names cleaned as the release cleans them."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glip.geometry.boxes import is_degenerate
from glip.structures import Sample
from glip.text.prompt import clean_name


@dataclass(frozen=True)
class CocoSet:
    """The samples of one set, its vocabulary, and what had to be left out, by reason."""

    samples: tuple[Sample, ...]
    vocabulary: tuple[str, ...]
    skipped: dict[str, int]


def read_coco(annotations: str | Path, images: str | Path) -> CocoSet:
    """Read a COCO-format detection set; pictures without boxes are kept as negatives.

    Args:
        annotations: the json with ``images``, ``annotations`` (bbox = x, y, width, height in pixels), ``categories``.
        images: the folder of the pictures.

    Raises:
        FileNotFoundError: no such json or folder.
        ValueError: not COCO json.
    """
    path, folder = Path(annotations), Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"picture folder {str(folder)!r} is not there: set data.root or GLIP_DATA to its parent"
        )
    tree = _read_json(path)
    skipped: Counter[str] = Counter()
    label, vocabulary = _read_categories(tree["categories"], path, skipped)
    boxes: dict[Any, list[list[float]]] = {}
    labels: dict[Any, list[int]] = {}
    files: dict[Any, Path] = {}
    for image in tree["images"]:
        if not (isinstance(image, dict) and isinstance(image.get("file_name"), str) and _is_id(image.get("id"))):
            skipped["picture without id or file_name"] += 1
            continue
        files[image["id"]], boxes[image["id"]], labels[image["id"]] = folder / image["file_name"], [], []
    for annotation in tree["annotations"]:
        reason = _objection(annotation, label, files)
        if reason:
            skipped[reason] += 1
            continue
        x, y, width, height = annotation["bbox"]
        boxes[annotation["image_id"]].append([x, y, x + width, y + height])
        labels[annotation["image_id"]].append(label[annotation["category_id"]])
    samples = tuple(
        Sample(
            picture=file,
            boxes=torch.tensor(boxes[image_id], dtype=torch.float32).reshape(-1, 4),
            box_phrases=tuple((index,) for index in labels[image_id]),
            vocabulary=vocabulary,
            image_id=image_id,
        )
        for image_id, file in files.items()
    )
    return CocoSet(samples, vocabulary, dict(skipped))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"annotations {str(path)!r} are not there: set data.root or GLIP_DATA to the data folder"
        )
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of json, of the encoding, or of a number with thousands of digits
        raise ValueError(f"{path}: not valid json: {error}") from None
    lists = tree if isinstance(tree, dict) else {}
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(lists.get(key), list)]
    if missing:
        raise ValueError(
            f"{path}: not a COCO detection json: no list {missing[0]!r} (it needs images, annotations, categories)"
        )
    assert isinstance(tree, dict)
    return tree


def _read_categories(
    categories: list[Any], path: Path, skipped: Counter[str]
) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Label of each category id, by ascending id, and the names; categories that name nothing are skipped."""
    for category in categories:
        if not (isinstance(category, dict) and isinstance(category.get("name"), str) and _is_id(category.get("id"))):
            raise ValueError(f"{path}: category {category!r} has no id and name: a category is {{id: 1, name: cat}}")
    ordered = sorted(categories, key=lambda category: (isinstance(category["id"], str), category["id"]))
    names = {category["id"]: clean_name(category["name"]).strip() for category in ordered}
    named = [number for number, name in names.items() if name]
    if len(named) < len(names):
        skipped["category without a name"] += len(names) - len(named)
    return {number: index for index, number in enumerate(named)}, tuple(names[number] for number in named)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _objection(annotation: Any, label: Mapping[Any, int], files: Mapping[Any, Path]) -> str:
    """Why an annotation cannot be learned from, or nothing."""
    if not isinstance(annotation, dict):
        return "malformed annotation"
    if annotation.get("iscrowd"):
        return "crowd region"
    category, image = annotation.get("category_id"), annotation.get("image_id")
    if not _is_id(category) or category not in label:
        return "unknown category"
    if not _is_id(image) or image not in files:
        return "unknown picture"
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_pixel(value) for value in bbox):
        return "malformed box"
    x, y, width, height = bbox
    if bool(is_degenerate(torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32))[0]):
        return "box without area"
    return ""


def _is_pixel(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9
