"""A run's state on disk: written whole or not at all, and enough to go on as if never stopped.

``last.pt`` is where a run goes on, ``best.pt`` the state that validated best, ``step-N.pt`` are kept. All hold the
same: weights, their running mean, optimizer, loss scale, random states of every process, the config, and what the run
has counted (Progress); the loader's position is the number of steps done.
"""

import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from glip.errors import ConfigError
from glip.shapes import Tensor
from glip.train.averages import RunningMean
from glip.train.distributed import Group, full_tensor, is_sharded, local_shard, shard_like

LAST, BEST = "last.pt", "best.pt"
Tree = dict[str, Any]


@dataclass
class Progress:
    """What a run counts as it goes on.

    ``step`` steps are done; ``skipped_steps`` had numbers that are not finite (``bad_in_row`` of them last), and
    ``overflows`` were tried with too large a loss scale. ``best`` is the highest figure so far, of ``best_step``;
    ``validated`` is the step of the last validation. ``skipped``, ``broken`` and ``tried`` count what the loader
    tells; ``window`` sums what the next line will report.
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


@dataclass(frozen=True)
class Parts:
    """What a run changes as it goes on, and so what is stored."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    mean: RunningMean | None
    group: Group


def capture(
    parts: Parts, progress: Progress, *, config: str, start: str = "", contents: Mapping[str, str] | None = None
) -> Tree:
    """A run's state as plain values and whole tensors on the CPU; all processes must ask, the main one receives it.

    Args:
        parts: what is stored.
        progress: of the run.
        config: the experiment as text.
        start: fingerprint of the weights that the run began with, where they are still needed.
        contents: what is in each training set, in short.
    """
    randoms = parts.group.gather(random_states(parts.group.device))
    if not parts.group.main and not is_sharded(parts.model):
        return {}
    return {
        "config": config,
        "start": start,
        "contents": dict(contents or {}),
        "progress": asdict(progress),
        "model": _whole(parts.model.state_dict()),
        "mean": _whole(parts.mean.means) if parts.mean else {},
        "updates": parts.mean.updates if parts.mean else 0,
        "optimizer": _whole(parts.optimizer.state_dict()),
        "scaler": parts.scaler.state_dict(),
        "random": randoms,
    }


def read_state(path: Path, *, mapped: bool = False) -> Tree:
    """The state in a checkpoint; ``mapped`` leaves its tensors on the disk, for those who look at the rest.

    Raises:
        ValueError: it cannot be read, or is no checkpoint of a run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a broken file makes torch raise almost anything
        raise ConfigError(
            f"checkpoint {str(path)!r} cannot be read ({type(error).__name__}): remove it to start anew, or set "
            "train.output to another folder"
        ) from None
    needed = ("config", "start", "contents", "progress", "model", "mean", "updates", "optimizer", "scaler", "random")
    missing = [key for key in needed if not isinstance(state, dict) or key not in state]
    if missing:
        raise ConfigError(
            f"checkpoint {str(path)!r} is of another version or no run's (it has no {missing[0]!r}): set train.output "
            "to another folder"
        )
    return dict(state)


def restore(state: Tree, parts: Parts, path: Path) -> Progress:
    """Bring a run to the state that ``read_state`` gave; ``path`` is named in errors.

    Raises:
        ValueError: a checkpoint of another model or optimizer.
    """
    try:
        _load_weights(parts.model, state["model"])
        _load_optimizer(parts.optimizer, state["optimizer"])
        if parts.mean:
            for name, value in parts.mean.means.items():
                local_shard(value).copy_(local_shard(shard_like(state["mean"][name], value)))
            parts.mean.updates = int(state["updates"])
        if parts.scaler.is_enabled():
            parts.scaler.load_state_dict(state["scaler"])
        known = {part.name for part in fields(Progress)}
        progress = Progress(**{key: value for key, value in state["progress"].items() if key in known})
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"checkpoint {str(path)!r} is of another model or run ({reason}): set train.output to another folder"
        ) from None
    group = parts.group
    if len(state["random"]) == group.size:
        restore_random(state["random"][group.rank], group.device)
    if not group.main:
        progress.skipped, progress.broken, progress.tried = {}, 0, 0  # the main one has the sums; others add theirs
    return progress


def write_state(path: Path, state: Tree) -> None:
    """Write a checkpoint atomically: a killed or failed write leaves the one before.

    Raises:
        OSError: it cannot be written, such as on a full disk.
    """
    write_atomically(path, lambda file: torch.save(state, file))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file by what ``write`` writes, whole and on the disk, or leave it as it is.

    Raises:
        OSError: in one line: the file, what is free there, and what to do.
    """
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch turns some failed writes into RuntimeError
        partial.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 1e6
        before = "the one before is whole" if path.exists() else "there is none yet"
        reason = " ".join(str(error).split())[:120]
        raise OSError(
            f"{str(path)!r} could not be written ({reason}), {before}; {free:,.0f} MB are free there: make room, or "
            "move the folder to another disk and set train.output to it, and run the same command again"
        ) from None


def remove_written(path: Path) -> None:
    """Remove a file that ``write_atomically`` has written, and what a kill may have left of a writing."""
    path.unlink(missing_ok=True)
    _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")  # one name: what a kill leaves is overwritten by the next write


def random_states(device: torch.device) -> Tree:
    """The state of every generator of random numbers: torch's, CUDA's on this device, numpy's and Python's."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def restore_random(state: Tree, device: torch.device) -> None:
    """Set every generator of random numbers to a state that ``random_states`` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def _whole(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _whole(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_whole(value) for value in tree]
    return full_tensor(tree) if isinstance(tree, Tensor) else tree


def _load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    model.load_state_dict(
        {name: shard_like(value, own[name]) if name in own else value for name, value in weights.items()}
    )


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Tree) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in state["state"].items():
        owner = parameters[number]
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.shape == owner.shape:
                entry[name] = shard_like(value, owner)
    optimizer.load_state_dict(state)


def _sync_folder(folder: Path) -> None:
    """Have the folder itself on the disk, without which a power cut could undo the renaming."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
