"""Names of sets -> their files -> samples: ``configs/datasets.yaml``, a table of the data root's own, or a path."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from glip.config import Format, SetConfig
from glip.data.readers.captions import CAPTION_KEYS, read_captions
from glip.data.readers.coco import read_coco
from glip.data.readers.fields import parse_json
from glip.data.readers.flickr30k import read_flickr30k
from glip.data.readers.label_studio import SHORT_EXPORT, read_label_studio
from glip.data.readers.labels import read_labels
from glip.data.readers.lvis import read_lvis
from glip.data.readers.mdetr import read_mdetr
from glip.data.readers.odvg import read_odvg
from glip.data.readers.silver import read_silver
from glip.data.sets import SampleSet
from glip.data.writers import label_map_of
from glip.errors import ConfigError, DataError
from glip.experiment import config_folder, read_yaml
from glip.schema import parse

TABLE = "datasets.yaml"
_READERS: dict[Format, Callable[[Path, Sequence[Path]], SampleSet]] = {
    "coco": read_coco,
    "lvis": read_lvis,
    "mdetr": read_mdetr,
    "silver": read_silver,
    "captions": read_captions,
    "labels": read_labels,
    "label-studio": read_label_studio,
}
# these need a second file beside the annotations: the split's image ids, the names of the labels
_NAMED_READERS: dict[Format, Callable[[Path, Sequence[Path], Path | str], SampleSet]] = {
    "flickr30k": read_flickr30k,
    "odvg": read_odvg,
}


def data_root(given: str | Path | None) -> Path:
    """The folder under which sets lie: the given one, else the environment variable GLIP_DATA, else this folder."""
    return Path(given or os.environ.get("GLIP_DATA") or ".")


def known_sets(root: str | Path | None = None) -> dict[str, SetConfig]:
    """All sets by name: the installed table, and over it ``datasets.yaml`` in the data root, if there is one.

    Raises:
        ConfigError: a table that cannot be read.
    """
    found: dict[str, SetConfig] = {}
    for table in (config_folder() / TABLE, data_root(root) / TABLE):
        tree = (read_yaml(table) or {}) if table.is_file() else {}
        if not isinstance(tree, dict):
            raise ConfigError(f"{table}: expected a map of set names, got {type(tree).__name__}")
        found.update({str(name): parse(SetConfig, entry, at=f"{table.name}: {name}") for name, entry in tree.items()})
    return found


def missing_part(config: SetConfig, root: str | Path | None = None) -> str:
    """The first file or folder of a set that is not under the root; "" where all of it is there."""
    needed = [config.annotations, *config.images, *([config.names] if config.names else [])]
    return next((path for path in needed if not (data_root(root) / path).exists()), "")


def find_set(
    name: str, *, images: Sequence[str] = (), format: Format | None = None, root: str | Path | None = None
) -> SetConfig:
    """The set meant by a name of the table, or by the path of an annotation file or folder.

    For a path the images are looked for in ``images``, else in a folder ``images`` beside the file or beside its
    folder, else beside the file; the format is told from the content when it is not given.

    Raises:
        ConfigError: neither a known name nor a path that is there.
    """
    known = known_sets(root)
    if name in known:
        entry = known[name]
        return replace(entry, images=tuple(images) or entry.images, format=format or entry.format)
    path = Path(name) if Path(name).exists() else data_root(root) / name
    if not path.exists():
        close = get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(
            f"set {name!r} is neither in {TABLE} nor a file{hint}: give a path, or a name that glip data list shows"
        )
    path = path.absolute()
    beside = [path.parent / "images", path.parent.parent / "images", path.parent]
    folders = tuple(images) or (str(next(folder for folder in beside if folder.is_dir())),)
    labels = label_map_of(path)
    return SetConfig(
        format=format,
        annotations=str(path),
        images=tuple(str(Path(folder).absolute()) for folder in folders),
        names=str(labels) if labels.is_file() else "",
    )


def folders_of(
    names: Sequence[str], images: Sequence[str], root: str | Path | None = None
) -> dict[str, tuple[str, ...]]:
    """The image folders given for some sets, by set: for files as they are given; sets of the table keep theirs.

    Where all are of the table, the folders are for them, as full paths, since they are not under the data root.
    """
    known = known_sets(root)
    if all(name in known for name in names):
        return dict.fromkeys(names, tuple(str(Path(folder).absolute()) for folder in images))
    return {name: () if name in known else tuple(images) for name in names}


def read_set(config: SetConfig, root: str | Path | None = None, *, to_score: bool = False) -> SampleSet:
    """The samples of a set.

    Args:
        config: its format and files.
        root: what they are relative to.
        to_score: keep what cannot be learned from but counts in the official evaluation (Flickr30K's flat boxes).

    Raises:
        FileNotFoundError: its annotations or images are not under the root.
        ValueError: its annotations are not of the stated format.
    """
    under = data_root(root)
    annotations, images = under / config.annotations, [under / folder for folder in config.images]
    format = config.format or guess_format(annotations)
    if format == "flickr30k" and to_score:
        return read_flickr30k(annotations, images, under / config.names if config.names else "", flat_boxes=True)
    if format in _NAMED_READERS:
        return _NAMED_READERS[format](annotations, images, under / config.names if config.names else "")
    return _READERS[format](annotations, images)


def guess_format(path: Path) -> Format:
    """The format of an annotation file, by its name and its first records.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no known format.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"annotations {str(path)!r} are not there: set data.root or GLIP_DATA to the data folder"
        )
    if path.is_dir():
        return "flickr30k" if (path / "Sentences").is_dir() else "captions"
    ending = path.suffix.lower()
    if ending in (".tar", ".csv", ".tsv", ".txt"):
        return "captions"
    if ending == ".jsonl":
        return _format_of_line(_first_line(path))
    try:
        tree = parse_json(path)
    except ValueError:
        if (line := _first_line(path)).startswith("{") and line.rstrip().endswith("}"):
            return _format_of_line(line)  # lines of json under the name .json, as some converters write them
        raise
    return _format_of_tree(tree, path)


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline(1 << 20)


def _format_of_line(line: str) -> Format:
    if '"detection"' in line or '"grounding"' in line:
        return "odvg"
    return "labels" if '"boxes"' in line and '"phrases"' in line else "captions"


def _format_of_tree(tree: object, path: Path) -> Format:
    first = tree[0] if isinstance(tree, list) and tree and isinstance(tree[0], dict) else {}
    if isinstance(first.get("data"), dict) or SHORT_EXPORT in first:
        return "label-studio"
    if not first.keys().isdisjoint(CAPTION_KEYS):
        return "captions"
    lists = tree if isinstance(tree, dict) else {}
    keys = {
        key: set(rows[0])
        for key, rows in lists.items()
        if isinstance(rows, list) and rows and isinstance(rows[0], dict)
    }
    if "phrases" in keys.get("data", ()):
        return "silver"
    if "tokens_positive" in keys.get("annotations", ()):
        return "mdetr"
    if "caption" in keys.get("annotations", ()):
        return "captions"
    if "neg_category_ids" in keys.get("images", ()):
        return "lvis"
    if {"images", "annotations", "categories"} <= lists.keys():
        return "coco"
    own = ", ".join(map(str, list(lists)[:5])) or "none"
    raise DataError(f"{path}: not COCO, LVIS, MDETR, Label Studio or captions json (its keys: {own}): see docs/data.md")
