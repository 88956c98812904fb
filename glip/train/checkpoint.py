"""The state of a run on disk: all that is needed to resume bit for bit, written whole or not at all.

``last.pt`` is where a run resumes, ``best.pt`` the state with the best validation, ``step-N.pt`` are kept. All hold the
same: weights, their moving average, optimizer, loss scale, random states of every process, what the run is made from
(config, data, starting weights), and its progress. The loader's position is the number of steps done.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
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
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        found = "another version"
        if state["format"] == FORMAT:
            found = next(_misfits(state, {"made_from": {}, "progress": {}}), "")
            if not found:
                return dict(state)
    except Exception as error:  # a broken file makes torch raise almost anything
        found = type(error).__name__
    raise CheckpointError(
        f"{str(path)!r} cannot be read as a checkpoint of this version of glip ({found}): delete it to start over, or "
        "give another folder"
    )


def read_progress(path: Path, state: Tree, kind: type[T]) -> T:
    """The progress in a state, a dataclass of counts; errors as ``check_kinds``."""
    fresh = asdict(kind())  # type: ignore[call-overload]
    check_kinds(path, state["progress"], fresh)
    return kind(**{name: state["progress"].get(name) for name in fresh})


def check_kinds(path: Path, found: Any, wanted: Any) -> None:
    """Refuse a state, or a part of it, in which an entry is missing or of another kind or shape than is wanted.

    Raises:
        CheckpointError: naming the first such entry.
    """
    if problem := next(_misfits(found, wanted), ""):
        raise CheckpointError(
            f"the training state {str(path)!r} is broken or of another model ({problem}): delete it to start over"
        )


def _misfits(found: Any, wanted: Any, at: str = "") -> Iterator[str]:
    """The entries of maps and lists that are not as wanted; of an empty map or list the contents may be any."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        pairs = [(found.get(key), wanted[key], key) for key in wanted]
    elif isinstance(wanted, list) and wanted and isinstance(found, list):
        pairs = [(*pair, place) for place, pair in enumerate(zip_longest(found, wanted, fillvalue=""))]
    elif _kind(found) != _kind(wanted) and not (isinstance(wanted, float | None) and isinstance(found, int | float)):
        yield f"{at.rstrip('.')} is {_kind(found)}, not {_kind(wanted)}"
    for one, other, key in pairs:
        yield from _misfits(one, other, f"{at}{key}.")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return "missing" if value is None else "a map" if isinstance(value, Mapping) else type(value).__name__


def restore(path: Path, state: Tree, stepper: Stepper, weights: Mapping[str, Tensor], ema: EMA | None = None) -> None:
    """Bring a run to the state that ``read_state`` gave; random states only where as many processes wrote it.

    Raises:
        CheckpointError: something in it is not of the kind or shape that this run needs; nothing is changed then.
    """
    group, optimizer = stepper.group, stepper.optimizer
    parameters = [parameter for own in optimizer.param_groups for parameter in own["params"]]
    groups = optimizer.state_dict()["param_groups"]
    rates = [{"lr": own["lr"]} for own in groups]
    check_kinds(path, state, {"optimizer": {"state": {}, "param_groups": rates}, "model": weights, "random": []})
    averages = ema.weights if ema else {}
    check_kinds(path, state, {"scaler": stepper.scaler.state_dict(), "ema_updates": 0, "ema": averages})
    found = state["optimizer"]["state"]
    moments = {
        number: {"step": torch.zeros(()), "exp_avg": own, "exp_avg_sq": own}
        for number, own in enumerate(parameters)
        if number in found
    }
    check_kinds(path, found, moments)
    if len(state["random"]) == group.size:
        check_kinds(path, state["random"][group.rank], {"cpu": torch.get_rng_state()})
        try:
            torch.Generator().set_state(state["random"][group.rank]["cpu"])
        except RuntimeError as error:
            raise CheckpointError(
                f"the training state {str(path)!r} is broken ({error}): delete it to start over"
            ) from None
    copy_into(weights, state["model"])
    kept = {
        number: {name: shard_like(found[number][name], value) for name, value in own.items()}
        for number, own in moments.items()
    }
    stored = state["optimizer"]["param_groups"]
    rates = [{**own, "lr": other["lr"]} for own, other in zip(groups, stored, strict=True)]
    optimizer.load_state_dict({"state": kept, "param_groups": rates})
    if ema:
        ema.updates = state["ema_updates"]
        copy_into(ema.weights, state["ema"])
    if stepper.scaler.is_enabled():
        stepper.scaler.load_state_dict(state["scaler"])
    if len(state["random"]) == group.size:
        restore_random(state["random"][group.rank], group.device)


def random_state(device: torch.device) -> Tree:
    """The state of torch's random generators, on the CPU and on this device."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random(state: Tree, device: torch.device) -> None:
    """Set torch's random generators to a state that ``random_state`` gave."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
