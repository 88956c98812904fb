"""The state of a run on disk: all that is needed to resume bit for bit, written whole or not at all.

``last.pt`` is where a run resumes, ``best.pt`` the state with the best validation, ``step-N.pt`` are kept. All hold the
same: weights, their moving average, optimizer, loss scale, random states of every process, what the run is made from
(config, data, starting weights), and its progress. The loader's position is the number of steps done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_map_only

from glip.errors import CheckpointError
from glip.files import atomic_write
from glip.shapes import Tensor
from glip.train.distributed import copy_into, full_tensor, is_sharded, shard_like
from glip.train.optim import EMA
from glip.train.step import Stepper

LAST, BEST = "last.pt", "best.pt"
FORMAT = 3  # version of the files
Tree = dict[str, Any]
T = TypeVar("T")


def save_state(
    paths: Sequence[Path],
    stepper: Stepper,
    weights: Mapping[str, Tensor],
    progress: Any,
    made_from: Tree,
    ema: EMA | None = None,
) -> None:
    """Write the state of a run; all processes must call this. After a kill or an error the old files are unchanged.

    ``weights`` are all that changes in training, ``progress`` is a dataclass of counts, and ``made_from`` has the
    config, data and whatever else must be the same to resume.
    """
    group = stepper.group
    random = group.gather(random_state(group.device))
    if not group.main and not is_sharded(stepper.module):
        return
    whole = partial(tree_map_only, Tensor, full_tensor)
    state = {
        "format": FORMAT,
        "made_from": made_from,
        "progress": asdict(progress),
        "model": whole(dict(weights)),
        "ema": whole(ema.weights) if ema else {},
        "ema_updates": ema.updates if ema else 0,
        "optimizer": whole(stepper.optimizer.state_dict()),
        "scaler": stepper.scaler.state_dict(),
        "random": random,
    }
    for path in paths if group.main else ():
        with atomic_write(path, "wb", durable=True) as file:
            torch.save(state, file)


def read_state(path: Path, *, mapped: bool = False) -> Tree:
    """The state in a checkpoint; ``mapped`` leaves its tensors on the disk, to look at the rest.

    Raises:
        CheckpointError: it cannot be read, or was written by another version or program.
    """
    try:
        state: Tree = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        found = "" if state["format"] == FORMAT and dict(state["made_from"]) else "another version"
    except Exception as error:  # a broken file makes torch raise almost anything
        found = type(error).__name__
    if found:
        raise CheckpointError(
            f"{str(path)!r} cannot be read as a checkpoint of this version of glip ({found}): delete it to start over, "
            "or give another folder"
        )
    return state


def read_progress(path: Path, state: Tree, kind: type[T]) -> T:
    """The progress in a state, a dataclass.

    Raises:
        CheckpointError: it has other fields.
    """
    try:
        return kind(**state["progress"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{str(path)!r} is no such training state ({error}): delete it to start over") from None


def restore(path: Path, state: Tree, stepper: Stepper, weights: Mapping[str, Tensor], ema: EMA | None = None) -> None:
    """Bring a run to the state that ``read_state`` gave; random states only where as many processes wrote it.

    Raises:
        CheckpointError: something in it is not of the kind or shape that this run needs.
    """
    group, optimizer = stepper.group, stepper.optimizer
    parameters = [parameter for own in optimizer.param_groups for parameter in own["params"]]
    try:
        copy_into(weights, state["model"])
        if ema:
            ema.updates = int(state["ema_updates"])
            copy_into(ema.weights, state["ema"])
        moments = {
            number: {
                "step": torch.as_tensor(own["step"], dtype=torch.float32).reshape(()),
                **{name: shard_like(own[name], parameters[number]) for name in ("exp_avg", "exp_avg_sq")},
            }
            for number, own in state["optimizer"]["state"].items()
        }
        pairs = zip(optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"], strict=True)
        groups = [{**own, "lr": float(stored["lr"])} for own, stored in pairs]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if stepper.scaler.is_enabled():
            stepper.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == group.size:
            restore_random(state["random"][group.rank], group.device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an entry is missing, or of another kind or shape
        raise CheckpointError(
            f"the training state {str(path)!r} is broken or of another model ({type(error).__name__}: "
            f"{str(error)[:200]}): delete it to start over"
        ) from None


def random_state(device: torch.device) -> Tree:
    """The state of torch's random generators, on the CPU and on this device."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random(state: Tree, device: torch.device) -> None:
    """Set torch's random generators to a state that ``random_state`` gave."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
