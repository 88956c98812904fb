"""A whole labelling: the set, its shards, the engine, the report; what ``glip label`` and a round of teaching do."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from glip.config import SetConfig
from glip.data.catalog import data_root, find_set, recognize
from glip.errors import DataError
from glip.model.weights import fingerprint, load_pretrained
from glip.pseudo.engine import Engine, Failed, Say, label_all
from glip.pseudo.label import LabelConfig
from glip.pseudo.report import draw_report, write_report
from glip.pseudo.shards import find_shards
from glip.pseudo.store import Store

_NOT_IN_LABELS = ("device", "threads", "batch_size", "model")  # the same run may go on with others


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What labels: an engine, its actors (of Ray), and the images of a shard that is cut from a single file."""

    engine: Engine = "local"
    workers: int = 1
    per_shard: int = 1000


@dataclass(frozen=True)
class Labelled:
    """A finished labelling: its report, and the shards that failed."""

    report: dict[str, Any]
    failed: tuple[Failed, ...]


def find_captions(name: str, images: Sequence[str], root: str | Path | None) -> SetConfig:
    """Where a set of captions lies, with full paths.

    Args:
        name: a set's name, a file or a folder.
        images: folders of its images, where it is a file.
        root: the data root.

    Raises:
        ConfigError: neither a known set nor a path.
        ValueError: a set without captions, or without files.
    """
    entry = find_set(name, images=[str(Path(folder).absolute()) for folder in images], root=root)
    under = data_root(root)
    path = (under / entry.annotations).absolute()
    format = entry.format or recognize(path)[0]
    if format in ("coco", "lvis"):
        raise DataError(f"set {name!r} has class names, not captions: train on it as it is")
    folders = tuple(str((under / folder).absolute()) for folder in entry.images)
    return replace(entry, annotations=str(path), images=folders, format=format)


def run_labelling(entry: SetConfig, how: LabelConfig, folder: str | Path, workers: Workers, say: Say) -> Labelled:
    """Label a set into a folder and write the report, also when interrupted; the same call goes on.

    Raises:
        CheckpointError: a teacher that cannot be loaded.
        ValueError: another run writes there, or it holds other labels; nothing of the set can be read.
        OSError: the disk is full, or may not be written.
    """
    store, failed = Store(folder, how.form), list[Failed]()
    main = os.environ.get("RANK", "0") == "0" or workers.engine != "torchrun"
    with store.locked(enabled=main):
        store.begin(_settings(entry, how, workers.per_shard))
        shards = find_shards(entry, workers.per_shard)
        try:
            failed = label_all(shards, how, folder, engine=workers.engine, workers=workers.workers, say=say)
        finally:  # an interrupted run tells what it has done
            report = write_report(store, len(shards), failed)
            if main:
                draw_report(store, report)
    return Labelled(report, tuple(failed))


def _settings(entry: SetConfig, how: LabelConfig, per_shard: int) -> dict[str, Any]:
    """What the labels depend on."""
    made = {key: value for key, value in asdict(how).items() if key not in _NOT_IN_LABELS}
    weights = fingerprint(load_pretrained(how.model).model.state_dict())[:16]
    images = list(entry.images)
    return {"teacher": weights, **made, "captions": entry.annotations, "images": images, "per shard": per_shard}
