"""What people have on disk that is no dataset glip reads: what it is, and what to give instead."""

import re
from itertools import chain
from pathlib import Path
from typing import Any

from glip.data.records import as_list, as_map

_ANNOTATIONS = re.compile(r"\.(json|jsonl|csv|tsv)$", re.IGNORECASE)
_KINDS = (
    (
        r"(^|/)labels/.*\.txt$",
        "YOLO without class names: give its data.yaml, or add a classes.txt with one name per line",
    ),
    (r"\.xml$", "xml, of which glip reads Pascal VOC: give the folder that holds the files of one split"),
    (r"\.(zip|gz|tgz|bz2|7z|rar)$", "a compressed archive: unpack it"),
    (r"\.(parquet|arrow)$", "a table that glip does not read: give it as jsonl, CSV or TSV"),
    (r"\.(jpe?g|png|webp|bmp|gif|tiff?)$", "images without annotations: give their annotations, or use glip detect"),
)
_SHOWN = 4  # files of a folder
DETECTED = "these are results of glip detect: run it again with --format labels, which is a dataset"


def foreign(path: Path) -> str:
    """What a file or folder is that glip does not read, by the names of files; "" where a file may be read."""
    depths = (path.glob(depth) for depth in ("*", "*/*", "*/*/*"))
    inside = [file.relative_to(path).as_posix() for file in sorted(chain(*depths))] if path.is_dir() else [path.name]
    readable = [name for name in inside if path.is_dir() and _ANNOTATIONS.search(name)]
    if readable:
        shown = ", ".join(readable[:_SHOWN]) + (", ..." if len(readable) > _SHOWN else "")
        return f"it is a folder: give one annotation file in it ({shown})"
    if not inside or (path.is_file() and not path.stat().st_size):
        return "it is empty"
    kinds = (what for pattern, what in _KINDS if any(re.search(pattern, name, re.IGNORECASE) for name in inside))
    kind = next(kinds, "a folder without annotations: give a file of annotations" if path.is_dir() else "")
    return kind and f"it looks like {kind}"


def foreign_json(tree: Any) -> str:
    """What a json is that is no dataset: results, or something with other keys."""
    first, whose = as_map(next(iter(as_list(tree)), tree)), "its first record's" if as_list(tree) else "its"
    if "detections" in first:
        return DETECTED
    if {"image_id", "score"} <= first.keys():
        return "these are results: give the annotations, and the results to glip evaluate with --predictions"
    keys = ", ".join(map(str, list(first)[:5])) or "none"
    return f"not COCO, LVIS, MDETR, Label Studio or captions json ({whose} keys: {keys}): see docs/data.md"
