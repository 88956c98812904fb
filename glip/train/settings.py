"""What is refused before anything long begins: numbers that cannot work, and a folder with another run.

Sets of millions of images take minutes to read; a rate below zero or a folder that cannot be written should not wait
for them.
"""

import math
from pathlib import Path

from glip.config import DataConfig, DatasetConfig, Experiment, TrainConfig
from glip.train.checkpoint import LAST, read_state
from glip.train.distributed import Group
from glip.train.log import summary_writer
from glip.train.resume import refuse_another

_LEAST_CROP = 32  # pixels: the coarsest but two of the pyramid's strides


def check_experiment(experiment: Experiment, group: Group) -> None:
    """Refuse what cannot work in a training or in its data.

    Raises:
        ValueError: naming the key and what is allowed.
        ImportError: TensorBoard is asked for and not installed.
    """
    check_settings(experiment.train, group)
    check_data(experiment.data)
    if experiment.train.wise_ft and experiment.train.start is None:
        raise ValueError(
            f"train.wise_ft: got {experiment.train.wise_ft:g} without train.start: it mixes in the weights that "
            "a run starts from, and this one starts from random ones: give train.start, or 0"
        )
    if experiment.train.tensorboard:
        summary_writer()


def check_folder(experiment: Experiment) -> None:
    """Make the output folder, and refuse to go on with what is another run's.

    Raises:
        ValueError: a checkpoint of another config, or one that cannot be read.
        OSError: the folder cannot be made.
    """
    folder = Path(experiment.train.output)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / LAST).is_file():
        state = read_state(folder / LAST, mapped=True)
        refuse_another(state["config"], experiment, done=int(state["progress"]["step"]))


def check_settings(settings: TrainConfig, group: Group) -> None:
    """Refuse numbers of a run that cannot work.

    Raises:
        ValueError: naming the key and what is allowed.
    """
    _check_counts(settings)
    _check_schedule(settings)
    for key in ("lr", "bert_lr", "text_lr", "weight_decay"):
        _need(f"train.{key}", getattr(settings, key), such="such as 1e-4")
    if not settings.clip > 0:
        raise ValueError(f"train.clip: got {settings.clip:g}: give the largest norm of a gradient, such as 1")
    if not 0 <= settings.ema < 1:
        raise ValueError(f"train.ema: got {settings.ema:g}: give a decay from 0 (no mean) to below 1, such as 0.9998")
    if not 0 <= settings.wise_ft <= 1:
        raise ValueError(f"train.wise_ft: got {settings.wise_ft:g}: give a share from 0 to 1")
    if settings.batch_size % group.size:
        raise ValueError(
            f"train.batch_size: {settings.batch_size} images cannot be shared by {group.size} processes: take a "
            f"multiple of {group.size}"
        )


def _check_counts(settings: TrainConfig) -> None:
    for key in ("steps", "save_every", "log_every", "max_bad_steps", "batch_size"):
        if getattr(settings, key) < 1:
            raise ValueError(f"train.{key}: got {getattr(settings, key)}: give 1 or more")
    for key, none in (
        ("micro_batch", "all images at once"),
        ("warmup", "no warm-up"),
        ("keep_every", "never"),
        ("validate_every", "never"),
        ("validate_images", "all"),
        ("frozen_stages", "none"),
    ):
        if getattr(settings, key) < 0:
            raise ValueError(f"train.{key}: got {getattr(settings, key)}: give 1 or more, or 0 for {none}")
    if settings.seed < 0:
        raise ValueError(f"train.seed: got {settings.seed}: give 0 or more")


def _check_schedule(settings: TrainConfig) -> None:
    if settings.warmup >= settings.steps:
        raise ValueError(
            f"train.warmup: got {settings.warmup}, but the run has {settings.steps} steps and would never reach its "
            "rate: give fewer than train.steps, such as a tenth of them"
        )
    for drop in settings.drops:
        if not 0 <= drop <= 1:
            hint = f" (for {drop:g} % give {drop / 100:g})" if 1 < drop <= 100 else ""
            raise ValueError(f"train.drops: got {drop:g}: give shares of the run from 0 to 1{hint}")


def check_data(data: DataConfig) -> None:
    """Refuse numbers of the data, and of each of its sets, that cannot work.

    Raises:
        ValueError: naming the key and what is allowed.
    """
    for key in ("max_negatives", "pack_captions", "workers"):
        _need(f"data.{key}", getattr(data, key), such="such as 4")
    for key in ("colour", "full_vocabulary", "borrow", "max_broken"):
        _need(f"data.{key}", getattr(data, key), most=1, such="such as 0.5")
    if data.crop and data.crop < _LEAST_CROP:
        raise ValueError(
            f"data.crop: got {data.crop}: give the side of crops, from {_LEAST_CROP} pixels, or 0 for none"
        )
    if not data.short_side:
        raise ValueError("data.short_side: got []: give the shortest side of images in pixels, such as [480, 800]")
    _check_sides("data", data.short_side)
    for row in (*data.train, *data.validate):
        _check_set(row)


def _check_set(row: DatasetConfig) -> None:
    at = f"set {row.name!r}: "
    _need(f"{at}weight", row.weight, such="such as 1")
    for key in ("flip", "captioned"):
        _need(f"{at}{key}", getattr(row, key), most=1, such="such as 0.5")
    for key in ("first", "count"):
        _need(f"{at}{key}", getattr(row, key), such="such as 100, or 0 for all")
    _check_sides(at.rstrip(": "), row.short_side)


def _check_sides(at: str, sides: tuple[int, ...]) -> None:
    if any(side < 1 for side in sides):
        raise ValueError(f"{at}.short_side: got {list(sides)}: give sides in pixels, such as [480, 800]")


def _need(at: str, value: float, *, most: float = math.inf, such: str) -> None:
    """A finite number from 0 on, or up to ``most``."""
    if not (math.isfinite(value) and 0 <= value <= most):
        allowed = "a number from 0 on" if most == math.inf else f"a share from 0 to {most:g}"
        raise ValueError(f"{at}: got {value:g}: give {allowed}, {such}")
