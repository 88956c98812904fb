"""May a run go on under this config? What decides its numbers must be as it was; what does not may change."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glip.config import TrainConfig
from glip.errors import ConfigError
from glip.experiment import Experiment, to_dict
from glip.schema import parse
from glip.train.optim import rate_factor

# What may differ between a run and its continuation. Most of it never touches the numbers; micro_batch, checkpointing,
# compile and parallel (often changed with the machine) touch their rounding, micro_batch also batch norm and dropout.
FREE = (
    "data.max_broken",
    "data.root",
    "data.validate",
    "data.workers",
    "model.inference",
    "model.license",
    "model.name",
    "model.trained_on",
    "train.checkpointing",
    "train.compile",
    "train.keep_every",
    "train.log_every",
    "train.max_bad_steps",
    "train.micro_batch",
    "train.output",
    "train.parallel",
    "train.save_every",
    "train.tensorboard",
    "train.validate_every",
    "train.validate_images",
)


def config_text(experiment: Experiment) -> str:
    """A config as the text that checkpoints hold."""
    return json.dumps(to_dict(experiment))


def refuse_another(stored: str, experiment: Experiment, *, done: int) -> None:
    """Compare a run's config with the one it is to go on with.

    ``train.steps`` may differ as long as the rates of the steps already done, and of the next one, are the same under
    both numbers. Drops and the cosine are shares of the run, so this ends at the first drop, or with the warm-up.

    Args:
        stored: the run's config, as ``config_text`` gave it.
        experiment: the config to go on with.
        done: how many steps the run has done.

    Raises:
        ValueError: naming each key that matters and differs.
    """
    output = experiment.train.output
    other = f"set train.output to another folder than {output!r}, or give the values that its experiment.yaml has"
    try:
        begun = parse(Experiment, json.loads(stored))
    except (ConfigError, json.JSONDecodeError) as error:
        raise ConfigError(f"the run in {output!r} was begun by another version ({error}): {other}") from None
    before, now = _flat(to_dict(begun)), _flat(to_dict(experiment))
    changed = _first_other_rate(begun.train, experiment.train, done)
    free = (*FREE, "train.steps") if changed is None else FREE
    reasons = {"train.steps": f" (the rate of step {changed} is another, and {done} steps are done)"}
    told = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}{reasons.get(key, '')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if told:
        more = f"; and {len(told) - 5} more" if len(told) > 5 else ""
        raise ConfigError(f"the run in {output!r} was begun with another config: {'; '.join(told[:5])}{more}: {other}")


def refuse_other_contents(stored: Mapping[str, str], now: Mapping[str, str], output: Path) -> None:
    """Compare what was in a run's training sets with what is in them now.

    Raises:
        ValueError: naming a set whose images, boxes or words have changed.
    """
    for name in now:
        before = stored.get(name, now[name])
        if before != now[name]:
            had, has = before.rpartition(", ")[0], now[name].rpartition(", ")[0]
            told = f"had {had} and has {has} now" if had != has else f"still has {has}, but they are others"
            raise ConfigError(
                f"the run in {str(output)!r} was begun with other data: set {name!r} {told}: set train.output to "
                "another folder to train on it, or bring back what it was"
            )


def same_validation(stored: str, experiment: Experiment) -> bool:
    """Whether a run's config, which ``refuse_another`` let pass, validates on the same images as another."""
    begun = parse(Experiment, json.loads(stored))
    same = begun.train.validate_images == experiment.train.validate_images
    return same and begun.data.validate == experiment.data.validate


def _first_other_rate(begun: TrainConfig, now: TrainConfig, done: int) -> int | None:
    """The first step (from 1), of those done and the next one, that has another rate under each number of steps."""
    for number in range(done + 1) if begun.steps != now.steps else ():
        if _factor(begun, number) != _factor(now, number):
            return number + 1
    return None


def _factor(settings: TrainConfig, number: int) -> float:
    return rate_factor(
        number, steps=settings.steps, warmup=settings.warmup, schedule=settings.schedule, drops=settings.drops
    )


def _flat(tree: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {at: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{at}.{key}" if at else key)
    return flat
