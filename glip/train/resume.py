"""May a run go on under this config? What decides its numbers must be as it was; what does not may change."""

import json
from typing import Any

from glip.config import ConfigError, Experiment, from_dict, to_dict

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
)


def config_text(experiment: Experiment) -> str:
    """A config as the text that checkpoints hold."""
    return json.dumps(to_dict(experiment))


def refuse_another(stored: str, experiment: Experiment) -> None:
    """Compare a run's config with the one it is to go on with.

    Under the step schedule ``train.steps`` may differ, so that a run can be made longer: the rates of the steps already
    done stay what they were. Under the cosine schedule it may not: the rate would jump up again.

    Raises:
        ValueError: naming each key that matters and differs.
    """
    output = experiment.train.output
    other = f"set train.output to another folder than {output!r}, or give the values that its experiment.yaml has"
    try:
        before = _flat(to_dict(from_dict(Experiment, json.loads(stored))))
    except (ConfigError, json.JSONDecodeError) as error:
        raise ValueError(f"the run in {output!r} was begun by another version ({error}): {other}") from None
    now = _flat(to_dict(experiment))
    free = (*FREE, "train.steps") if experiment.train.schedule == "step" else FREE
    told = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if told:
        more = f"; and {len(told) - 5} more" if len(told) > 5 else ""
        raise ValueError(f"the run in {output!r} was begun with another config: {'; '.join(told[:5])}{more}: {other}")


def _flat(tree: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {at: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{at}.{key}" if at else key)
    return flat
