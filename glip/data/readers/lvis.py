"""LVIS json -> Samples: federated, so that each image says which names are surely absent (Gupta et al. 2019)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glip.data.readers.coco import LISTS, Categories, detection_sample, read_categories, read_rows
from glip.data.readers.fields import InvalidRecord, by_image, image_place, is_id, read_image, read_json, sample_set
from glip.data.sets import Folders, SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Sample


def read_lvis(annotations: str | Path, images: Sequence[str | Path]) -> SampleSet:
    """Read LVIS v1 or v0.5; names of ``neg_category_ids`` are absent, ``not_exhaustive_category_ids`` incomplete.

    Names are cleaned as the 2022 release prompts them, so a few categories share one ("bow"); they stay apart, with
    an id each. Images are found by ``file_name``, else by the last two parts of ``coco_url`` ("val2017/1.jpg"), in
    COCO's folder or directly in ``train2017`` and ``val2017``.

    Raises:
        FileNotFoundError: no such json or folder.
        ValueError: not LVIS json.
    """
    path, skipped = Path(annotations), SkipCounter()
    # each way of naming finds for itself how many leading parts to leave out
    by_name, by_url = Folders(images), Folders(images)
    tree = read_json(path, LISTS, "LVIS")
    if not any(isinstance(record, dict) and "neg_category_ids" in record for record in tree["images"]):
        raise DataError(f"{path}: not an LVIS json: no image has neg_category_ids: read it as format coco")
    categories = read_categories(tree["categories"], path, skipped, twins=True)
    samples = _samples(tree, (by_name, by_url), categories, skipped)
    return sample_set(path, samples, skipped, vocabulary=categories.names, ids=categories.ids)


def _samples(
    tree: dict[str, Any], folders: tuple[Folders, Folders], categories: Categories, skipped: SkipCounter
) -> Iterator[Sample]:
    for record, annotations in by_image(tree, skipped):
        place = image_place(record)
        try:
            image = _image(record, folders)
        except InvalidRecord as reason:
            skipped.add(str(reason), place)
            continue
        rows = read_rows(annotations, categories, skipped)
        absent = _labels(record, "neg_category_ids", categories, skipped)
        contradicted = set(absent) & set(rows.labels)
        if contradicted:
            skipped.add("name in neg_category_ids that has a box", place, len(contradicted))
        yield replace(
            detection_sample(record, image, rows, categories),
            absent=tuple(label for label in absent if label not in contradicted),
            incomplete=_labels(record, "not_exhaustive_category_ids", categories, skipped),
        )


def _image(record: dict[str, Any], folders: tuple[Folders, Folders]) -> Path:
    by_name, by_url = folders
    name, url = record.get("file_name"), record.get("coco_url")
    if not isinstance(url, str) or not url:
        return read_image(by_name, name)
    files = [read_image(by_name, name)] if name else []
    files.append(read_image(by_url, "/".join(url.split("/")[-2:])))
    return next((file for file in files if file.is_file()), files[-1])


def _labels(record: dict[str, Any], key: str, categories: Categories, skipped: SkipCounter) -> tuple[int, ...]:
    """Category ids of an image as labels; without a list nothing is known, so none."""
    place, numbers = image_place(record), record.get(key)
    if not isinstance(numbers, list):
        skipped.add(f"image without {key}", place)
        return ()
    known = {number for number in numbers if is_id(number) and number in categories.label}
    unknown = sum(not is_id(number) or number not in categories.label for number in numbers)
    if unknown:
        skipped.add(f"unknown category in {key}", place, unknown)
    return tuple(sorted(categories.label[number] for number in known))
