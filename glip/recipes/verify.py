"""Whether what a command wrote, and the data it was made from, are still as they were: ``glip verify``."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from glip.config import DataConfig, DatasetConfig, SetConfig
from glip.data.catalog import read_set, split_path
from glip.data.mixture import data_record, read_training_set
from glip.errors import DataError, GlipError
from glip.model.weights import known_sha256, list_pretrained
from glip.provenance import RECORD, RECORDS, Finding, compare, read_record
from glip.schema import parse


def verify(target: str, root: str | None = None) -> Iterator[Finding]:
    """A line for each file and dataset that the records of a target vouch for.

    Args:
        target: a folder with records in it or below it, a file beside one, or a public name of a model.
        root: the data root, instead of the one that was given when the results were made.

    Raises:
        DataError: nothing there can be verified.
    """
    path, looked = Path(target).absolute(), False
    if not path.exists() and target in list_pretrained():
        file, expected = known_sha256(target)
        if expected:
            yield compare(file, expected, file.name)
            return
    looks = [path.rglob] if path.is_dir() else [folder.glob for folder in (path.parent, path.parent.parent)]
    for file in sorted(file for pattern in RECORDS for look in looks for file in look(pattern)):
        for finding in _findings(file, path, root):
            looked = True
            yield finding
    if not looked:
        raise DataError(f"{target!r} cannot be verified: no {RECORD} in it or beside it has a checksum of it")


def _findings(file: Path, path: Path, root: str | None) -> Iterator[Finding]:
    """What one record vouches for; of a single file only that."""
    inside = file.parent.relative_to(path) if path.is_dir() else Path()
    try:
        tree = read_record(file)
    except DataError as error:
        yield (inside / str(error)).as_posix(), True
        return
    for name, expected in tree["files"].items():
        if path.is_dir() or path == file.parent / name:
            yield compare(file.parent / name, expected, (inside / name).as_posix())
    if path.is_dir():
        settings = tree.get("config", {})
        root = root or settings.get("root") or settings.get("data", {}).get("root")
        yield from (_check_data(name, entry, root) for name, entry in tree.get("data", {}).items())


def _check_data(name: str, entry: dict[str, Any], root: str | None) -> Finding:
    """Read a dataset again, as for training where it was trained on."""
    try:
        if "name" in entry["set"]:
            config: SetConfig = parse(DatasetConfig, entry["set"])
            samples = read_training_set(config, DataConfig(root=root, max_broken=1.0)).samples  # type: ignore[arg-type]
        else:
            config = parse(SetConfig, entry["set"])
            annotations, names, *images = map(_found, (config.annotations, config.names, *config.images))
            config = replace(config, annotations=annotations, names=names, images=tuple(images))
            samples = read_set(config, root, to_score=True).samples
    except (GlipError, OSError) as error:
        return f"dataset {name}: cannot be read: {error}", True
    now = data_record(config, samples)
    if now["fingerprint"] == entry["fingerprint"]:
        return f"dataset {name}: as it was ({now['content']})", False
    same = "other file names, boxes or words" if now["content"] == entry["content"] else f"not {entry['content']}"
    return f"dataset {name}: changed: {now['content']}, {same}", True


def _found(path: str) -> str:
    """A path that a record has relative to the working folder; others are under the data root."""
    return str(Path(path).absolute()) if path and split_path(Path(path))[0].exists() else path
