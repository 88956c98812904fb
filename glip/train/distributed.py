"""Several processes as one: rank and size under torchrun, sums over all processes, models that share their gradients.

Every process computes its share of each step. Gradients, and everything that decides what happens next, are summed
over all processes, so that all of them do the same. Without torchrun there is one process, and nothing here does
anything.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import SUPPORTED_NODES, register_dataclass

from glip.errors import ConfigError
from glip.model.glip import GLIP
from glip.shapes import Float, Tensor
from glip.structures import Outputs

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes of a run: the rank of this one, how many there are, and the device of this one."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sum(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The sum over all processes, the same in each of them."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ONE = Group()


def main_only(group: Group, report: Callable[[str], None]) -> Callable[[str], None]:
    """``report`` in the main process; silence in the others."""
    return report if group.main else lambda line: None


@contextmanager
def process_group(device: torch.device | str = "cpu", *, minutes: float = 30.0) -> Iterator[Group]:
    """The group that torchrun's environment describes: gloo on CPUs, NCCL on GPUs.

    A process that waits longer than ``minutes`` for another one ends with an error. A process that fails leaves the
    group, so that the others end soon.

    Raises:
        ConfigError: more processes than GPUs.
    """
    names = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    rank, size, local = (int(os.environ.get(*name)) for name in names)
    own = torch.device(device)
    if size == 1:
        yield Group(device=own)
        return
    if own.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} has no GPU: this machine has {torch.cuda.device_count()}. Lower torchrun's "
                "--nproc-per-node, or give --device cpu"
            )
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    try:
        yield Group(rank, size, own)
    finally:
        dist.destroy_process_group()


def wrap_model(model: nn.Module, group: Group, parallel: str = "ddp") -> nn.Module:
    """The model as training calls it: itself in a single process, else with gradients averaged over all processes.

    ``ddp`` holds all weights in every process. ``fsdp`` shards weights, gradients and optimizer state, and gathers only
    the stage that computes; it changes ``model`` itself, a GLIP. Weights stay float32 in both, and autocast alone
    decides what is computed in lower precision, so that both give the same numbers.
    """
    if not dist.is_initialized() or dist.get_world_size() != group.size:
        return model
    for value in [*model.parameters(), *model.buffers()]:
        dist.broadcast(value.detach(), src=0)
    if parallel == "ddp" or not isinstance(model, GLIP):
        return DistributedDataParallel(model, device_ids=[group.device] if group.device.type == "cuda" else None)

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # torch 2.6

    if Outputs not in SUPPORTED_NODES:
        register_dataclass(Outputs)  # FSDP attaches hooks to the tensors in a model's outputs
    # Outputs may be views, of which FSDP warns those who would write into them; the losses only read.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(group.device.type, (group.size,))
    for stage in [*getattr(model.vision, "stages", ()), *model.tower, model]:
        fully_shard(stage, mesh=mesh)
    return model


def gradient_sync(module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Around a micro-batch: only the last one of a step shares gradients between processes."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    if is_sharded(module):
        module.set_requires_gradient_sync(last)  # type: ignore[operator]
    return nullcontext()


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds only a shard of the weights."""
    return hasattr(module, "set_requires_gradient_sync")


def local_shard(value: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory."""
    return value.to_local() if hasattr(value, "to_local") else value


def full_tensor(value: Tensor) -> Tensor:
    """The whole tensor on the CPU; for a sharded one all processes must call this."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()


def shard_like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor of the size of ``other``, sharded as that is."""
    value = value.reshape(other.shape)  # of another size: an error
    if not hasattr(other, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)  # type: ignore[attr-defined]


@torch.no_grad()
def copy_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Overwrite tensors, sharded or not, with whole ones of the same names."""
    for name, tensor in tensors.items():
        local_shard(tensor).copy_(local_shard(shard_like(values[name], tensor)))
