"""YOLO: a text file of labels for each image; a line has a class number and a box, relative to the image.

Ultralytics' ``data.yaml``, which Roboflow exports too, names the splits and the classes. A folder as of darknet or
LabelImg has a file of class names instead, such as ``classes.txt``.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glip.data import records
from glip.data.coco import Categories, read_categories
from glip.data.image import ENDINGS, size_if_readable
from glip.data.records import Named, as_list, as_map
from glip.data.sets import Folders, InvalidRecord, Row, SampleSet, SkipCounter, check_exists, require
from glip.structures import Sample

NO_LABELS = "image without a label file: taken as one without objects"
YAML = (".yaml", ".yml")
_NAMES = ("data.yaml", "data.yml", "classes.txt", "obj.names", "_darknet.labels")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # and other spellings
_BOX = 5  # numbers of a line: the class, the centre, width and height
_SLACK = 0.01  # by which a number may leave 0..1, as for ultralytics


def names_file(path: Path) -> Path | None:
    """The file with the class names: ``data.yaml`` itself, or one in a folder; None where there is none."""
    places = (folder / name for folder in (path, path / "labels") for name in _NAMES)
    return path if path.suffix.lower() in YAML else next(filter(Path.is_file, places), None)


def label_file(image: Path) -> Path:
    """Where the labels of an image are: in ``labels`` in place of its last folder ``images``, else beside it."""
    above = image.parent.parts
    if "images" not in above:
        return image.with_name(f"{image.stem}.txt")
    last = len(above) - 1 - above[::-1].index("images")
    return Path(*above[:last], "labels", *above[last + 1 :], f"{image.stem}.txt")


def yolo_table(names: Sequence[str], images: str) -> str:
    """The text of a ``data.yaml``: the classes, and ``images`` as the folder of every split."""
    rows = [f"  {label}: {json.dumps(name, ensure_ascii=False)}\n" for label, name in enumerate(names)]
    note = "ultralytics wants one: name other images before you measure"
    return f"train: {images}\nval: {images}  # {note}\nnames:\n{''.join(rows)}"


def place_image(source: Path, place: Path) -> None:
    """Put a link to an image, or a copy where the system has no links; one of an earlier run is replaced."""
    if place.resolve() != source.resolve():
        place.unlink(missing_ok=True)
        try:
            place.symlink_to(source.absolute())
        except OSError:
            shutil.copyfile(source, place)


def read_yolo(file: Path, table: Any, images: Sequence[str | Path], split: str = "") -> SampleSet:
    """Read YOLO's labels. Boxes of polygons and of lines with keypoints are those around them.

    Args:
        file: the ``data.yaml``, or the file of class names; relative paths are below its folder.
        table: its content: ``names`` (a list, or a map by number), ``nc``, ``path``, and for each split its folders of
            images, or text files that list images.
        images: more folders in which listed images are searched.
        split: train, val or test; "" for all.

    Raises:
        DataError: no class names, no such split, or no label file for any image.
        FileNotFoundError: a folder or list of the split's images is not there; among all splits it is counted.
    """
    table, skipped = as_map(table), SkipCounter()
    root = file.parent.parent if file.parent.name == "labels" else file.parent
    categories = _read_names(table, file, skipped)
    keypoints = [number for number in as_list(table.get("kpt_shape")) if isinstance(number, int)]
    columns = _BOX + (math.prod(keypoints) if keypoints else 0)
    places = list(dict.fromkeys(_label_folders(table, file, split, skipped)))
    files = list(dict.fromkeys(image for place in places for image in _listed_images(place, file, images, skipped)))

    def read(image: Path) -> Sample:
        labels = next(filter(Path.is_file, (label_file(image), image.with_suffix(".txt"))), None)
        size = size_if_readable(image)
        require(size or not image.is_file(), "image that cannot be read, to which its labels are relative")
        if labels is None:
            skipped.add(NO_LABELS)
        lines = records.read_lines(labels) if labels and size else ()
        boxes = skipped.each(lines, lambda line: _read_line(line, size or (0, 0), columns, categories), "line")
        name = image.relative_to(root).as_posix() if image.is_relative_to(root) else image.name
        return records.detection_sample(image, list(boxes), categories.names, image_id=name, size=size)

    samples = skipped.each(((image.name, image) for image in files), read, "image")
    found = records.pack_sample_set(file, samples, skipped, vocabulary=categories.names)
    bare = skipped.counts.get(NO_LABELS) == len(files)
    require(not bare, f"{file}: none of its {len(files)} images has a label file, such as {label_file(files[0])}")
    return found


def _read_names(table: Row, file: Path, skipped: SkipCounter) -> Categories:
    """The class names by their number."""
    given, count = table.get("names"), table.get("nc")
    listed = given.items() if isinstance(given, dict) else enumerate(as_list(given))
    rows = [{"id": int(key) if str(key).isdecimal() else key, "name": name} for key, name in listed]
    require(rows, f"{file}: it has no class names, which are what glip asks for: list them under names")
    require(count in (None, len(rows)), f"{file}: it has {len(rows)} names for nc: {count}: list each class once")
    return read_categories(rows, file, skipped)


def _label_folders(table: Row, file: Path, split: str, skipped: SkipCounter) -> Iterator[Path]:
    """The folders and lists of a split's images, or of all splits'.

    A path is relative to ``path``, which is relative to the folder of the file. As files move between machines, the
    end of a path (two parts at least, or what follows "..") also means what is there under the folder of the file.
    """
    stated = {_SPLITS[key]: value for key, value in table.items() if key in _SPLITS and value}
    stated = stated or {split: "."}  # as supervision writes it: the folder is one set
    require(split in ("", *stated), f"{file}: no images of the split {split!r}: it has {', '.join(stated)}")
    root = file.parent
    for value in [stated[split]] if split else stated.values():
        for one in value if isinstance(value, list) else [value]:
            parts = [part for part in str(one).replace("\\", "/").split("/") if part not in ("", ".", "..")]
            ends = [root.joinpath(*parts[start:]) for start in range(max(len(parts) - 1, 1))]
            found = next(filter(Path.exists, (root / str(table.get("path") or "") / str(one), *ends)), ends[0])
            if split or found.exists():
                check_exists(found, "Images {!r} of data.yaml are not there")
                yield found.resolve() if ".." in found.parts else found
            else:  # of one split among all
                skipped.add("folder or list of images that is not there", str(found))


def _listed_images(place: Path, file: Path, images: Sequence[str | Path], skipped: SkipCounter) -> Iterator[Path]:
    """The images below a folder, or those that a text file lists, one per line."""
    if place.is_dir():
        below = (found for found in sorted(place.rglob("*")) if found.suffix.lower() in ENDINGS)
        yield from (found for found in below if not found.name.startswith("."))
        return
    folders = Folders([place.parent, file.parent, *images])
    yield from skipped.each(
        records.read_lines(place), lambda line: folders.locate(records.decode_text(line).strip()), f"{place.name}, line"
    )


def _read_line(line: bytes, size: tuple[int, int], columns: int, categories: Categories) -> Named:
    """The box of a line: a class with a box, or with the points of a polygon."""
    try:
        numbers = [float(word) for word in records.decode_text(line).split()]
    except ValueError:
        raise InvalidRecord("label with something that is no number") from None
    polygon = columns == _BOX and len(numbers) > _BOX + 1 and len(numbers) % 2 == 1
    require(len(numbers) == columns or polygon, "label of wrong length: give 5 numbers, or those of a polygon")
    require(numbers[0] in categories.label, "label with a class number that has no name")
    places = numbers[1:] if polygon else numbers[1:_BOX]
    require(all(-_SLACK <= one <= 1 + _SLACK for one in places), "label outside 0..1: boxes are relative to the image")
    if polygon:
        edges = [min(places[::2]), min(places[1::2]), max(places[::2]), max(places[1::2])]
    else:
        x, y, width, height = places
        edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    corners = [edge * side for edge, side in zip(edges, size * 2, strict=True)]
    return Named(records.read_box(corners, corners=True), (categories.label[int(numbers[0])],))
