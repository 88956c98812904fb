"""The state of a training run on disk: all that is needed to resume bit for bit, written whole or not at all.

``last.pt`` is where a run resumes, ``best.pt`` the state with the best validation, ``step-N.pt`` are kept. All hold the
same: weights, their moving average, optimizer, loss scale, random states of every process, what the run is made from
(config, data, starting weights), and its Progress. The loader's position is the number of steps done.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from glip.errors import CheckpointError, ConfigError
from glip.files import atomic_write
from glip.shapes import Tensor
from glip.train.distributed import full_tensor, is_sharded, local_shard, shard_like
from glip.train.optim import EMA
from glip.train.step import Stepper

LAST, BEST = "last.pt", "best.pt"
FORMAT = 2  # version of the files
_SHOWN = 5  # differences that an error lists
Tree = dict[str, Any]


@dataclass
class Progress:
    """What a run counts.

    ``step`` steps are done; ``skipped_steps`` had numbers that were not finite (``bad_in_row`` of them last), of which
    ``overflows`` had too large a loss scale. ``best`` is the highest validation figure so far, of ``best_step``;
    ``validated`` is the step of the last validation. ``skipped``, ``broken`` and ``tried`` are the loader's counts;
    ``window`` sums what the next log line reports.
    """

    step: int = 0
    skipped_steps: int = 0
    bad_in_row: int = 0
    overflows: int = 0
    best: float | None = None
    best_step: int = 0
    validated: int = 0
    tried: int = 0
    broken: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    window: dict[str, float] = field(default_factory=dict)


def capture(stepper: Stepper, ema: EMA | None, progress: Progress, made_from: Tree) -> Tree:
    """The state of a run as plain values and whole tensors on the CPU; all processes must call this."""
    group = stepper.group
    random = group.gather(random_state(group.device))
    if not group.main and not is_sharded(stepper.module):
        return {}
    whole = partial(tree_map_only, Tensor, full_tensor)
    return {
        "format": FORMAT,
        "made_from": made_from,
        "progress": asdict(progress),
        "model": whole(dict(stepper.model.state_dict())),
        "ema": whole(ema.weights) if ema else {},
        "ema_updates": ema.updates if ema else 0,
        "optimizer": whole(stepper.optimizer.state_dict()),
        "scaler": stepper.scaler.state_dict(),
        "random": random,
    }


def restore(state: Tree, stepper: Stepper, ema: EMA | None) -> Progress:
    """Bring a run to the state that ``read_state`` gave; random states only where as many processes wrote it."""
    group = stepper.group
    _load_weights(stepper.model, state["model"])
    _load_optimizer(stepper.optimizer, state["optimizer"])
    if ema:
        ema.updates = state["ema_updates"]
        for name, value in ema.weights.items():
            local_shard(value).copy_(local_shard(shard_like(state["ema"][name], value)))
    if stepper.scaler.is_enabled():
        stepper.scaler.load_state_dict(state["scaler"])
    if len(state["random"]) == group.size:
        restore_random(state["random"][group.rank], group.device)
    progress = Progress(**state["progress"])
    if not group.main:
        progress.skipped, progress.broken, progress.tried = {}, 0, 0  # the main process has the sums, others add theirs
    return progress


def read_state(path: Path, *, mapped: bool = False) -> Tree:
    """The state in a checkpoint; ``mapped`` leaves its tensors on the disk, to look at the rest.

    Raises:
        CheckpointError: it cannot be read, or was written by another version or program.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken file makes torch raise almost anything
        raise CheckpointError(
            f"{str(path)!r} cannot be read ({type(error).__name__}): delete it to start over, or give another folder"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{str(path)!r} is no checkpoint of this version of glip: give another folder")
    return state


def write_state(path: Path, state: Tree) -> None:
    """Write a checkpoint; after a kill or an error the old file is unchanged."""
    with atomic_write(path, "wb", durable=True) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # what torch makes of an OSError
            raise OSError(str(error)) from error


def refuse_other_run(folder: Path, before: Tree, now: Tree, *, may_change: tuple[str, ...]) -> None:
    """Compare what the run in a folder is made from with what it is to be resumed with.

    Raises:
        ConfigError: naming each key that differs and does not begin with one of ``may_change``.
    """
    old, new = _flat(before), _flat(now)
    changed = [
        f"{key} {str(old.get(key))[:80]}, not {str(new.get(key))[:80]}"
        for key in sorted({**old, **new})
        if old.get(key) != new.get(key) and not key.startswith(may_change)
    ]
    if changed:
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ConfigError(
            f"{str(folder)!r} holds a run with {'; '.join(changed[:_SHOWN])}{more}: give another folder, or the old "
            "values"
        )


def random_state(device: torch.device) -> Tree:
    """The state of torch's random generators, on the CPU and on this device."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random(state: Tree, device: torch.device) -> None:
    """Set torch's random generators to a state that ``random_state`` gave."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    model.load_state_dict({name: shard_like(value, own[name]) for name, value in weights.items()})


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Tree) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in state["state"].items():
        for name, value in entry.items():
            if value.shape == parameters[number].shape:  # not the count of steps
                entry[name] = shard_like(value, parameters[number])
    optimizer.load_state_dict(state)


def _flat(tree: Any, at: str = "") -> Tree:
    if not isinstance(tree, dict):
        return {at: tree}
    flat: Tree = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{at}.{key}" if at else str(key))
    return flat
