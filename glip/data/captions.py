"""Images with captions and no boxes yet: COCO captions, jsonl, CSV, TSV, WebDataset tars.

One Sample per image and caption. Files are read as a stream, so that ten million lines need no more memory than one.
Columns and keys are recognized by name (``IMAGE_KEYS``, ``CAPTION_KEYS``).
"""

import csv
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from glip.data import records
from glip.data.download import is_url
from glip.data.image import ENDINGS, read_member
from glip.data.records import as_map
from glip.data.sets import Folders, Id, Row, SampleSet, SkipCounter, check_exists, require
from glip.structures import Sample, TarMember
from glip.text.phrases import unescape

IMAGE_KEYS = ("image", "picture", "file_name", "filename", "file", "filepath", "image_path", "path", "key")
CAPTION_KEYS = ("caption", "captions", "text", "title")
_URL_KEYS = ("url", "image_url")
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_MAX_TEXT = 1 << 20  # bytes of a text in an archive
_IMAGES, _TEXTS = {ending.removeprefix(".") for ending in ENDINGS}, {"txt", "json"}
_IMAGE_NAME = re.compile(rf"\.({'|'.join(_IMAGES)})(#\d+)?$|^https?://", re.IGNORECASE)
_BY_URL = "image named by a URL (download it, for instance with img2dataset)"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_captions(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read a dataset of captions.

    - ``.json``: COCO captions (``images`` and ``annotations`` with ``caption``), or a list of records;
    - ``.jsonl``: one record per line, such as {"image": "a.jpg", "caption": "a dog"}, or a list of captions;
    - ``.csv``, ``.tsv``, ``.txt`` (tabs): a header names the columns. A TSV of two columns may have none: the column
      whose first value looks like an image's name or URL is the image (CC3M, SBU, Flickr8k.token);
    - ``.tar``: WebDataset as img2dataset writes it, KEY.jpg with KEY.txt or KEY.json; read in place, never extracted;
    - a folder: all its tars, else all its files of the other kinds.

    HTML entities become the characters that they stand for. Images that are named by URL only are skipped: nothing is
    downloaded. Arguments as for ``read_coco``; tars need no image folders.
    """
    path, skipped = Path(annotations), SkipCounter()
    files = caption_files(path)
    shards = all(file.suffix.lower() == ".tar" for file in files)  # their images are inside, wherever others may be
    folders = Folders([path.parent] if shards or not images else images)
    samples = (sample for file in files for sample in _read_file(file, folders, skipped, tree))
    return records.pack_sample_set(path, samples, skipped)


def caption_files(path: Path) -> list[Path]:
    """The files of a dataset of captions: itself, or in a folder all its tars, else all its files of other kinds."""
    check_exists(path)
    if path.is_file():
        return [path]
    inside = sorted(file for file in path.iterdir() if file.is_file())
    tars = [file for file in inside if file.suffix.lower() == ".tar"]
    return tars or [file for file in inside if file.suffix.lower() in _SUFFIXES]


def _read_file(path: Path, folders: Folders, skipped: SkipCounter, tree: Any) -> Iterator[Sample]:
    """The samples of one file, whatever its kind: each record has an image, and a caption or a list of them."""
    suffix = path.suffix.lower()

    def read(record: Any, image_id: Id | None = None) -> list[Sample]:
        return _read_record(as_map(record), image_id, folders, skipped)

    if suffix == ".tar":
        members = groupby(_members(path, skipped), key=lambda member: _split_name(member.name)[0])
        found = skipped.each(members, lambda own: read(_record_of(own, skipped)), path.name)
    elif suffix == ".jsonl" or (suffix == ".json" and tree is None and records.first_json_line(path)):
        found = skipped.each(
            records.read_lines(path), lambda line: read(records.parse_line(line)), f"{path.name}, line"
        )
    elif suffix == ".json":
        tree = records.parse_file(path) if tree is None else tree
        if isinstance(tree, list):
            found = skipped.each(enumerate(tree), read, f"{path.name}, record")
        else:
            tree = records.read_lists(path, ("images", "annotations"), "COCO captions", tree)
            images = records.by_image(tree, skipped)
            found = skipped.each(images, lambda pair: read({**pair[0], "caption": pair[1]}, pair[0]["id"]), "image")
    else:
        return _read_table(path, read, skipped)
    return chain.from_iterable(found)


def _read_record(record: Row, image_id: Id | None, folders: Folders, skipped: SkipCounter) -> list[Sample]:
    """A sample for each caption of a record."""
    name, captions, url = (
        next((record[key] for key in keys if record.get(key) is not None), None)
        for keys in (IMAGE_KEYS, CAPTION_KEYS, _URL_KEYS)
    )
    require(name is not None or url is None, _BY_URL)
    image = name if isinstance(name, TarMember) else folders.locate(name)
    require(not is_url(name) or (isinstance(image, Path) and image.is_file()), _BY_URL)
    listed = captions if isinstance(captions, list) else [] if captions is None else [captions]
    listed = [one.get("caption") if isinstance(one, dict) else one for one in listed]  # COCO's annotations are maps
    require(listed, "image without a caption")
    own = str(getattr(name, "name", name)) if image_id is None else image_id
    texts = skipped.each(enumerate(listed), lambda caption: unescape(records.read_caption(caption)).strip(), "caption")
    size = records.read_size(record)
    return [Sample(image, torch.empty(0, 4), (), caption=text, image_id=own, size=size) for text in texts]


# ---- tables


def _read_table(path: Path, read: Callable[[Row], list[Sample]], skipped: SkipCounter) -> Iterator[Sample]:
    """What ``read`` makes of each row of a table."""
    names: list[str] = []
    for row in _text_rows(path, skipped):
        values = [value.strip() for value in row]
        if not names:
            names, headless = _column_names(values, path.suffix.lower() == ".csv")
            if not names:
                skipped.add("first line that names no columns (give a header: image and caption)")
                return
            if not headless:
                continue
        with skipped.catch():
            require(len(values) == len(names), "line with too few or too many columns")
            record = dict(zip(names, values, strict=True))
            if "image" in record:
                record["image"] = re.sub(r"#\d+$", "", record["image"])  # Flickr8k.token numbers an image's captions
            yield from read(record)


def _column_names(row: list[str], is_csv: bool) -> tuple[list[str], bool]:
    """The names of a table's columns, and whether its first row is data: a TSV of image and caption has no header."""
    names = [value.lower() for value in row]
    if set(names) & set(CAPTION_KEYS) and set(names) & {*IMAGE_KEYS, *_URL_KEYS}:
        return names, False
    images = [bool(_IMAGE_NAME.search(value)) for value in row]
    if is_csv or len(row) != 2 or sum(images) != 1:
        return [], False
    return (["image", "caption"] if images[0] else ["caption", "image"]), True


def _text_rows(path: Path, skipped: SkipCounter) -> Iterator[list[str]]:
    """The rows of a CSV, or lines cut at tabs.

    In a CSV a quote left open swallows no more than a field may hold (131,072 characters). Web captions in tables with
    tabs hold stray quotes, so quotes count only when they enclose a field properly.
    """
    texts = skipped.each(records.read_lines(path), records.decode_text, f"{path.name}, line")
    lines = (text.rstrip("\r\n") for text in texts)
    if path.suffix.lower() != ".csv":
        for line in lines:
            quoted = [(value, _QUOTED.fullmatch(value)) for value in line.split("\t")]
            yield [value[1:-1].replace('""', '"') if whole else value for value, whole in quoted]
        return
    reader = csv.reader(f"{line}\n" for line in lines)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            skipped.add("line that is not CSV")


# ---- WebDataset: images and captions read where they are in a tar; no member is ever written to disk


def _members(path: Path, skipped: SkipCounter) -> Iterator[TarMember]:
    """The images and texts of a tar in their order; other members are counted, as is that the archive breaks off."""
    total, whole = path.stat().st_size, False
    stumbles = suppress(tarfile.TarError, ValueError, OverflowError)  # tarfile itself over some headers
    with stumbles, tarfile.open(path, "r:") as archive, path.open("rb") as file:
        while (info := archive.next()) is not None and info.size >= 0:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it has seen
            yield from () if info.isdir() else _usable(path, info, total, skipped)
        file.seek(archive.offset)  # a whole tar ends with blocks of zeros, or with its file
        whole = info is None and not any(file.read(tarfile.BLOCKSIZE))
    if not whole:
        skipped.add("tar that is compressed, or broken from some place on", path.name)


def _usable(path: Path, info: tarfile.TarInfo, total: int, skipped: SkipCounter) -> list[TarMember]:
    """The place of a member, if it can be read; else it is counted."""
    suffix = _split_name(info.name)[1]
    limit = records.MAX_IMAGE if suffix in _IMAGES else _MAX_TEXT
    with skipped.catch(f"{path.name}:{info.name}"):
        require(info.isreg() and not info.issparse(), "member that is a link, a device or sparse")
        require(suffix in _IMAGES | _TEXTS, "member that is neither an image nor a caption")
        require(info.size <= limit, f"member of over {limit >> 20} MB")
        require(info.offset_data + info.size <= total, "member that is cut off")
        return [TarMember(path, info.name, info.offset_data, info.size)]
    return []


def _split_name(name: str) -> tuple[str, str]:
    """The key that an image and its caption share, and the suffix: ("a/000", "jpg") of "a/000.jpg"."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.parent / stem), suffix.lower()


def _record_of(members: Iterable[TarMember], skipped: SkipCounter) -> Row:
    """The members of one key as a record: KEY.jpg with KEY.txt, or with the ``caption`` of KEY.json."""
    parts = {_split_name(member.name)[1]: member for member in members}
    images = [member for suffix, member in parts.items() if suffix in _IMAGES]
    require(images, "caption without an image")
    record: Row = {}
    if "json" in parts:
        with skipped.catch("json"):
            record = records.parse_line(read_member(parts["json"]))
    if "txt" in parts:
        with skipped.catch("txt"):
            record["caption"] = records.decode_text(read_member(parts["txt"]))
    return {**record, "image": images[0]}
