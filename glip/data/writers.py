"""Samples -> files: COCO (with LVIS's fields where a set is federated), MDETR json, ODVG jsonl, our own labels.

Files are written as a stream and whole or not at all. What a format cannot say is an error that names one that can,
or is counted in the SkipCounter that each writer returns. Our labels (``readers/labels.py``) say everything.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from glip.data.image import image_size
from glip.data.sets import SampleSet, SkipCounter
from glip.errors import DataError, ImageError
from glip.structures import Prompt, Sample, TarMember
from glip.text.prompt import clean_name

Row = dict[str, Any]
Folders = Sequence[str | Path]


def write_coco(samples: SampleSet, path: str | Path, images: Folders) -> SkipCounter:
    """Write a detection set as COCO json; a federated one (LVIS) gets LVIS's lists of absent and incomplete names.

    Args:
        samples: images with boxes, all of one vocabulary.
        path: the json.
        images: folders of the images; names in the file are relative to them.

    Returns:
        What COCO cannot say, counted.

    Raises:
        ValueError: samples with captions, or with different vocabularies; an image outside the folders.
    """
    path, lost = Path(path), SkipCounter()
    ids = samples.ids if len(samples.ids) == len(samples.vocabulary) else tuple(range(1, len(samples.vocabulary) + 1))
    categories = [{"id": number, "name": name} for number, name in zip(ids, samples.vocabulary, strict=True)]
    for name, times in Counter(clean_name(name).strip() for name in samples.vocabulary).items():  # as they are read
        if times > 1:
            lost.add("name written twice, its twin cannot be told apart", name, times - 1)

    def rows() -> Iterator[tuple[Row, list[Row]]]:
        taken: set[int | str] = set()
        for sample in samples.samples:
            _check_detection(sample, samples.vocabulary, "COCO")
            record = _record(sample, images, taken, lost)
            if sample.absent is not None:
                record["neg_category_ids"] = [ids[index] for index in sample.absent]
            if sample.absent is not None or sample.incomplete:
                record["not_exhaustive_category_ids"] = [ids[index] for index in sample.incomplete]
            boxes = [
                _coco_box(sample, index, record["id"]) | {"category_id": ids[phrase]}
                for index, phrase in _pairs(sample, lost)
            ]
            yield record, boxes

    _write_json(path, categories, rows())
    return lost


def write_mdetr(samples: SampleSet, path: str | Path, images: Folders) -> SkipCounter:
    """Write captions with their boxes as MDETR's form of COCO json; arguments and result as of ``write_coco``.

    Raises:
        ValueError: samples with a list of names or without phrases; an image outside the folders.
    """
    path, lost = Path(path), SkipCounter()

    def rows() -> Iterator[tuple[Row, list[Row]]]:
        taken: set[int | str] = set()
        for sample in samples.samples:
            prompt = _grounding(sample, "MDETR json", lost)
            if prompt is None:
                continue
            record = _record(sample, images, taken, lost) | {
                "caption": prompt.caption,
                "tokens_positive_eval": [_lists(phrase.spans) for phrase in prompt.phrases],
            }
            boxes = []
            for index, phrases in enumerate(sample.box_phrases):
                spans = sorted({span for phrase in phrases for span in prompt.phrases[phrase].spans})
                boxes.append(
                    _coco_box(sample, index, record["id"]) | {"category_id": 1, "tokens_positive": _lists(spans)}
                )
            yield record, boxes

    _write_json(path, [{"id": 1, "name": "object"}], rows())
    return lost


def write_odvg(samples: SampleSet, path: str | Path, images: Folders) -> SkipCounter:
    """Write ODVG jsonl: a detection or grounding line per sample; arguments and result as of ``write_coco``.

    The label map goes beside it (``label_map_of``) when there are detection lines.

    Raises:
        ValueError: captions without phrases, different vocabularies, a federated set; an image outside the folders.
    """
    path, lost = Path(path), SkipCounter()
    with whole_file(path) as file:
        for sample in samples.samples:
            row = _odvg_row(sample, samples.vocabulary, images, lost)
            if row is not None:
                file.write(json.dumps(row) + "\n")
    if samples.vocabulary:
        with whole_file(label_map_of(path)) as file:
            json.dump({str(label): name for label, name in enumerate(samples.vocabulary)}, file, indent=1)
    return lost


def label_map_of(path: str | Path) -> Path:
    """Where the label map of an ODVG file lies: ``train.jsonl`` has ``train_label_map.json``."""
    return Path(path).with_name(f"{Path(path).stem}_label_map.json")


def write_labels(samples: SampleSet, path: str | Path, images: Folders) -> SkipCounter:
    """Write our own label file, which says everything that a Sample says; arguments as of ``write_coco``.

    Returns:
        An empty tally.

    Raises:
        ValueError: an image outside the folders.
    """
    names: tuple[str, ...] = ()
    with whole_file(Path(path)) as file:
        for sample in samples.samples:
            row = label_row(sample, images)
            if sample.vocabulary:
                row |= {"names": list(sample.vocabulary)} if sample.vocabulary != names else {}
                names = sample.vocabulary
            file.write(json.dumps(row) + "\n")
    return SkipCounter()


def label_row(sample: Sample, images: Folders) -> Row:
    """One line of a label file, without the names of a detection set.

    Raises:
        ValueError: an image outside the folders.
    """
    row: Row = {"image": _name(sample.image, images), "id": sample.image_id}
    if isinstance(sample.image, TarMember):
        row |= {"member": sample.image.name, "start": sample.image.start, "length": sample.image.length}
    if sample.size:
        row |= {"width": sample.size[0], "height": sample.size[1]}
    prompt = sample.prompt
    if prompt is not None or not sample.vocabulary:
        row["caption"] = prompt.caption if prompt else sample.caption
    row["phrases"] = [{"text": p.text, "spans": _lists(p.spans)} for p in (prompt.phrases if prompt else ())]
    if prompt is not None and prompt.is_list:
        row["list"] = True
    if prompt is not None and prompt.classes != tuple(range(len(prompt.phrases))):
        row["classes"] = list(prompt.classes)
    row["boxes"] = [
        {"box": corners, "phrases": list(phrases)}
        | ({"score": sample.scores[index]} if sample.scores else {})
        | ({"crowd": True} if index in sample.crowd else {})
        for index, (corners, phrases) in enumerate(zip(_corners(sample), sample.box_phrases, strict=True))
    ]
    if sample.absent is not None:
        row["absent"] = list(sample.absent)
    if sample.incomplete:
        row["incomplete"] = list(sample.incomplete)
    return row


# ---- what a format can say


def _check_detection(sample: Sample, vocabulary: tuple[str, ...], format: str) -> None:
    if not sample.vocabulary:
        can = "mdetr, odvg or labels" if sample.prompt else "labels"
        raise DataError(f"{_shown(sample)} has a caption, which {format} cannot say: write --to {can}")
    if sample.vocabulary != vocabulary:
        raise DataError(
            f"{_shown(sample)} has a list of names of its own, and {format} has one list for all images, where a "
            "name without a box is absent: write --to labels"
        )


def _grounding(sample: Sample, format: str, lost: SkipCounter) -> Prompt | None:
    """The prompt of a sample that has boxes; what such a file cannot say of it is counted."""
    prompt = sample.prompt
    if prompt is None:
        can = "coco, odvg or labels" if sample.vocabulary else "labels"
        what = "a list of names" if sample.vocabulary else "a caption without phrases"
        raise DataError(f"{_shown(sample)} has {what}, which {format} cannot say: write --to {can}")
    place = _shown(sample)
    if not sample.box_phrases:
        lost.add("caption without a box", place)
        return None
    boxed = {phrase for phrases in sample.box_phrases for phrase in phrases}
    if len(boxed) < len(prompt.phrases):
        lost.add("phrase without a box", place, len(prompt.phrases) - len(boxed))
    if prompt.is_list or prompt.classes != tuple(range(len(prompt.phrases))):
        lost.add("that a caption is a list of names, or its classes", place)
    if sample.scores:
        lost.add("score", place, len(sample.scores))
    return prompt


def _odvg_row(sample: Sample, vocabulary: tuple[str, ...], images: Folders, lost: SkipCounter) -> Row | None:
    prompt = None
    if sample.vocabulary:
        _check_detection(sample, vocabulary, "ODVG")
        if sample.absent is not None or sample.incomplete:
            raise DataError(
                f"{_shown(sample)} says which names are absent or incomplete, which ODVG cannot say: write --to coco "
                "(LVIS's fields) or labels"
            )
    else:
        prompt = _grounding(sample, "ODVG", lost)
        if prompt is None:
            return None
    lost.add("id of an image (its line number takes its place)", _shown(sample))
    row: Row = {"filename": _name(_file(sample, "ODVG"), images)} | _sides(sample, lost)
    corners, boxes = _corners(sample), []
    for index, phrase in _pairs(sample, lost):
        if index in sample.crowd:
            lost.add("box of a crowd", _shown(sample))
        elif prompt is None:
            boxes.append({"bbox": corners[index], "label": phrase, "category": vocabulary[phrase]})
        else:
            own = prompt.phrases[phrase]
            boxes.append({"bbox": corners[index], "phrase": own.text, "tokens_positive": _lists(own.spans)})
    if prompt is None:
        return row | {"detection": {"instances": boxes}}
    return row | {"grounding": {"caption": prompt.caption, "regions": boxes}}


def _pairs(sample: Sample, lost: SkipCounter) -> Iterator[tuple[int, int]]:
    """Each box with each of its names, for formats in which a box has one."""
    if sample.scores and sample.vocabulary:
        lost.add("score", _shown(sample), len(sample.scores))
    for index, phrases in enumerate(sample.box_phrases):
        if len(phrases) > 1:
            lost.add("that several names are of one box (it is written once for each)", _shown(sample))
        for phrase in phrases:
            yield index, phrase


# ---- parts of rows


def _record(sample: Sample, images: Folders, taken: set[int | str], lost: SkipCounter) -> Row:
    """The entry of ``images``, its id unique."""
    number = sample.image_id
    if number in taken:
        lost.add("id of an image (another has it too)", _shown(sample))
        number = next(own for own in (f"{number}#{again}" for again in range(2, 1 << 31)) if own not in taken)
    taken.add(number)
    return {"id": number, "file_name": _name(_file(sample, "this format"), images)} | _sides(sample, lost)


def _coco_box(sample: Sample, index: int, image_id: int | str) -> Row:
    left, top, right, bottom = _decimals(sample.boxes[index].numpy())
    # nine digits: without the tails of binary fractions, and still exact when added up and rounded to float32
    width, height = round(right - left, 9), round(bottom - top, 9)
    crowd = int(index in sample.crowd)
    return {"image_id": image_id, "bbox": [left, top, width, height], "area": width * height, "iscrowd": crowd}


def _corners(sample: Sample) -> list[list[float]]:
    return [_decimals(row) for row in sample.boxes.numpy()]


def _decimals(row: np.ndarray) -> list[float]:
    """The shortest decimals that are these float32 numbers."""
    return [float(str(value)) for value in row]


def _lists(spans: Iterable[tuple[int, int]]) -> list[list[int]]:
    return [list(span) for span in spans]


def _sides(sample: Sample, lost: SkipCounter) -> Row:
    size = sample.size
    if size is None:
        try:
            size = image_size(_file(sample, "this format"))
        except ImageError:
            lost.add("size of an image that cannot be read", _shown(sample))
            return {}
    return {"width": size[0], "height": size[1]}


def _file(sample: Sample, format: str) -> Path:
    if isinstance(sample.image, TarMember):
        raise DataError(f"{_shown(sample)} lies in an archive, which {format} cannot say: write --to labels")
    if isinstance(sample.image, Image.Image):
        raise DataError(f"{_shown(sample)} is drawn: save it and put its path in the sample")
    return sample.image


def _name(image: Path | TarMember | Image.Image, images: Folders) -> str:
    """The name of an image's file (or archive) relative to the first folder that it lies in."""
    if isinstance(image, Image.Image):
        raise DataError("a drawn image has no file: save it and put its path in the sample")
    file = image.archive if isinstance(image, TarMember) else image
    for folder in images:
        for path, root in ((file, Path(folder)), (file.absolute(), Path(folder).absolute())):
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
    folders = ", ".join(repr(str(folder)) for folder in images) or "none given"
    raise DataError(f"image {str(file)!r} does not lie in the image folders ({folders}): give its folder")


def _shown(sample: Sample) -> str:
    return f"image {sample.image_id!r}"


# ---- files


def _write_json(path: Path, categories: list[Row], rows: Iterator[tuple[Row, list[Row]]]) -> None:
    """COCO's three lists; boxes wait in a second file until all images are written."""
    with whole_file(path) as file, tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent) as later:
        file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        count = 0
        for number, (record, boxes) in enumerate(rows):
            file.write((",\n" if number else "\n") + json.dumps(record))
            for box in boxes:
                count += 1
                later.write((",\n" if count > 1 else "\n") + json.dumps({"id": count, **box}))
        file.write('\n],\n"annotations": [')
        later.seek(0)
        shutil.copyfileobj(later, file)
        file.write("\n]}\n")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file that takes its name only when all of it is on the disk."""
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder: give the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(handle)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
