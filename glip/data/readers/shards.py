"""WebDataset shards: images and captions read where they lie in a tar; no member is ever written to disk."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from glip.data.readers.fields import read_size
from glip.data.sets import SkipCounter
from glip.errors import DataError
from glip.structures import TarMember

MAX_IMAGE, MAX_TEXT = 1 << 26, 1 << 20  # bytes of a member that is read: 64 MB and 1 MB
_IMAGES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"}
_TEXTS = {"txt", "json"}


@dataclass(frozen=True)
class Entry:
    """An image of a shard, its captions as the shard has them, and (width, height) where the shard states it."""

    image: TarMember
    captions: tuple[Any, ...]
    size: tuple[int, int] | None = None


class _Member(NamedTuple):
    key: str
    ending: str
    place: TarMember


def read_shard(path: Path, tally: SkipCounter) -> Iterator[Entry]:
    """The images of one tar that have captions: KEY.jpg with KEY.txt, or with the ``caption`` of KEY.json.

    Members that are links, devices, sparse, too large or cut off are left out and counted, as are images without
    captions and captions without an image.

    Raises:
        ValueError: not a tar, or a compressed one, whose members cannot be read in place.
    """
    for key, members in groupby(_members(path, tally), key=lambda member: member.key):
        parts = {member.ending: member.place for member in members}
        image = next((place for ending, place in parts.items() if ending in _IMAGES), None)
        place = f"{path.name}:{key}"
        if image is None:
            tally.add("caption without an image", place)
            continue
        entry = _entry(image, parts, tally)
        if not entry.captions:
            tally.add("image without a caption", place)
            continue
        yield entry


def _entry(image: TarMember, parts: dict[str, TarMember], tally: SkipCounter) -> Entry:
    record: Any = {}
    if "json" in parts:
        try:
            record = json.loads(_text(parts["json"]))
        except (ValueError, RecursionError):
            tally.add("member that is not json", str(parts["json"]))
    record = record if isinstance(record, dict) else {}
    size = read_size(record)
    if "txt" in parts:
        try:
            return Entry(image, (_text(parts["txt"]),), size)
        except ValueError:
            tally.add("member that is not UTF-8", str(parts["txt"]))
    caption = record.get("caption")
    listed = caption if isinstance(caption, list) else [caption]
    return Entry(image, tuple(text for text in listed if text is not None), size)


def _text(place: TarMember) -> str:
    with place.archive.open("rb") as file:
        file.seek(place.start)
        return file.read(place.length).decode("utf-8")


def _members(path: Path, tally: SkipCounter) -> Iterator[_Member]:
    """The members of use, in their order; the others are counted."""
    total = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            yield from _usable(path, archive, total, tally)
            if _breaks_off(path, archive.offset, total):
                tally.add("archive that is broken from some place on", f"{path.name}, byte {archive.offset}")
    except (tarfile.TarError, ValueError, OverflowError) as error:  # tarfile itself stumbles over some headers
        if total == 0 or not _starts_as_tar(path):
            raise DataError(
                f"{path}: not an uncompressed tar ({error}): unpack .tar.gz to .tar, so that it is read in place"
            ) from None
        tally.add("archive that is broken from some place on", f"{path.name}: {error}")


def _usable(path: Path, archive: tarfile.TarFile, total: int, tally: SkipCounter) -> Iterator[_Member]:
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it has seen
        if member.size < 0:
            raise tarfile.ReadError(f"member {member.name!r} of {member.size} bytes")
        if member.isdir():
            continue
        place = f"{path.name}:{member.name}"
        name = PurePosixPath(member.name)
        stem, _, ending = name.name.partition(".")
        ending = ending.lower()
        reason = _objection(member, ending, total)
        if reason:
            tally.add(reason, place)
            continue
        kept = TarMember(path, member.name, member.offset_data, member.size)
        yield _Member(str(name.parent / stem), ending, kept)


def _objection(member: tarfile.TarInfo, ending: str, total: int) -> str:
    """Why a member is not used, or nothing."""
    if not member.isreg() or member.issparse():
        return "member that is a link, a device or sparse"
    if ending not in _IMAGES | _TEXTS:
        return "member that is neither an image nor a caption"
    limit = MAX_IMAGE if ending in _IMAGES else MAX_TEXT
    if member.size > limit:
        return f"member of over {limit >> 20} MB"
    return "member that is cut off" if member.offset_data + member.size > total else ""


def _breaks_off(path: Path, end: int, total: int) -> bool:
    """Whether the members end before the archive does: a whole tar ends with blocks of zeros, or with its file."""
    if end >= total:
        return False
    with path.open("rb") as file:
        file.seek(end)
        return any(file.read(tarfile.BLOCKSIZE))


def _starts_as_tar(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.TarError:
            return False
    return True
