"""COCO-format json -> Samples; any category ids, names cleaned as the release cleans them."""

import json
from collections import defaultdict
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
    skipped: dict[str, int] = defaultdict(int)
    categories = sorted(tree["categories"], key=lambda category: category["id"])
    named = [category for category in categories if clean_name(category["name"]).strip()]
    skipped["category without a name"] += len(categories) - len(named)
    label = {category["id"]: index for index, category in enumerate(named)}
    vocabulary = tuple(clean_name(category["name"]).strip() for category in named)
    boxes: dict[Any, list[tuple[list[float], int]]] = defaultdict(list)
    known = {image["id"] for image in tree["images"]}
    for annotation in tree["annotations"]:
        reason = _objection(annotation, label, known)
        if reason:
            skipped[reason] += 1
            continue
        x, y, width, height = annotation["bbox"]
        boxes[annotation["image_id"]].append(([x, y, x + width, y + height], label[annotation["category_id"]]))
    samples = tuple(
        Sample(
            picture=folder / image["file_name"],
            boxes=torch.tensor([box for box, _ in boxes[image["id"]]], dtype=torch.float32).reshape(-1, 4),
            box_phrases=tuple((index,) for _, index in boxes[image["id"]]),
            vocabulary=vocabulary,
            image_id=image["id"],
        )
        for image in tree["images"]
    )
    return CocoSet(samples, vocabulary, {reason: count for reason, count in skipped.items() if count})


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"annotations {str(path)!r} are not there: set data.root or GLIP_DATA to the data folder"
        )
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid json: {error}") from None
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(tree, dict) or key not in tree]
    if missing:
        raise ValueError(
            f"{path}: not a COCO detection json: no {missing[0]!r} (it needs images, annotations, categories)"
        )
    assert isinstance(tree, dict)
    return tree


def _objection(annotation: dict[str, Any], label: dict[int, int], known: set[Any]) -> str:
    """Why an annotation cannot be learned from, or nothing."""
    if annotation.get("iscrowd"):
        return "crowd region"
    if annotation["category_id"] not in label:
        return "unknown category"
    if annotation["image_id"] not in known:
        return "unknown picture"
    x, y, width, height = annotation["bbox"]
    if bool(is_degenerate(torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32))[0]):
        return "box without area"
    return ""
