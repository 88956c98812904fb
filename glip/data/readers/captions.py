"""Images with captions whose phrases nobody has looked for yet: COCO captions, jsonl, CSV, TSV, WebDataset tars.

One Sample per image and caption, without boxes. Files are read as a stream, so that ten million lines need no more
memory than one. Columns and keys are recognised by name (``IMAGE_KEYS``, ``CAPTION_KEYS``).
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from glip.data.readers.fields import InvalidRecord, by_image, is_text, parse_json, read_image, read_size
from glip.data.readers.shards import read_shard
from glip.data.sets import Folders, PackedSamples, SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Sample, TarMember

IMAGE_KEYS = ("image", "picture", "file_name", "filename", "file", "filepath", "image_path", "path", "key")
CAPTION_KEYS = ("caption", "captions", "text", "title")
_URL_KEYS = ("url", "image_url")
_ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
_MAX_LINE = 1 << 24  # bytes of a line; a longer one is no list of captions
_MAX_FIELD = 1 << 20  # characters of a CSV field, where Python's own limit is 131072
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)(#\d+)?$|^https?://", re.IGNORECASE)
_BY_URL = "image named by a URL"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_captions(annotations: str | Path, images: Sequence[str | Path]) -> SampleSet:
    """Read a set of captions.

    - ``.json``: COCO captions (``images`` and ``annotations`` with ``caption``), or a list of records;
    - ``.jsonl``: one record per line, such as {"image": "a.jpg", "caption": "a dog"}; a list of captions is several;
    - ``.csv``, ``.tsv``, ``.txt`` (tabs): a header names the columns. A TSV of two columns may have none: the column
      whose first value looks like an image's name or URL is the image (CC3M, SBU, Flickr8k.token);
    - ``.tar``: WebDataset as img2dataset writes it, KEY.jpg with KEY.txt or KEY.json; read in place, never extracted;
    - a folder: all its tars, else all its files of the other kinds.

    Images that are named by URL only are left out and counted: nothing is downloaded.

    Args:
        annotations: the file or folder.
        images: folders of the images; not needed for tars.

    Raises:
        FileNotFoundError: the file or a folder is not there.
        ValueError: not a file of captions, or none in it that can be used.
    """
    path, tally = Path(annotations), SkipCounter()
    files = caption_files(path)
    shards = all(file.suffix.lower() == ".tar" for file in files)  # their images are inside, wherever others may be
    folders = Folders([files[0].parent] if shards or not images else images)
    samples = PackedSamples(sample for file in files for sample in _read(file, folders, tally))
    if not len(samples):
        advice = "download them, for instance with img2dataset" if _BY_URL in tally.counts else "see docs/data.md"
        raise DataError(f"{path}: no image with a caption can be read of it ({tally or 'it is empty'}): {advice}")
    return SampleSet(samples, skipped=tally)


def caption_files(path: Path) -> list[Path]:
    """The files of a set of captions: itself, or in a folder all its tars, else all its files of the other kinds.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: a folder without any.
    """
    if not path.exists():
        raise FileNotFoundError(f"captions {str(path)!r} are not there: set data.root or GLIP_DATA to the data folder")
    if path.is_file():
        return [path]
    inside = sorted(file for file in path.iterdir() if file.is_file())
    tars = [file for file in inside if file.suffix.lower() == ".tar"]
    found = tars or [file for file in inside if file.suffix.lower() in _ENDINGS]
    if not found:
        raise DataError(f"{path}: no captions in this folder: it needs .tar files, or {', '.join(_ENDINGS)}")
    return found


def _read(path: Path, folders: Folders, tally: SkipCounter) -> Iterator[Sample]:
    match path.suffix.lower():
        case ".tar":
            for entry in read_shard(path, tally):
                yield from _samples(entry.image, entry.captions, tally, entry.image.name, entry.size)
        case ".json":
            yield from _read_json(path, folders, tally)
        case ".jsonl":
            for number, line in _lines(path, tally):
                yield from _read_record(_parsed(line), f"{path.name}, line {number}", folders, tally)
        case ".csv" | ".tsv" | ".txt":
            rows = _csv_rows(path, tally) if path.suffix.lower() == ".csv" else _tab_rows(path, tally)
            yield from _read_table(path, rows, folders, tally)
        case ending:
            raise DataError(f"{path}: captions with the ending {ending!r}: give .tar, .txt, {', '.join(_ENDINGS)}")


# ---- json


def _read_json(path: Path, folders: Folders, tally: SkipCounter) -> Iterator[Sample]:
    tree = parse_json(path)
    if isinstance(tree, list):
        for index, record in enumerate(tree):
            yield from _read_record(record, f"{path.name}, record {index}", folders, tally)
        return
    if not (isinstance(tree, dict) and all(isinstance(tree.get(key), list) for key in ("images", "annotations"))):
        raise DataError(f"{path}: not COCO captions (lists of images and annotations) and not a list of records")
    for image, annotations in by_image(tree, tally):
        place = f"image {image['id']}"
        if not annotations:
            tally.add("image without a caption", place)
            continue
        try:
            file = read_image(folders, image.get("file_name"))
        except InvalidRecord as reason:
            tally.add(str(reason), place)
            continue
        captions = [annotation.get("caption") for annotation in annotations]
        yield from _samples(file, captions, tally, image["id"], read_size(image))


def _read_record(record: Any, place: str, folders: Folders, tally: SkipCounter) -> Iterator[Sample]:
    """The samples of one line of jsonl, or of one row of a table as a record."""
    if not isinstance(record, dict):
        tally.add("line that is no record", place)
        return
    name, captions = _first(record, IMAGE_KEYS), _first(record, CAPTION_KEYS)
    if captions is None:
        tally.add("line without a caption", place)
        return
    by_url = name is None and _first(record, _URL_KEYS) is not None
    if by_url or (isinstance(name, str) and re.match("https?://", name)):
        tally.add(_BY_URL, place)
        return
    try:
        file = read_image(folders, name)
    except InvalidRecord as reason:
        tally.add(str(reason), place)
        return
    texts = captions if isinstance(captions, list) else [captions]
    yield from _samples(file, texts, tally, str(name), read_size(record))


# ---- tables


def _read_table(
    path: Path, rows: Iterator[tuple[int, list[str]]], folders: Folders, tally: SkipCounter
) -> Iterator[Sample]:
    first = next(rows, None)
    if first is None:
        return
    names = [name.strip().lower() for name in first[1]]
    if not (set(names) & set(CAPTION_KEYS) and set(names) & {*IMAGE_KEYS, *_URL_KEYS}):
        names = _columns(path, first[1])
        yield from _read_row(names, first, path, folders, tally)
    for row in rows:
        yield from _read_row(names, row, path, folders, tally)


def _columns(path: Path, row: list[str]) -> list[str]:
    """The names of the two columns of a table without a header, told by its first row."""
    images = [bool(_IMAGE_NAME.search(value.strip())) for value in row]
    if path.suffix.lower() == ".csv" or len(row) != 2 or sum(images) != 1:
        raise DataError(
            f"{path}: its first line {' | '.join(row)[:80]!r} names no columns: give a header with one of "
            f"{', '.join(IMAGE_KEYS)} and one of {', '.join(CAPTION_KEYS)}, or a TSV of image and caption"
        )
    return ["image", "caption"] if images[0] else ["caption", "image"]


def _read_row(
    names: list[str], row: tuple[int, list[str]], path: Path, folders: Folders, tally: SkipCounter
) -> Iterator[Sample]:
    number, values = row
    place = f"{path.name}, line {number}"
    if len(values) != len(names):
        tally.add("line with too few or too many columns", place)
        return
    record: dict[str, str] = dict(zip(names, (value.strip() for value in values), strict=True))
    if "image" in record:
        record["image"] = re.sub(r"#\d+$", "", record["image"])  # Flickr8k.token numbers the captions of an image
    yield from _read_record(record, place, folders, tally)


def _tab_rows(path: Path, tally: SkipCounter) -> Iterator[tuple[int, list[str]]]:
    """Lines cut at tabs. Web captions hold stray quotes, so quotes count only when they enclose a field properly."""
    for number, line in _lines(path, tally):
        yield number, [_unquoted(value) for value in line.split("\t")]


def _unquoted(value: str) -> str:
    return value[1:-1].replace('""', '"') if _QUOTED.fullmatch(value) else value


def _csv_rows(path: Path, tally: SkipCounter) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(f"{line}\n" for _, line in _lines(path, tally))
    while True:
        limit = csv.field_size_limit(_MAX_FIELD)  # of the whole process, so it is set back between rows
        try:
            row = next(reader, None)
        except csv.Error:
            tally.add("line that is not CSV", f"{path.name}, line {reader.line_num}")
            continue
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield reader.line_num, row


# ---- parts of all


def _lines(path: Path, tally: SkipCounter) -> Iterator[tuple[int, str]]:
    """The lines of a file that are UTF-8, counted from 1, without empty ones."""
    with path.open("rb") as file:
        for number, raw in enumerate(_raw_lines(file), start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                tally.add("line that is not UTF-8", f"{path.name}, line {number}")
                continue
            if len(raw) == _MAX_LINE and not raw.endswith(b"\n"):
                tally.add(f"line of over {_MAX_LINE >> 20} MB", f"{path.name}, line {number}")
            elif line:
                yield number, line


def _raw_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file, each of its first ``_MAX_LINE`` bytes only."""
    while line := file.readline(_MAX_LINE):
        yield line
        while len(line) == _MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _samples(
    image: Path | TarMember,
    captions: Sequence[Any],
    tally: SkipCounter,
    image_id: int | str,
    size: tuple[int, int] | None,
) -> Iterator[Sample]:
    for caption in captions:
        text = caption.strip() if isinstance(caption, str) else ""
        if not text:
            tally.add("caption that is empty or no text", str(image))
        elif not is_text(text):
            tally.add("caption that is not UTF-8", str(image))
        else:
            yield Sample(image, torch.empty(0, 4), (), caption=text, image_id=image_id, size=size)


def _first(record: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((record[key] for key in keys if record.get(key) is not None), None)
