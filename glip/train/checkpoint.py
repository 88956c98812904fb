"""A run's state on disk: written whole or not at all, and enough to go on as if never stopped."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

NAME = "last.pt"


def save_state(folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Path:
    """Write ``last.pt`` atomically: a killed write leaves the one before."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    target = folder / NAME
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, target)
    return target


def load_state(path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what ``save_state`` wrote; gives the number of steps done.

    Raises:
        ValueError: a checkpoint of another model.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"checkpoint {str(path)!r} is of another model or run ({first}): give another output"
        ) from None
    torch.set_rng_state(state["random"])
    return int(state["step"])
