"""Names of sets -> their files -> samples: ``configs/datasets.yaml``, a table of the data root's own, or a path."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from glip.config import Format, SetConfig
from glip.data import writers
from glip.data.captions import CAPTION_KEYS, caption_files, read_captions
from glip.data.coco import LISTS, read_coco, read_lvis, read_ovdeval
from glip.data.described import D3_FILE, read_d3, read_omnilabel, read_saco
from glip.data.expressions import GREFCOCO, REFCOCO, name_of_expressions, read_grefcoco, read_refcoco
from glip.data.flickr30k import read_flickr30k
from glip.data.foreign import DETECTED, foreign, foreign_json
from glip.data.grounding import read_mdetr, read_odvg, read_silver
from glip.data.label_studio import SHORT_EXPORT, read_label_studio, write_label_studio
from glip.data.labels import read_labels
from glip.data.records import as_list, as_map, first_json_line, parse_file, read_words
from glip.data.sets import SampleSet, SkipCounter, check_exists, require
from glip.data.voc import ANNOTATIONS, SPLITS, read_voc, voc_files
from glip.data.yolo import YAML, names_file, read_yolo
from glip.errors import ConfigError, DataError
from glip.experiment import config_folder, read_yaml
from glip.schema import did_you_mean, parse
from glip.text.class_prompts import ClassPrompt, read_prompts

TABLE = "datasets.yaml"
_JSON_READERS: dict[Format, Callable[[Path, Sequence[Path], Any], SampleSet]] = {
    "coco": read_coco,
    "lvis": read_lvis,
    "ovdeval": read_ovdeval,
    "mdetr": read_mdetr,
    "refcoco": read_refcoco,
    "grefcoco": read_grefcoco,
    "silver": read_silver,
    "captions": read_captions,
    "label-studio": read_label_studio,
    "saco": read_saco,
    "omnilabel": read_omnilabel,
}
WRITERS: dict[str, Callable[[SampleSet, Path, writers.ImageFolders], SkipCounter]] = {
    "coco": writers.write_coco,
    "mdetr": writers.write_mdetr,
    "odvg": writers.write_odvg,
    "labels": writers.write_labels,
    "label-studio": write_label_studio,
    "yolo": writers.write_yolo,
    "voc": writers.write_voc,
}
_MARKS: tuple[tuple[str, str, Format], ...] = (  # a list of the file, a key in it, the format
    ("data", "phrases", "silver"),
    ("annotations", "tokens_positive", "mdetr"),
    ("annotations", "caption", "captions"),
    ("images", "neg_category_ids", "lvis"),
    ("images", "text_input", "saco"),
    ("descriptions", "image_ids", "omnilabel"),
    ("images", "neg_text", "ovdeval"),
)


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
        entries = tree if isinstance(tree, dict) else {"(not a map)": tree}
        found |= {str(name): parse(SetConfig, entry, at=f"{table.name}: {name}") for name, entry in entries.items()}
    return found


def missing_part(config: SetConfig, root: str | Path | None = None) -> str:
    """The files and folders of a set that are not under the root, as a text; "" where all of it is there."""
    needed = dict.fromkeys([config.annotations, *config.images, *([config.names] if config.names else [])])
    return " and ".join(path for path in needed if not split_path(data_root(root) / path)[0].exists())


def split_path(path: Path) -> tuple[Path, str]:
    """A path without the split that it names, and that split: ``data.yaml:val`` is ``val`` of ``data.yaml``."""
    file, _, split = str(path).rpartition(":")
    return (Path(file), split) if file and _has_splits(Path(file)) else (path, "")


def with_split(path: str | Path, split: str, root: str | Path | None = None) -> str:
    """A path with the split that its use means, such as "train", where it has splits and names none itself."""
    file, stated = split_path(data_root(root) / path)
    return f"{path}:{split}" if split and not stated and _has_splits(file) else str(path)


def _has_splits(path: Path) -> bool:
    """Whether it is YOLO's ``data.yaml``, a folder with one, or Pascal VOC with lists of splits."""
    return (names_file(path) or path).suffix.lower() in YAML or (path / SPLITS).is_dir()


def find_set(
    name: str,
    *,
    images: Sequence[str] = (),
    format: Format | None = None,
    root: str | Path | None = None,
    split: str = "",
) -> SetConfig:
    """The set meant by a name of the table, or by the path of an annotation file or folder.

    For a path the images are looked for in ``images``, else in a folder ``images`` beside the file or beside its
    folder, else beside the file (beside its folder, if that is called ``annotations``); the format is recognized from
    the content when it is not given. Of what has splits (YOLO, Pascal VOC), the name may say which: ``data.yaml:val``;
    else it is ``split``, "" for all.

    Raises:
        ConfigError: neither a known name nor a path that is there.
    """
    known = known_sets(root)
    if name in known:
        entry = known[name]
        own = with_split(entry.annotations, split, root)
        return replace(entry, annotations=own, images=tuple(images) or entry.images, format=format or entry.format)
    whole = _full_path(name, root)
    path, _ = split_path(whole)
    if not path.exists():
        raise ConfigError(
            f"Dataset {name!r} is neither in {TABLE} nor a file{did_you_mean(name, list(known))}: give a path, or a "
            "name that glip data list shows"
        )
    beside = [path.parent / "images", path.parent.parent / "images", _dataset_folder(path)]
    if path.is_dir() and (names_file(path) or voc_files(path) or any(path.glob("*.tar"))):
        beside = [_dataset_folder(path / "file")]
    folders = tuple(images) or (str(next(folder for folder in beside if folder.is_dir())),)
    labels = writers.label_map_of(path)
    return SetConfig(
        format=format,
        annotations=with_split(whole, split),
        images=tuple(str(Path(folder).absolute()) for folder in folders),
        names=str(labels) if labels.is_file() else "",
    )


def dataset_name(name: str, root: str | Path | None = None, split: str = "") -> str:
    """What a dataset is called: its name in the table; for a file its folder and stem, or split.

    COCO files are all called alike, so ``raccoon/annotations/instances_test.json`` is "raccoon_test".
    """
    if name in known_sets(root):
        return name
    path, split = split_path(Path(with_split(_full_path(name, root), split)))
    if split:
        return f"{(path if path.is_dir() else path.parent).name}_{split}"
    return f"{_dataset_folder(path).name}_{path.stem.removeprefix('instances_')}".strip("_")


def _dataset_folder(file: Path) -> Path:
    return file.parent.parent if file.parent.name in ANNOTATIONS else file.parent


def _full_path(name: str, root: str | Path | None) -> Path:
    """A path as it is given where that exists, else under the data root."""
    return (Path(name) if split_path(Path(name))[0].exists() else data_root(root) / name).absolute()


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
    """The samples of a dataset, whose paths are relative to ``root``; its file is parsed once.

    With ``to_score`` it keeps what only official evaluation needs: the parsed COCO file, Flickr30K's flat boxes.

    Raises:
        FileNotFoundError: its annotations or images are not under the root.
        DataError: its annotations are not of the stated format, or cannot be used.
    """
    under = data_root(root)
    if " and " in (missing := missing_part(config, root)):  # of one thing its reader says what it is
        raise FileNotFoundError(
            f"{missing} are not there: put them into the data folder {str(under)!r} (docs/evaluation.md, Files), or "
            "give --root (in a config data.root) or GLIP_DATA to it"
        )
    images = [under / folder for folder in config.images]
    path, split = split_path(under / config.annotations)
    names = under / config.names if config.names else ""
    format, tree = (config.format, None) if config.format else recognize(path)
    if format == "flickr30k":
        found = read_flickr30k(path, images, names, flat_boxes=to_score)
    elif format == "odvg":
        found = read_odvg(path, images, names)
    elif format == "d3":
        found = read_d3(path, images, names, tree)
    elif format == "labels":
        found = read_labels(path, images)
    elif format == "voc":
        found = read_voc(path, images, names, split)
    elif format == "yolo":
        file = Path(names) if config.names else names_file(path) or path / "data.yaml"
        check_exists(file)
        table = read_yaml(file) if file.suffix.lower() in YAML else {"names": read_words(file), "train": str(path)}
        found = read_yolo(file, table, images, split)
    else:
        found = _JSON_READERS[format](path, images, tree)
    kept = (found.annotations, found.companions) if to_score else (None, ())
    return replace(found, format=format, folders=tuple(images), annotations=kept[0], companions=kept[1])


def class_prompts(
    config: SetConfig, root: str | Path | None, names: Sequence[str], *, file: str = ""
) -> dict[str, ClassPrompt]:
    """The text written for each class name: as ``file`` says, else the dataset's own file; {} where there is none.

    Raises:
        GlipError: a file that cannot be read, or that names a class not in ``names``.
    """
    path = file or (config.prompts and data_root(root) / config.prompts)
    return read_prompts(read_yaml(Path(path)), names) if path else {}


def recognize(path: Path) -> tuple[Format, Any]:
    """The format of an annotation file, from its name and its first records, and its content if that is json.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: no known format; it says what the file or folder is instead.
    """
    check_exists(path)
    format: Format | None = None
    tree, problem = None, "" if path.is_dir() else foreign(path)
    if (path / "Sentences").is_dir():
        format = "flickr30k"
    elif voc_files(path):
        format = "voc"
    elif names_file(path):
        format = "yolo"
    elif path.is_dir():
        with suppress(DataError):  # what is wrong with its first file says nothing of the folder
            format = next((kind for kind, _ in map(recognize, caption_files(path)[:1]) if kind == "captions"), None)
        problem = "" if format else foreign(path)
    elif not problem and not (format := _lines_format(path)):
        tree = parse_file(path)
        format, problem = _json_format(tree), foreign_json(tree)
        format = "d3" if format == "coco" and D3_FILE.fullmatch(path.name) else format
    if not format:
        raise DataError(f"{path}: {problem}")
    return format, tree


def _lines_format(path: Path) -> Format | None:
    """The format of a file that is read line by line, or in place."""
    if path.suffix.lower() in (".tar", ".csv", ".tsv", ".txt"):
        return "captions"
    line = first_json_line(path)
    require('"detections":' not in line, f"{path}: {DETECTED}")
    if '"detection"' in line or '"grounding"' in line:
        return "odvg"
    if '"boxes"' in line and '"phrases"' in line:
        return "labels"
    return "captions" if line else None


def _json_format(tree: Any) -> Format | None:
    first, lists = as_map(next(iter(as_list(tree)), None)), as_map(tree)
    if "detections" in first:
        return None
    if isinstance(first.get("data"), dict) or SHORT_EXPORT in first:
        return "label-studio"
    if not first.keys().isdisjoint(CAPTION_KEYS):
        return "captions"
    if (name := name_of_expressions(tree)) in (*REFCOCO, *GREFCOCO):
        return "refcoco" if name in REFCOCO else "grefcoco"
    for part, key, format in _MARKS:
        if key in as_map(next(iter(as_list(lists.get(part))), None)):
            return format
    return "coco" if len(lists.keys() & set(LISTS)) > 1 else None  # the reader says which of them is missing
