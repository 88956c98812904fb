"""Samples as files: COCO (with LVIS's fields where a dataset is federated), MDETR json, ODVG jsonl, our own labels.

Files are written as a stream, whole or not at all. What a format cannot hold is an error that names one that can, or
is counted in the SkipCounter that each writer returns. Our labels (``labels.py``) hold everything.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from glip.data.image import image_size
from glip.data.sets import Id, Row, SampleSet, SkipCounter
from glip.errors import DataError, ImageError
from glip.files import atomic_write
from glip.structures import Prompt, Sample, TarMember
from glip.text.prompt import clean_name

ImageFolders = Sequence[str | Path]


def write_coco(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write a detection dataset as COCO json; a federated one (LVIS) gets LVIS's lists of absent and incomplete names.

    Args:
        samples: images with boxes, all of one vocabulary.
        path: the json.
        images: image folders; names in the file are relative to them.

    Returns:
        What COCO cannot hold, counted.

    Raises:
        DataError: samples with captions, or with different vocabularies; an image outside the folders.
    """
    lost, names = SkipCounter(), samples.vocabulary
    ids = samples.ids if len(samples.ids) == len(names) else tuple(range(1, len(names) + 1))
    for name, times in Counter(clean_name(name).strip() for name in names).items():  # as they are read
        if times > 1:
            lost.add("name written twice, its twin cannot be told apart", name, times - 1)

    def rows() -> Iterator[tuple[Row, list[Row]]]:
        taken: set[Id] = set()
        for sample in samples.walk("convert"):
            _check_detection(sample, names, "COCO")
            record = _image_record(sample, images, taken, lost)
            if sample.absent is not None:
                record["neg_category_ids"] = [ids[index] for index in sample.absent]
            if sample.absent is not None or sample.incomplete:
                record["not_exhaustive_category_ids"] = [ids[index] for index in sample.incomplete]
            pairs = _single_names(sample, lost)
            yield record, [_coco_box(sample, index, record, category_id=ids[phrase]) for index, phrase in pairs]

    _write_coco_json(
        Path(path), [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)], rows()
    )
    return lost


def write_mdetr(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write captions with their boxes as MDETR's form of COCO json; arguments and result as for ``write_coco``."""
    lost = SkipCounter()

    def rows() -> Iterator[tuple[Row, list[Row]]]:
        taken: set[Id] = set()
        for sample in samples.walk("convert"):
            prompt = _boxed_prompt(sample, "MDETR json", lost)
            if prompt is None:
                continue
            record = _image_record(sample, images, taken, lost)
            record |= {"caption": prompt.caption, "tokens_positive_eval": [_lists(p.spans) for p in prompt.phrases]}
            spans = [
                _lists(sorted({span for phrase in phrases for span in prompt.phrases[phrase].spans}))
                for phrases in sample.box_phrases
            ]
            yield (
                record,
                [_coco_box(sample, i, record, category_id=1, tokens_positive=own) for i, own in enumerate(spans)],
            )

    _write_coco_json(Path(path), [{"id": 1, "name": "object"}], rows())
    return lost


def write_odvg(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write ODVG jsonl: a detection or grounding line per sample; arguments and result as for ``write_coco``.

    The label map is written beside it (``label_map_of``) when there are detection lines.
    """
    lost = SkipCounter()
    rows = (_odvg_row(sample, samples.vocabulary, images, lost) for sample in samples.walk("convert"))
    _write_lines(path, filter(None, rows))
    if samples.vocabulary:
        with atomic_write(label_map_of(path)) as file:
            json.dump({str(label): name for label, name in enumerate(samples.vocabulary)}, file, indent=1)
    return lost


def label_map_of(path: str | Path) -> Path:
    """The label map of an ODVG file: ``train.jsonl`` has ``train_label_map.json``."""
    return Path(path).with_name(f"{Path(path).stem}_label_map.json")


def write_labels(samples: SampleSet, path: str | Path, images: ImageFolders) -> SkipCounter:
    """Write our own label file, which holds everything in a Sample; arguments as for ``write_coco``.

    Returns:
        An empty counter.
    """

    def rows() -> Iterator[Row]:
        names: tuple[str, ...] = ()
        for sample in samples.walk("convert"):
            changed = sample.vocabulary and sample.vocabulary != names
            yield label_row(sample, images) | ({"names": list(sample.vocabulary)} if changed else {})
            names = sample.vocabulary or names

    _write_lines(path, rows())
    return SkipCounter()


def label_row(sample: Sample, images: ImageFolders) -> Row:
    """One line of a label file, without the names of a detection dataset."""
    image = sample.image
    file = image.archive if isinstance(image, TarMember) else image_file(sample, "a label file")
    row: Row = {"image": _name(file, images), "id": sample.image_id}
    if isinstance(image, TarMember):
        row |= {"member": image.name, "start": image.start, "length": image.length}
    if sample.size:
        row |= {"width": sample.size[0], "height": sample.size[1]}
    prompt = sample.prompt
    if prompt is None:
        row |= {"phrases": []} if sample.vocabulary else {"caption": sample.caption, "phrases": []}
    else:
        row["caption"] = prompt.caption
        row["phrases"] = [{"text": phrase.text, "spans": _lists(phrase.spans)} for phrase in prompt.phrases]
        row |= {"list": True} if prompt.is_list else {}
        row |= {"classes": list(prompt.classes)} if _has_classes(prompt) else {}
    row["boxes"] = [
        {"box": _decimals(corners), "phrases": list(phrases)}
        | ({"score": sample.scores[index]} if sample.scores else {})
        | ({"crowd": True} if index in sample.crowd else {})
        for index, (corners, phrases) in enumerate(zip(sample.boxes.numpy(), sample.box_phrases, strict=True))
    ]
    if sample.absent is not None:
        row["absent"] = list(sample.absent)
    if sample.incomplete:
        row["incomplete"] = list(sample.incomplete)
    return row


# ---- what a format can hold


def _refuse(sample: Sample, what: str, format: str, others: str) -> DataError:
    return DataError(f"{_shown(sample)} {what}, which {format} cannot say: write --to {others}")


def _check_detection(sample: Sample, vocabulary: tuple[str, ...], format: str) -> None:
    if not sample.vocabulary:
        raise _refuse(sample, "has a caption", format, "mdetr, odvg or labels" if sample.prompt else "labels")
    if sample.vocabulary != vocabulary:
        what = "has a list of names of its own, not the list of all images"
        raise _refuse(sample, what, f"{format} (where a name without a box is absent)", "labels")


def _boxed_prompt(sample: Sample, format: str, lost: SkipCounter) -> Prompt | None:
    """The prompt of a sample that has boxes; what such a file cannot hold is counted."""
    prompt, place = sample.prompt, _shown(sample)
    if prompt is None and sample.vocabulary:
        raise _refuse(sample, "has a list of names", format, "coco, odvg or labels")
    if prompt is None:
        raise _refuse(sample, "has a caption without phrases", format, "labels")
    if not sample.box_phrases:
        lost.add("caption without a box", place)
        return None
    boxed = {phrase for phrases in sample.box_phrases for phrase in phrases}
    if len(boxed) < len(prompt.phrases):
        lost.add("phrase without a box", place, len(prompt.phrases) - len(boxed))
    if prompt.is_list or _has_classes(prompt):
        lost.add("that a caption is a list of names, or its classes", place)
    if sample.scores:
        lost.add("score", place, len(sample.scores))
    return prompt


def _has_classes(prompt: Prompt) -> bool:
    return prompt.classes != tuple(range(len(prompt.phrases)))


def _odvg_row(sample: Sample, vocabulary: tuple[str, ...], images: ImageFolders, lost: SkipCounter) -> Row | None:
    place, prompt = _shown(sample), None
    if sample.vocabulary:
        _check_detection(sample, vocabulary, "ODVG")
        if sample.absent is not None or sample.incomplete:
            others = "coco (LVIS's fields) or labels"
            raise _refuse(sample, "states which names are absent or incomplete", "ODVG", others)
    else:
        prompt = _boxed_prompt(sample, "ODVG", lost)
        if prompt is None:
            return None
    lost.add("id of an image (its line number takes its place)", place)
    row: Row = {"filename": _name(image_file(sample, "ODVG"), images)} | _size(sample, lost)
    boxes = []
    for index, phrase in _single_names(sample, lost):
        corners = _decimals(sample.boxes[index].numpy())
        if index in sample.crowd:
            lost.add("box of a crowd", place)
        elif prompt is None:
            boxes.append({"bbox": corners, "label": phrase, "category": vocabulary[phrase]})
        else:
            own = prompt.phrases[phrase]
            boxes.append({"bbox": corners, "phrase": own.text, "tokens_positive": _lists(own.spans)})
    if prompt is None:
        return row | {"detection": {"instances": boxes}}
    return row | {"grounding": {"caption": prompt.caption, "regions": boxes}}


def _single_names(sample: Sample, lost: SkipCounter) -> Iterator[tuple[int, int]]:
    """Each box with each of its names, for formats in which a box has one."""
    if sample.scores and sample.vocabulary:
        lost.add("score", _shown(sample), len(sample.scores))
    for index, phrases in enumerate(sample.box_phrases):
        if len(phrases) > 1:
            lost.add("that several names are of one box (it is written once for each)", _shown(sample))
        yield from ((index, phrase) for phrase in phrases)


# ---- parts of rows


def _image_record(sample: Sample, images: ImageFolders, taken: set[Id], lost: SkipCounter) -> Row:
    """The entry of ``images``, its id unique."""
    number = sample.image_id
    if number in taken:
        lost.add("id of an image (another has it too)", _shown(sample))
        number = next(own for own in (f"{number}#{again}" for again in range(2, 1 << 31)) if own not in taken)
    taken.add(number)
    return {"id": number, "file_name": _name(image_file(sample, "this format"), images)} | _size(sample, lost)


def _coco_box(sample: Sample, index: int, record: Row, **more: object) -> Row:
    left, top, right, bottom = _decimals(sample.boxes[index].numpy())
    # nine digits: without the tails of binary fractions, and still exact when added up and rounded to float32
    width, height = round(right - left, 9), round(bottom - top, 9)
    crowd = int(index in sample.crowd)
    box = {"image_id": record["id"], "bbox": [left, top, width, height], "area": width * height, "iscrowd": crowd}
    return box | more


def _decimals(row: np.ndarray) -> list[float]:
    """The shortest decimals that are these float32 numbers."""
    return [float(str(value)) for value in row]


def _lists(spans: Iterable[tuple[int, int]]) -> list[list[int]]:
    return [list(span) for span in spans]


def _size(sample: Sample, lost: SkipCounter) -> Row:
    try:
        width, height = sample.size or image_size(image_file(sample, "this format"))
    except ImageError:
        lost.add("size of an image that cannot be read", _shown(sample))
        return {}
    return {"width": width, "height": height}


def image_file(sample: Sample, format: str) -> Path:
    """The file of a sample's image."""
    if isinstance(sample.image, TarMember):
        raise _refuse(sample, "is in an archive", format, "labels, or unpack it")
    if isinstance(sample.image, Image.Image):
        raise DataError(f"{_shown(sample)} is drawn: save it and put its path in the sample")
    return sample.image


def _name(file: Path, images: ImageFolders) -> str:
    """The name of a file relative to the first folder that holds it."""
    for folder in images:
        for path, root in ((file, Path(folder)), (file.absolute(), Path(folder).absolute())):
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
    folders = ", ".join(repr(str(folder)) for folder in images) or "none given"
    raise DataError(f"Image {str(file)!r} is not in the image folders ({folders}): give its folder")


def _shown(sample: Sample) -> str:
    return f"image {sample.image_id!r}"


def _write_lines(path: str | Path, rows: Iterable[Row]) -> None:
    with atomic_write(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_coco_json(path: Path, categories: list[Row], rows: Iterator[tuple[Row, list[Row]]]) -> None:
    """COCO's three lists; boxes wait in a second file until all images are written."""
    with atomic_write(path) as file, tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent) as later:
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
