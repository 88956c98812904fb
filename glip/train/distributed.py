"""Several processes as one: who is who under torchrun, sums over all of them, and a model whose gradients they share.

Every process computes its share of each step; gradients, and what decisions rest on, are sums over all processes, so
that all of them always do the same. Without torchrun there is one process, and nothing here does anything.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from glip.errors import ConfigError
from glip.model.glip import GLIP
from glip.shapes import Float, Tensor
from glip.structures import Outputs, TextFeatures

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MINUTES = 30.0  # after which a process gives up waiting for the others
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Group:
    """The processes of a run: this one's number, how many there are, and where this one computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes and reports."""
        return self.rank == 0

    def sum(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The sum over all processes, the same in each of them."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, thing: Thing) -> list[Thing]:
        """What each process has, by its number."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things


def main_only(group: Group, report: Callable[[str], None]) -> Callable[[str], None]:
    """``report`` in the main process; in the others what they would say is not said."""
    return report if group.main else lambda line: None


@contextmanager
def process_group(device: torch.device | str = "cpu", *, minutes: float = _MINUTES) -> Iterator[Group]:
    """The group that torchrun's environment tells of: gloo on a CPU, NCCL on GPUs.

    A process that waits longer than ``minutes`` for the others, because one of them hangs, ends with an error; one
    that fails leaves the group, so that the others end soon.

    Raises:
        ValueError: half of torchrun's environment, or more processes than GPUs.
    """
    given = [name for name in _TORCHRUN if name in os.environ]
    if given and len(given) < len(_TORCHRUN):
        missing = ", ".join(name for name in _TORCHRUN if name not in given)
        raise ConfigError(
            f"{given[0]} is set but not {missing}: start several processes with torchrun, or unset {given[0]}"
        )
    rank, size, local = (int(os.environ.get(name, default)) for name, default in zip(_TORCHRUN, "010", strict=True))
    if size == 1:
        yield Group(device=torch.device(device))
        return
    kind = torch.device(device).type
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}: give torchrun at most "
            "so many with --nproc-per-node, or train on the CPU with --device cpu"
        )
    own = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(own)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    try:
        yield Group(rank, size, own)
    finally:
        dist.destroy_process_group()


def wrap_model(model: GLIP, group: Group, parallel: str) -> nn.Module:
    """The model as it is called in training: itself without other processes, else with gradients averaged over all.

    ``ddp`` holds all weights in every process. ``fsdp`` splits weights, gradients and optimizer state among them and
    brings together only the stage that computes; it changes ``model`` itself. Weights stay float32 in both, and
    autocast alone decides where fewer digits do, so that both compute the same.
    """
    if not dist.is_initialized() or dist.get_world_size() != group.size:
        return model
    for value in [*model.parameters(), *model.buffers()]:
        dist.broadcast(value.detach(), src=0)
    if parallel == "fsdp":
        return _shard(model, group)
    return DistributedDataParallel(model, device_ids=[group.device] if group.device.type == "cuda" else None)


def sharing(module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Around a micro-batch: gradients are shared after the last one of a step only."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    if is_sharded(module):
        module.set_requires_gradient_sync(last)  # type: ignore[operator]
    return nullcontext()


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds a part of the weights only."""
    return hasattr(module, "set_requires_gradient_sync")


def local_shard(value: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    return value.to_local() if hasattr(value, "to_local") else value


def full_tensor(value: Tensor) -> Tensor:
    """A tensor in full, on the CPU; of a sharded one all processes must ask."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()


def shard_like(value: Tensor, model: Tensor) -> Tensor:
    """A full tensor, split up as ``model`` is."""
    if not hasattr(model, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)  # type: ignore[attr-defined]


def _shard(model: GLIP, group: Group) -> nn.Module:
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise ConfigError(
            f"train.parallel=fsdp needs torch 2.6 or later, this is {torch.__version__}: update torch, or take ddp"
        ) from None
    _show_tensors()
    # Outputs may be views, of which FSDP warns for those who would write into them; the losses only read.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(group.device.type, (group.size,))
    for stage in [*getattr(model.vision, "stages", ()), *model.tower]:
        fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _show_tensors() -> None:
    """Let FSDP find the tensors inside what stages give and take: it hangs its work on them."""
    from torch.utils._pytree import SUPPORTED_NODES, register_dataclass

    for kind in (Outputs, TextFeatures):
        if kind not in SUPPORTED_NODES:
            register_dataclass(kind)
