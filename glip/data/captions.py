"""Images with captions and no boxes yet: COCO captions, jsonl, CSV, TSV, WebDataset tars.

One Sample per image and caption. Files are read as a stream, so that ten million lines need no more memory than one.
Columns and keys are recognized by name (``IMAGE_KEYS``, ``CAPTION_KEYS``).
"""

import csv
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

from glip.data.records import (
    MAX_IMAGE,
    as_map,
    by_image,
    check_exists,
    is_text,
    pack_sample_set,
    parse_json,
    parse_line,
    read_lines,
    read_lists,
    read_size,
)
from glip.data.sets import Folders, Id, Row, SampleSet, SkipCounter, require
from glip.errors import DataError
from glip.structures import Sample, TarMember

IMAGE_KEYS = ("image", "picture", "file_name", "filename", "file", "filepath", "image_path", "path", "key")
CAPTION_KEYS = ("caption", "captions", "text", "title")
_URL_KEYS = ("url", "image_url")
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_MAX_FIELD = 1 << 20  # characters of a CSV field, where Python's own limit is 131072
_MAX_TEXT = 1 << 20  # bytes of a text in an archive
_IMAGES, _TEXTS = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"}, {"txt", "json"}
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)(#\d+)?$|^https?://", re.IGNORECASE)
_BY_URL = "image named by a URL (download it, for instance with img2dataset)"
_BROKEN = "archive that is broken from some place on"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_captions(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read a dataset of captions.

    - ``.json``: COCO captions (``images`` and ``annotations`` with ``caption``), or a list of records;
    - ``.jsonl``: one record per line, such as {"image": "a.jpg", "caption": "a dog"}, or a list of captions;
    - ``.csv``, ``.tsv``, ``.txt`` (tabs): a header names the columns. A TSV of two columns may have none: the column
      whose first value looks like an image's name or URL is the image (CC3M, SBU, Flickr8k.token);
    - ``.tar``: WebDataset as img2dataset writes it, KEY.jpg with KEY.txt or KEY.json; read in place, never extracted;
    - a folder: all its tars, else all its files of the other kinds.

    Images that are named by URL only are skipped: nothing is downloaded.

    Args:
        annotations: the file or folder.
        images: image folders; not needed for tars.
        tree: the content of a json, if it was parsed before.
    """
    path, skipped = Path(annotations), SkipCounter()
    files = caption_files(path)
    shards = all(file.suffix.lower() == ".tar" for file in files)  # their images are inside, wherever others may be
    folders = Folders([files[0].parent] if shards or not images else images)
    samples = (sample for file in files for sample in _read_file(file, folders, skipped, tree))
    return pack_sample_set(path, samples, skipped)


def caption_files(path: Path) -> list[Path]:
    """The files of a dataset of captions: itself, or in a folder all its tars, else all its files of other kinds."""
    check_exists(path)
    if path.is_file():
        return [path]
    inside = sorted(file for file in path.iterdir() if file.is_file())
    tars = [file for file in inside if file.suffix.lower() == ".tar"]
    found = tars or [file for file in inside if file.suffix.lower() in _SUFFIXES]
    if not found:
        raise DataError(f"{path}: no captions in this folder: it needs .tar files, or {', '.join(_SUFFIXES)}")
    return found


def _read_file(path: Path, folders: Folders, skipped: SkipCounter, tree: Any) -> Iterator[Sample]:
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return _tar_samples(path, skipped)
    if suffix in (".jsonl", ".csv", ".tsv", ".txt"):
        rows = _jsonl_rows(path, skipped) if suffix == ".jsonl" else _table_rows(path, skipped)
        return _record_samples(rows, f"{path.name}, line", folders, skipped)
    if suffix != ".json":
        raise DataError(f"{path}: captions with the suffix {suffix!r}: give .tar, .txt, {', '.join(_SUFFIXES)}")
    tree = parse_json(path) if tree is None else tree
    if isinstance(tree, list):
        return _record_samples(enumerate(tree), f"{path.name}, record", folders, skipped)
    return _coco_samples(read_lists(path, ("images", "annotations"), "COCO captions", tree), folders, skipped)


def _coco_samples(tree: Row, folders: Folders, skipped: SkipCounter) -> Iterator[Sample]:
    for image, annotations in by_image(tree, skipped):
        with skipped.catch(f"image {image['id']}"):
            file = folders.locate(image.get("file_name"))
            captions = [annotation.get("caption") for annotation in annotations]
            yield from _caption_samples(file, captions, image["id"], read_size(image), skipped)


def _record_samples(
    rows: Iterable[tuple[int, Any]], place: str, folders: Folders, skipped: SkipCounter
) -> Iterator[Sample]:
    """The samples of numbered records, or of the rows of a table as records."""
    for number, record in rows:
        with skipped.catch(f"{place} {number}"):
            require(isinstance(record, dict), "line that is no record")
            name, captions = _first(record, IMAGE_KEYS), _first(record, CAPTION_KEYS)
            url = _first(record, _URL_KEYS) if name is None else name
            require(name is url and not (isinstance(name, str) and re.match("https?://", name)), _BY_URL)
            texts = captions if isinstance(captions, list) else [] if captions is None else [captions]
            yield from _caption_samples(folders.locate(name), texts, str(name), read_size(record), skipped)


def _first(record: Row, keys: Sequence[str]) -> Any:
    return next((record[key] for key in keys if record.get(key) is not None), None)


def _caption_samples(
    image: Path | TarMember, captions: Sequence[Any], image_id: Id, size: tuple[int, int] | None, skipped: SkipCounter
) -> Iterator[Sample]:
    require(captions, "image without a caption")
    for caption in captions:
        text = caption.strip() if isinstance(caption, str) else ""
        with skipped.catch(str(image)):
            require(text, "caption that is empty or no text")
            require(is_text(text), "caption that is not UTF-8")
            yield Sample(image, torch.empty(0, 4), (), caption=text, image_id=image_id, size=size)


# ---- lines of text


def _text_lines(path: Path, skipped: SkipCounter) -> Iterator[tuple[int, str]]:
    for number, line in read_lines(path):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            skipped.add("line that is not UTF-8", f"{path.name}, line {number}")


def _jsonl_rows(path: Path, skipped: SkipCounter) -> Iterator[tuple[int, Row]]:
    for number, line in _text_lines(path, skipped):
        with skipped.catch(f"{path.name}, line {number}"):
            yield number, parse_line(line)


def _table_rows(path: Path, skipped: SkipCounter) -> Iterator[tuple[int, Row]]:
    """The rows of a table as records, with their lines."""
    rows = _csv_rows(path, skipped) if path.suffix.lower() == ".csv" else _tab_rows(path, skipped)
    names: list[str] = []
    for number, row in rows:
        values = [value.strip() for value in row]
        if not names:
            names, headless = _column_names(path, values)
            if not headless:
                continue
        if len(values) != len(names):
            skipped.add("line with too few or too many columns", f"{path.name}, line {number}")
            continue
        record = dict(zip(names, values, strict=True))
        if "image" in record:
            record["image"] = re.sub(r"#\d+$", "", record["image"])  # Flickr8k.token numbers the captions of an image
        yield number, record


def _column_names(path: Path, row: list[str]) -> tuple[list[str], bool]:
    """The names of a table's columns, and whether its first row is data: a TSV of image and caption has no header."""
    names = [value.lower() for value in row]
    if set(names) & set(CAPTION_KEYS) and set(names) & {*IMAGE_KEYS, *_URL_KEYS}:
        return names, False
    images = [bool(_IMAGE_NAME.search(value)) for value in row]
    if path.suffix.lower() == ".csv" or len(row) != 2 or sum(images) != 1:
        raise DataError(
            f"{path}: its first line {' | '.join(row)[:80]!r} names no columns: give a header with one of "
            f"{', '.join(IMAGE_KEYS)} and one of {', '.join(CAPTION_KEYS)}, or a TSV of image and caption"
        )
    return (["image", "caption"] if images[0] else ["caption", "image"]), True


def _tab_rows(path: Path, skipped: SkipCounter) -> Iterator[tuple[int, list[str]]]:
    """Lines cut at tabs. Web captions hold stray quotes, so quotes count only when they enclose a field properly."""
    for number, line in _text_lines(path, skipped):
        quoted = [(value, _QUOTED.fullmatch(value)) for value in line.split("\t")]
        yield number, [value[1:-1].replace('""', '"') if whole else value for value, whole in quoted]


def _csv_rows(path: Path, skipped: SkipCounter) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(f"{line}\n" for _, line in _text_lines(path, skipped))
    while True:
        limit = csv.field_size_limit(_MAX_FIELD)  # of the whole process, so it is set back between rows
        try:
            row = next(reader, None)
        except csv.Error:
            skipped.add("line that is not CSV", f"{path.name}, line {reader.line_num}")
            continue
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield reader.line_num, row


# ---- WebDataset: images and captions read where they are in a tar; no member is ever written to disk


class _Member(NamedTuple):
    key: str
    suffix: str
    place: TarMember


def _tar_samples(path: Path, skipped: SkipCounter) -> Iterator[Sample]:
    """The images of a tar that have captions: KEY.jpg with KEY.txt, or with the ``caption`` of KEY.json.

    Members that are links, devices, sparse, too large or cut off are counted, as are images without captions and
    captions without an image.
    """
    for key, members in groupby(_members(path, skipped), key=lambda member: member.key):
        parts = {member.suffix: member.place for member in members}
        with skipped.catch(f"{path.name}:{key}"):
            images = [place for suffix, place in parts.items() if suffix in _IMAGES]
            require(images, "caption without an image")
            captions, size = _read_texts(parts, skipped)
            yield from _caption_samples(images[0], captions, images[0].name, size, skipped)


def _read_texts(parts: dict[str, TarMember], skipped: SkipCounter) -> tuple[list[Any], tuple[int, int] | None]:
    """The captions of an image, and (width, height) where its json states them."""
    record: Row = {}
    if "json" in parts:
        try:
            record = as_map(json.loads(_member_text(parts["json"])))
        except (ValueError, RecursionError):
            skipped.add("member that is not json", str(parts["json"]))
    caption = record.get("caption")
    captions = [text for text in (caption if isinstance(caption, list) else [caption]) if text is not None]
    if "txt" in parts:
        try:
            captions = [_member_text(parts["txt"])]
        except ValueError:
            skipped.add("member that is not UTF-8", str(parts["txt"]))
    return captions, read_size(record)


def _member_text(place: TarMember) -> str:
    with place.archive.open("rb") as file:
        file.seek(place.start)
        return file.read(place.length).decode("utf-8")


def _members(path: Path, skipped: SkipCounter) -> Iterator[_Member]:
    """The images and texts of a tar in their order; other members are counted."""
    total = path.stat().st_size
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115  # closed below
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: not an uncompressed tar ({error}): unpack .tar.gz to .tar, so that it is read in place"
        ) from None
    with archive:
        for info in _headers(path, archive, skipped):
            with skipped.catch(f"{path.name}:{info.name}"):
                yield _usable(path, info, total)


def _headers(path: Path, archive: tarfile.TarFile, skipped: SkipCounter) -> Iterator[tarfile.TarInfo]:
    """The members but for folders; that the archive breaks off is counted."""
    try:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it has seen
            if info.size < 0:
                raise tarfile.ReadError(f"member {info.name!r} of {info.size} bytes")
            if not info.isdir():
                yield info
        with path.open("rb") as file:
            file.seek(archive.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # a whole tar ends with blocks of zeros, or with its file
                skipped.add(_BROKEN, f"{path.name}, byte {archive.offset}")
    except (tarfile.TarError, ValueError, OverflowError) as error:  # tarfile itself stumbles over some headers
        skipped.add(_BROKEN, f"{path.name}: {error}")


def _usable(path: Path, info: tarfile.TarInfo, total: int) -> _Member:
    name = PurePosixPath(info.name)
    stem, _, suffix = name.name.partition(".")
    suffix = suffix.lower()
    require(info.isreg() and not info.issparse(), "member that is a link, a device or sparse")
    require(suffix in _IMAGES | _TEXTS, "member that is neither an image nor a caption")
    limit = MAX_IMAGE if suffix in _IMAGES else _MAX_TEXT
    require(info.size <= limit, f"member of over {limit >> 20} MB")
    require(info.offset_data + info.size <= total, "member that is cut off")
    return _Member(str(name.parent / stem), suffix, TarMember(path, info.name, info.offset_data, info.size))
