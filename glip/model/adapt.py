"""Adaptations on disk (``task.safetensors``), and a model with one: what it does not change is shared."""

import copy
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from glip.adaptation import Adaptation
from glip.errors import CheckpointError
from glip.model.glip import GLIP
from glip.model.weights import fingerprint
from glip.shapes import Tensor
from glip.structures import Phrase, Prompt

FORMAT = "glip task 1"
_OFFSETS = "offsets"
_WEIGHT = "weight."  # before the names of weights that changed


def save_adaptation(path: str | Path, adaptation: Adaptation) -> None:
    """Write one file, whole or not at all; its folder is made if missing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = {_WEIGHT + name: value for name, value in adaptation.weights.items()}
    if adaptation.offsets is not None:
        tensors[_OFFSETS] = adaptation.offsets
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        file = Path(partial, target.name)
        save_file(tensors, file, metadata={"format": FORMAT, "task": json.dumps(_plain(adaptation))})
        os.chmod(file, 0o644)
        os.replace(file, target)


def load_adaptation(path: str | Path) -> Adaptation:
    """Read what ``save_adaptation`` wrote; whether it fits a model is for the Detector to say.

    Raises:
        CheckpointError: not there, broken, or something else.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"task {str(file)!r} is not there: give the task.safetensors that glip tune wrote")
    try:
        with safe_open(file, framework="pt") as opened:
            found = opened.metadata() or {}
            if found.get("format") != FORMAT:
                raise CheckpointError(
                    f"task {str(file)!r} is no task of ours (its format is {found.get('format', '')[:40]!r}): give "
                    "the task.safetensors that glip tune wrote"
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        return _parsed(json.loads(found["task"]), tensors)
    except CheckpointError:
        raise
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"task {str(file)!r} cannot be read ({error}): copy it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"task {str(file)!r} is broken ({error}): tune again") from None


def digest_of(adaptation: Adaptation) -> str:
    """Tells what was learned from what was learned at another time."""
    tensors = dict(adaptation.weights) | ({} if adaptation.offsets is None else {_OFFSETS: adaptation.offsets})
    return fingerprint(dict(sorted(tensors.items())) | {json.dumps(_plain(adaptation)): torch.zeros(0)})


def with_weights(model: GLIP, weights: Mapping[str, Tensor]) -> GLIP:
    """A model in the same modes that shares the memory of another but for the weights given; none asks for gradients.

    Raises:
        CheckpointError: a name or shape that the model does not have.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in model.buffers()}
    shared |= {id(tensor): nn.Parameter(tensor.detach(), requires_grad=False) for tensor in model.parameters()}
    twin = copy.deepcopy(model, shared)
    for name, value in weights.items():
        path, _, leaf = name.rpartition(".")
        try:
            module = twin.get_submodule(path)
            own = getattr(module, leaf)
        except AttributeError:
            raise CheckpointError(f"the model has no weight {name!r}: the task is of another model") from None
        if not isinstance(own, Tensor) or own.shape != value.shape:
            raise CheckpointError(f"weight {name!r} has shape {tuple(value.shape)}: the task is of another model")
        value = value.to(own.device, own.dtype)
        setattr(module, leaf, nn.Parameter(value, requires_grad=False) if isinstance(own, nn.Parameter) else value)
    return twin


def _plain(adaptation: Adaptation) -> dict[str, Any]:
    prompt = adaptation.prompt
    return {
        "mode": adaptation.mode,
        "model": adaptation.model,
        "fingerprint": adaptation.fingerprint,
        "names": list(adaptation.names),
        "caption": prompt.caption,
        "spans": [list(map(list, phrase.spans)) for phrase in prompt.phrases],
        "texts": list(prompt.texts),
        "thresholds": list(adaptation.thresholds),
        "figures": dict(adaptation.figures),
        "about": dict(adaptation.about),
    }


def _parsed(tree: dict[str, Any], tensors: Mapping[str, Tensor]) -> Adaptation:
    spans = [tuple((int(start), int(end)) for start, end in row) for row in tree["spans"]]
    phrases = tuple(Phrase(str(text), own) for text, own in zip(tree["texts"], spans, strict=True))
    offsets = tensors.get(_OFFSETS)
    if offsets is not None and not (offsets.ndim == 2 and offsets.is_floating_point() and offsets.isfinite().all()):
        raise CheckpointError(f"offsets of shape {tuple(offsets.shape)} are no finite (token, channel) table")
    return Adaptation(
        mode=tree["mode"],
        model=str(tree["model"]),
        fingerprint=str(tree["fingerprint"]),
        names=tuple(map(str, tree["names"])),
        prompt=Prompt(str(tree["caption"]), phrases),
        offsets=offsets,
        weights={name.removeprefix(_WEIGHT): value for name, value in tensors.items() if name.startswith(_WEIGHT)},
        thresholds=tuple(map(float, tree["thresholds"])),
        figures={str(key): float(value) for key, value in tree["figures"].items()},
        about={str(key): str(value) for key, value in tree["about"].items()},
    )
