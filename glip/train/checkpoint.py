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
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        with Path(partial, NAME).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(Path(partial, NAME), target)
    return target


def load_state(path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what ``save_state`` wrote; gives the number of steps done.

    Raises:
        ValueError: a broken checkpoint, or one of another model.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes torch raise almost anything
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be read ({type(error).__name__}): remove it to start anew, or set "
            "train.output to another folder"
        ) from None
    try:
        step, random = int(state["step"]), state["random"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"checkpoint {str(path)!r} is of another model or run ({reason}): set train.output to another folder"
        ) from None
    torch.set_rng_state(random)
    return step
