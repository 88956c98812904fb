"""Samples as files: COCO (with LVIS's fields where a dataset is federated), MDETR, ODVG, YOLO, VOC, our own labels.

Files are written as a stream, whole or not at all. What a format cannot hold is an error that names one that can, or is
counted in the SkipCounter that each writer returns. Our labels hold everything.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from glip.data.image import size_if_readable
from glip.data.sets import Id, Row, SampleSet, SkipCounter, require
from glip.data.voc import OBJECT, SCENE
from glip.data.yolo import label_file, place_image, yolo_table
from glip.errors import DataError
from glip.files import atomic_write
from glip.structures import Prompt, Sample, TarMember
from glip.text.prompt import clean_name

ImageFolders = Sequence[str | Path]
T = TypeVar("T")
_PER_IMAGE = "YOLO or Pascal VOC"
_WITHOUT_LISTS = ("ODVG", _PER_IMAGE)  # of absent and incomplete names
_Cut = tuple[tuple[float, ...], int, bool]  # a box within its image, its name, whether it marks a group


def write_coco(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write a detection dataset as COCO json; a federated one (LVIS) gets LVIS's lists of absent and incomplete names.

    Names of images are relative to the folders ``images``. What COCO cannot hold is counted.

    Raises:
        DataError: samples with captions, or with different vocabularies; an image outside the folders.
    """
    lost, names, taken = SkipCounter(), samples.vocabulary, set[Id]()
    ids = samples.ids if len(samples.ids) == len(names) else tuple(range(1, len(names) + 1))
    _count_twins(names, lost)

    def row(sample: Sample) -> tuple[Row, list[Row]]:
        _check(sample, "COCO", names)
        record = _image_record(sample, images, taken, lost)
        if sample.absent is not None:
            record["neg_category_ids"] = [ids[index] for index in sample.absent]
        if sample.absent is not None or sample.incomplete:
            record["not_exhaustive_category_ids"] = [ids[index] for index in sample.incomplete]
        pairs = _single_names(sample, lost)
        return record, [_coco_box(sample, index, record) | {"category_id": ids[name]} for index, name in pairs]

    categories = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    _write_coco_json(Path(path), categories, each_row(samples, row, lost))
    return lost


def write_mdetr(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write captions with their boxes as MDETR's form of COCO json; arguments and result as for ``write_coco``."""
    lost, taken = SkipCounter(), set[Id]()

    def row(sample: Sample) -> tuple[Row, list[Row]]:
        _check(sample, "MDETR json", ())
        prompt, record = _boxed_prompt(sample, lost), _image_record(sample, images, taken, lost)
        record |= {"caption": prompt.caption, "tokens_positive_eval": [phrase.spans for phrase in prompt.phrases]}
        spans = [{span for phrase in own for span in prompt.phrases[phrase].spans} for own in sample.box_phrases]
        more = [{"category_id": 1, "tokens_positive": sorted(own)} for own in spans]
        return record, [_coco_box(sample, index, record) | own for index, own in enumerate(more)]

    _write_coco_json(Path(path), [{"id": 1, "name": "object"}], each_row(samples, row, lost))
    return lost


def write_odvg(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write ODVG jsonl: a detection or grounding line per sample; arguments and result as for ``write_coco``.

    The label map is written beside it (``label_map_of``) when there are detection lines.
    """
    lost, names = SkipCounter(), samples.vocabulary

    def row(sample: Sample) -> Row:
        _check(sample, "ODVG", names)
        prompt = None if sample.vocabulary else _boxed_prompt(sample, lost)
        lost.add("id of an image (its line number takes its place)")
        if sample.scores and sample.vocabulary:
            lost.add("score", times=len(sample.scores))
        named, boxes = {"filename": image_name(sample, images, "ODVG")} | _size(sample, lost), list[Row]()
        for index, number in _single_names(sample, lost):
            corners = _decimals(sample.boxes[index].numpy())
            if index in sample.crowd:
                lost.add("box of a crowd")
            elif prompt is None:
                boxes.append({"bbox": corners, "label": number, "category": names[number]})
            else:
                own = prompt.phrases[number]
                boxes.append({"bbox": corners, "phrase": own.text, "tokens_positive": own.spans})
        if prompt is None:
            return named | {"detection": {"instances": boxes}}
        return named | {"grounding": {"caption": prompt.caption, "regions": boxes}}

    with atomic_write(path) as file:
        file.writelines(json.dumps(one) + "\n" for one in each_row(samples, row, lost))
    if names:
        with atomic_write(label_map_of(path)) as file:
            json.dump({str(label): name for label, name in enumerate(names)}, file, indent=1)
    return lost


def label_map_of(path: str | Path) -> Path:
    """The label map of an ODVG file: ``train.jsonl`` has ``train_label_map.json``."""
    return Path(path).with_name(f"{Path(path).stem}_label_map.json")


def write_yolo(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write a detection dataset in ultralytics' layout: a new folder with ``data.yaml``, ``labels`` and ``images``.

    Images are links to the files where they are, or copies where the system has no links. Arguments and result as for
    ``write_coco``.
    """

    def make(name: str, size: tuple[int, int], boxes: list[_Cut], lost: SkipCounter) -> tuple[Path, Path, str]:
        image, text = Path("images", name), ""
        for (x1, y1, x2, y2), number, is_crowd in boxes:
            edges = zip(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), size * 2, strict=True)
            if is_crowd:
                lost.add("box of a crowd")
            else:
                text += f"{number} {' '.join(f'{edge / side:.9g}' for edge, side in edges)}\n"
        return image, label_file(image), text

    return _write_folder(samples, Path(path), images, make, ("data.yaml", yolo_table(samples.vocabulary, "images")))


def write_voc(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write a detection dataset as Pascal VOC: a new folder of ``Annotations``, ``JPEGImages`` and ``classes.txt``.

    Boxes are rounded to whole pixels, crowds are difficult objects. Images, arguments and result as for ``write_yolo``.
    """
    names = [escape(name) for name in samples.vocabulary]

    def make(name: str, size: tuple[int, int], boxes: list[_Cut], lost: SkipCounter) -> tuple[Path, Path, str]:
        objects, image = "", Path("JPEGImages", name.replace("/", "_"))
        for cut, number, is_crowd in boxes:
            x1, y1 = (min(round(edge), side - 1) for edge, side in zip(cut[:2], size, strict=True))
            x2, y2 = max(round(cut[2]), x1 + 1), max(round(cut[3]), y1 + 1)
            if cut != (x1, y1, x2, y2):
                lost.add("fraction of a pixel of a box")
            objects += OBJECT.format(names[number], int(is_crowd), x1 + 1, y1 + 1, x2, y2)
        return image, Path("Annotations", f"{image.stem}.xml"), SCENE.format(escape(image.name), *size, objects)

    listed = "".join(f"{name}\n" for name in samples.vocabulary)
    return _write_folder(samples, Path(path), images, make, ("classes.txt", listed))


def write_labels(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write our own label file, which holds everything in a Sample: nothing is counted."""
    names: tuple[str, ...] = ()
    with atomic_write(path) as file:
        for sample in samples.walk("convert"):
            changed = sample.vocabulary and sample.vocabulary != names
            row = label_row(sample, images) | ({"names": list(sample.vocabulary)} if changed else {})
            file.write(json.dumps(row) + "\n")
            names = sample.vocabulary or names
    return SkipCounter()


def label_row(sample: Sample, images: ImageFolders) -> Row:
    """One line of a label file, without the names of a detection dataset."""
    image, prompt = sample.image, sample.prompt
    row: Row = {"image": image_name(sample, images), "id": sample.image_id}
    if isinstance(image, TarMember):
        row |= {"member": image.name, "start": image.start, "length": image.length}
    if sample.size:
        row |= {"width": sample.size[0], "height": sample.size[1]}
    if prompt is None:
        row |= {"phrases": []} if sample.vocabulary else {"caption": sample.caption, "phrases": []}
    else:
        row["caption"] = prompt.caption
        row["phrases"] = [
            {"text": phrase.text, "spans": [list(span) for span in phrase.spans]} for phrase in prompt.phrases
        ]
        row |= {"list": True} if prompt.is_list else {}
        row |= {"classes": list(prompt.classes)} if _has_classes(prompt) else {}
    row["boxes"] = [
        {"box": _decimals(corners), "phrases": list(phrases)}
        | ({"score": sample.scores[index]} if sample.scores else {})
        | ({"crowd": True} if index in sample.crowd else {})
        for index, (corners, phrases) in enumerate(zip(sample.boxes.numpy(), sample.box_phrases, strict=True))
    ]
    row |= {"absent": list(sample.absent)} if sample.absent is not None else {}
    return row | ({"incomplete": list(sample.incomplete)} if sample.incomplete else {})


def each_row(samples: SampleSet, make: Callable[[Sample], T], lost: SkipCounter) -> Iterator[T]:
    """What is written for each sample that can be; what is lost on the way is counted at its image."""
    return lost.each(((repr(sample.image_id), sample) for sample in samples.walk("convert")), make, "image")


# ---- what a format can hold


def _check(sample: Sample, format: str, vocabulary: tuple[str, ...]) -> None:
    """Refuse a sample of a kind that a format does not have; ``vocabulary`` is that of all samples."""
    names, prompt = sample.vocabulary, sample.prompt
    listed, lvis = sample.absent is not None or sample.incomplete, "coco (LVIS's fields) or labels"
    refusals = (
        (not names and not prompt, "has a caption without phrases", "labels"),
        (prompt and format in ("COCO", _PER_IMAGE), "has a caption", "mdetr, odvg or labels"),
        (names and format == "MDETR json", "has a list of names", "coco, odvg or labels"),
        (names and names != vocabulary, "has a list of names of its own, not that of all images", "labels"),
        (listed and format in _WITHOUT_LISTS, "states which names are absent or incomplete", lvis),
    )
    what, others = next(((what, others) for wrong, what, others in refusals if wrong), ("", ""))
    if what:
        raise DataError(f"Image {sample.image_id!r} {what}, which {format} cannot say: write --to {others}")


def _boxed_prompt(sample: Sample, lost: SkipCounter) -> Prompt:
    """The prompt of a sample that has boxes; what such a file cannot hold is counted."""
    prompt = sample.prompt
    assert prompt is not None
    require(sample.box_phrases, "caption without a box")
    boxed = {phrase for phrases in sample.box_phrases for phrase in phrases}
    if len(boxed) < len(prompt.phrases):
        lost.add("phrase without a box", times=len(prompt.phrases) - len(boxed))
    if prompt.is_list or _has_classes(prompt):
        lost.add("that a caption is a list of names, or its classes")
    if sample.scores:
        lost.add("score", times=len(sample.scores))
    return prompt


def _count_twins(names: Sequence[str], lost: SkipCounter) -> None:
    for name, times in Counter(clean_name(name).strip() for name in names).items():  # as they are read
        if times > 1:
            lost.add("name written twice, the two cannot be kept apart", name, times - 1)


def _has_classes(prompt: Prompt) -> bool:
    return prompt.classes != tuple(range(len(prompt.phrases)))


def _single_names(sample: Sample, lost: SkipCounter) -> Iterator[tuple[int, int]]:
    """Each box with each of its names, for formats in which a box has one."""
    for index, phrases in enumerate(sample.box_phrases):
        if len(phrases) > 1:
            lost.add("that several names are of one box (it is written once for each)")
        yield from ((index, phrase) for phrase in phrases)


# ---- parts of rows


def cut_box(box: Sequence[float], size: tuple[int, int], lost: SkipCounter) -> tuple[float, ...]:
    """A box cut at the edges of its image, () if nothing is left; what is cut is counted."""
    left, top, right, bottom = box
    cut = max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])
    if not (cut[2] > cut[0] and cut[3] > cut[1]):
        lost.add("box outside the image")
        return ()
    if cut != (left, top, right, bottom):
        lost.add("part of a box outside the image")
    return cut


def _image_record(sample: Sample, images: ImageFolders, taken: set[Id], lost: SkipCounter) -> Row:
    """The entry of ``images``, its id unique."""
    number = sample.image_id
    if number in taken:
        lost.add("id of an image (another has it too)")
        number = next(own for own in (f"{number}#{again}" for again in count(2)) if own not in taken)
    taken.add(number)
    return {"id": number, "file_name": image_name(sample, images, "this format")} | _size(sample, lost)


def _coco_box(sample: Sample, index: int, record: Row) -> Row:
    left, top, right, bottom = _decimals(sample.boxes[index].numpy())
    # nine digits: without the tails of binary fractions, and still exact when added up and rounded to float32
    width, height = round(right - left, 9), round(bottom - top, 9)
    crowd = int(index in sample.crowd)
    score = {"score": sample.scores[index]} if sample.scores and sample.vocabulary else {}
    box = {"bbox": [left, top, width, height], "area": width * height, "iscrowd": crowd}
    return {"image_id": record["id"]} | box | score | ({"segmentation": sample.masks[index]} if sample.masks else {})


def _decimals(row: np.ndarray) -> list[float]:
    """The shortest decimals that are these float32 numbers."""
    return [float(str(value)) for value in row]


def _size(sample: Sample, lost: SkipCounter) -> Row:
    assert isinstance(sample.image, Path)  # as its name was found
    size = sample.size or size_if_readable(sample.image)
    if size is None:
        lost.add("size of an image that cannot be read")
        return {}
    return {"width": size[0], "height": size[1]}


def image_name(sample: Sample, images: ImageFolders, format: str = "") -> str:
    """The name of a sample's image, or of its archive, relative to the first folder that holds it.

    Raises:
        DataError: outside the folders; drawn, so without a name; in an archive, where a ``format`` without them is
            given.
    """
    image = sample.image
    if isinstance(image, Image.Image):
        problem = "is drawn: save it and put its path in the sample"
    elif isinstance(image, TarMember) and format:
        problem = f"is in an archive, which {format} cannot say: write --to labels, or unpack it"
    else:
        file = image.archive if isinstance(image, TarMember) else image
        pairs = [[Path(os.path.abspath(path)) for path in (file, folder)] for folder in images]  # without ".."
        name = next((path.relative_to(root).as_posix() for path, root in pairs if path.is_relative_to(root)), None)
        if name is not None:
            return name
        folders = ", ".join(repr(str(folder)) for folder in images) or "none given"
        problem = f"({file}) is not in the image folders ({folders}): give its folder"
    raise DataError(f"Image {sample.image_id!r} {problem}")


def _write_coco_json(path: Path, categories: list[Row], rows: Iterator[tuple[Row, list[Row]]]) -> None:
    """COCO's three lists; boxes wait in a second file until all images are written."""
    with atomic_write(path) as file, tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent) as later:
        file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        numbers = count(1)
        for place, (record, boxes) in enumerate(rows):
            file.write((",\n" if place else "\n") + json.dumps(record))
            for box in boxes:
                number = next(numbers)
                later.write((",\n" if number > 1 else "\n") + json.dumps({"id": number, **box}))
        file.write('\n],\n"annotations": [')
        later.seek(0)
        shutil.copyfileobj(later, file)
        file.write("\n]}\n")


def _write_folder(
    samples: SampleSet,
    path: Path,
    images: ImageFolders,
    make: Callable[[str, tuple[int, int], list[_Cut], SkipCounter], tuple[Path, Path, str]],
    names: tuple[str, str],
) -> SkipCounter:
    """Write a new folder, whole or not at all: a link to each image, what ``make`` gives for it, the class names."""
    lost, taken = SkipCounter(), set[Path]()
    _count_twins(samples.vocabulary, lost)
    require(not path.exists(), f"{str(path)!r} is there already: give a new folder")

    def row(sample: Sample) -> tuple[Path, Path, Path, str]:
        _check(sample, _PER_IMAGE, samples.vocabulary)
        name, source = image_name(sample, images, _PER_IMAGE), sample.image
        assert isinstance(source, Path)
        size = size_if_readable(source) or (0, 0)
        require(all(size), "image that is not there, or cannot be read")
        named = _single_names(sample, lost)
        cuts = ((cut_box(_decimals(sample.boxes[index].numpy()), size, lost), index, number) for index, number in named)
        boxes = [(cut, number, index in sample.crowd) for cut, index, number in cuts if cut]
        image, file, text = make(name, size, boxes, lost)
        require(file not in taken, "image whose name another one has, but for the ending")
        taken.add(file)
        return source, image, file, text

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as above:
        folder = Path(above, path.name)
        for source, image, file, text in each_row(samples, row, lost):
            for place in (folder / image, folder / file):
                place.parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
            place_image(source, folder / image)
        (folder / names[0]).write_text(names[1], encoding="utf-8")
        folder.rename(path)
    return lost
