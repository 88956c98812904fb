"""Adaptations on disk (``task.safetensors``), and models that use one: all weights it does not change are shared."""

import copy
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import safe_open

from glip.adaptation import Adaptation, Mode
from glip.errors import CheckpointError
from glip.model.glip import GLIP
from glip.model.weights import check_fit, fingerprint, read_tensors, save_tensors
from glip.schema import checked, parse_json
from glip.shapes import Tensor
from glip.structures import Phrase, Prompt

FORMAT = "glip task 1"
_OFFSETS = "offsets"
_WEIGHT = "weight."  # before the names of weights that changed
_SHARED = ("mode", "model", "fingerprint", "names", "thresholds", "figures", "about")  # fields as in an Adaptation


@checked
class _Task:
    """The metadata of a task file, as JSON; ``spans`` and ``texts`` are those of the prompt's phrases."""

    mode: Mode
    model: str
    fingerprint: str
    names: tuple[str, ...]
    caption: str
    spans: tuple[tuple[tuple[int, int], ...], ...]
    texts: tuple[str, ...]
    thresholds: tuple[float, ...]
    figures: dict[str, float]
    about: dict[str, str]


def save_adaptation(path: str | Path, adaptation: Adaptation) -> None:
    """Write a task file, whole or not at all; its folder is made if missing."""
    save_tensors(Path(path), _tensors(adaptation), {"format": FORMAT, "task": _metadata(adaptation)})


def load_adaptation(path: str | Path) -> Adaptation:
    """Read a task file; the Detector checks that it belongs to its model.

    Raises:
        CheckpointError: missing, broken, or another kind of file.
    """
    file = Path(path)
    tensors = read_tensors(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{str(file)!r} is not a task: give the task.safetensors that glip tune wrote")
    task = parse_json(_Task, metadata.get("task", ""), at=f"task {str(file)!r}", error=CheckpointError)
    offsets = tensors.get(_OFFSETS)
    if offsets is not None and not (offsets.ndim == 2 and offsets.is_floating_point() and offsets.isfinite().all()):
        raise CheckpointError(f"task {str(file)!r} is broken: its offsets are not a finite table: tune again")
    try:
        phrases = [Phrase(text, spans) for text, spans in zip(task.texts, task.spans, strict=True)]
        return Adaptation(
            **{name: getattr(task, name) for name in _SHARED},
            prompt=Prompt(task.caption, tuple(phrases)),
            offsets=offsets,
            weights={name.removeprefix(_WEIGHT): value for name, value in tensors.items() if name.startswith(_WEIGHT)},
        )
    except ValueError as error:
        raise CheckpointError(f"task {str(file)!r} is broken ({error}): tune again") from None


def digest_of(adaptation: Adaptation) -> str:
    """A hash (hex) of all that was learned for a task."""
    tensors = dict(sorted(_tensors(adaptation).items()))
    return fingerprint({**tensors, _metadata(adaptation): torch.zeros(0)})


def with_weights(model: GLIP, weights: Mapping[str, Tensor]) -> GLIP:
    """A model in the same modes that shares the memory of another, except for the given weights; all of it frozen."""
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    own = twin.state_dict()
    check_fit(own, {**own, **weights}, "of the task")
    changed = {name: value.detach().to(own[name]) for name, value in weights.items()}
    twin.load_state_dict({**own, **changed}, assign=True)  # assigned, so that nothing is written into shared memory
    return twin.requires_grad_(False)


def _tensors(adaptation: Adaptation) -> dict[str, Tensor]:
    offsets = {} if adaptation.offsets is None else {_OFFSETS: adaptation.offsets}
    return {_WEIGHT + name: value for name, value in adaptation.weights.items()} | offsets


def _metadata(adaptation: Adaptation) -> str:
    """The text of a ``_Task``, in the order of its fields."""
    prompt = adaptation.prompt
    spans = [phrase.spans for phrase in prompt.phrases]
    task = {name: getattr(adaptation, name) for name in _SHARED}
    task |= {"caption": prompt.caption, "spans": spans, "texts": prompt.texts}
    return json.dumps({field.name: task[field.name] for field in fields(_Task)}, default=dict)
