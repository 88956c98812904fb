"""Adaptations: what a model has learned for one task, small enough to keep, share and load on top of the model.

Paper section 5.2: with deep fusion, tuning only the prompt's embedding comes close to tuning everything, so that one
frozen model serves every task. On disk an adaptation is ``task.safetensors``; ``Detector.adapted`` uses it. Models that
use one share all weights it does not change.
"""

import copy
import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from glip.config import UNSTATED, Mode, ModelConfig, Share
from glip.errors import CheckpointError, GlipError
from glip.files import write_json
from glip.model.glip import GLIP
from glip.model.weights import check_fit, read_tensors, save_tensors, weights_fingerprint
from glip.provenance import renew
from glip.schema import checked, parse_json
from glip.shapes import Float, Tensor
from glip.structures import Phrase, Prompt

TASK_FILE, FORMAT = "task.safetensors", "glip task 1"
_OFFSETS = "offsets"
_WEIGHT = "weight."  # before the names of weights that changed
_PEFT = "base_model.model."  # the same in an adapter of peft
_LORA = ".lora_"
LORA_A, LORA_B = f"{_LORA}A.weight", f"{_LORA}B.weight"  # after the name of a layer, as peft calls them
_ENCODER = ("vision.", "pyramid.")  # before the names of the image encoder's weights


@dataclass(frozen=True)
class Adaptation:
    """A task: its words, and what was tuned for them.

    Args:
        mode: what was tuned: "prompt" (offsets to the prompt's token features), "linear" (the heads' projections),
            "lora" (low-rank changes of linear layers), "text" (the language model) or "full" (everything).
        model: name of the model it belongs to.
        fingerprint: fingerprint of that model's weights; it fits no others.
        names: the task's classes; label ``i`` of a detection is ``names[i]``.
        prompt: the caption; phrase ``i`` stands for ``names[i]``.
        offsets: mode "prompt": added to the features of each token of the caption, [CLS] and [SEP] included.
        weights: the other modes: the weights that changed, by their name in the model. Mode "lora": for a layer X the
            matrices X.lora_A.weight (rank, in) and X.lora_B.weight (out, rank), whose product B A is added to X.weight.
        thresholds: lowest score returned, for each name; () for the model's own.
        figures: what was measured, such as "AP50 on chess_val".
        about: how it was made: dataset, shots, seed.
    """

    mode: Mode
    model: str
    fingerprint: str
    names: tuple[str, ...]
    prompt: Prompt
    offsets: Float[Tensor, "tok chan"] | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "Adaptation":
        """The same with its tensors on another device."""
        offsets = None if self.offsets is None else self.offsets.to(device)
        return replace(self, offsets=offsets, weights={name: value.to(device) for name, value in self.weights.items()})

    @property
    def keeps_encoder(self) -> bool:
        """Whether images are encoded as by the model itself."""
        return not changes_encoder(self.weights)


def trained_with(config: ModelConfig, task: Adaptation) -> ModelConfig:
    """The config of a model with what a task was tuned on beside what it was trained on."""
    names = (*(config.trained_on or [UNSTATED]), task.about.get("task", UNSTATED))
    data = (*(config.trained_on_data or [UNSTATED]), *task.about.get("data", UNSTATED).split(", "))
    return replace(config, trained_on=names, trained_on_data=data)


def changes_encoder(names: Iterable[str]) -> bool:
    """Whether weights of the image encoder are among those that change."""
    return any(name.startswith(_ENCODER) for name in names)


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
    thresholds: tuple[Share, ...]
    figures: dict[str, float]
    about: dict[str, str]


def save_adaptation(path: str | Path, adaptation: Adaptation) -> None:
    """Write a task file, whole or not at all; its folder is made if missing."""
    save_tensors(Path(path), _tensors(adaptation), {"format": FORMAT, "task": _metadata(adaptation)})
    renew(Path(path))


def save_peft_adapter(folder: str | Path, adaptation: Adaptation) -> None:
    """Write what LoRA has learned as peft reads it; the file of its weights can still be used as a task.

    Raises:
        GlipError: a task of another mode than lora.
    """
    refuse_mode(adaptation, ("lora",), "become an adapter of peft")
    names = [name.removesuffix(LORA_A) for name in adaptation.weights if name.endswith(LORA_A)]
    rank = len(adaptation.weights[names[0] + LORA_A])  # as alpha too: the scale is in the weights
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": names, "inference_mode": True}
    tensors = {_PEFT + name: value for name, value in adaptation.weights.items()}
    metadata = {"format": FORMAT, "task": _metadata(adaptation)}
    save_tensors(Path(folder) / "adapter_model.safetensors", tensors, metadata)
    write_json(Path(folder) / "adapter_config.json", config)


def refuse_mode(adaptation: Adaptation, modes: Collection[str], what: str) -> None:
    """Refuse a task of another mode than these, which cannot do ``what``."""
    if adaptation.mode not in modes:
        raise GlipError(f"a task of mode {adaptation.mode!r} cannot {what}: give one of mode {' or '.join(modes)}")


def task_file(path: str | Path) -> Path:
    """A task file itself, or the only one in a folder that ``glip tune`` has written.

    Raises:
        CheckpointError: a folder with none, or with several.
    """
    path = Path(path)
    found = sorted([*path.glob(TASK_FILE), *path.glob(f"*/{TASK_FILE}")]) if path.is_dir() else [path]
    if len(found) != 1:
        some = ", such as " + ", ".join(map(str, found[:3])) if found else ""
        raise CheckpointError(f"{str(path)!r} is a folder with {len(found)} {TASK_FILE}{some}: give the file")
    return found[0]


def load_adaptation(path: str | Path) -> Adaptation:
    """Read a task file, or the only one in a folder; the Detector checks that it belongs to its model.

    Raises:
        CheckpointError: missing, broken, or another kind of file.
    """
    file = task_file(path)
    tensors, metadata = read_tensors(file), dict[str, str]()
    with suppress(SafetensorError), safe_open(file, framework="pt") as opened:  # else a .pt, whose tensors are read too
        metadata = opened.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{str(file)!r} is not a task: give the task.safetensors that glip tune wrote")
    task = parse_json(_Task, metadata.get("task", ""), at=f"task {str(file)!r}", error=CheckpointError)
    offsets = tensors.pop(_OFFSETS, None)
    try:
        _check_task(task, offsets)
        prompt = Prompt(task.caption, tuple(map(Phrase, task.texts, task.spans)))
    except ValueError as error:
        raise CheckpointError(f"task {str(file)!r} is broken ({error}): tune again") from None
    plain = {name: value for name, value in vars(task).items() if name not in ("caption", "spans", "texts")}
    weights = {name.removeprefix(_WEIGHT).removeprefix(_PEFT): value for name, value in tensors.items()}
    return Adaptation(**plain, prompt=prompt, offsets=offsets, weights=weights)


def _check_task(task: _Task, offsets: Tensor | None) -> None:
    count = len(task.names)
    if not len(task.texts) == len(task.spans) == count or len(task.thresholds) not in (0, count):
        raise ValueError(f"{count} names, {len(task.texts)} phrases, {len(task.thresholds)} thresholds")
    finite = offsets is None or (offsets.ndim == 2 and offsets.is_floating_point() and bool(offsets.isfinite().all()))
    if not finite or (task.mode == "prompt") != (offsets is not None):
        raise ValueError(f"mode {task.mode!r}: prompt has offsets, a finite table, the others have none")


def digest_of(adaptation: Adaptation) -> str:
    """A hash (hex) of all that was learned for a task."""
    tensors = dict(sorted(_tensors(adaptation).items()))
    return weights_fingerprint({**tensors, _metadata(adaptation): torch.zeros(0)})


def with_weights(model: GLIP, weights: Mapping[str, Tensor]) -> GLIP:
    """A model in the same modes that shares the memory of another, except for the given weights; all of it frozen."""
    if model.fingerprint:
        raise CheckpointError("the task changes weights, which are fixed in an exported model: load the model itself")
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    own = twin.state_dict()
    products = _products(own, weights)
    given = {name: value for name, value in weights.items() if _LORA not in name} | products
    check_fit(own, {**own, **given}, "of the task")
    given |= {name: own[name] + value.to(own[name].device) for name, value in products.items()}
    changed = {name: value.detach().to(own[name]) for name, value in given.items()}
    twin.load_state_dict({**own, **changed}, assign=True)  # assigned, so that nothing is written into shared memory
    return twin.requires_grad_(False)


def _products(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What LoRA adds to the weights of each layer; ``own`` are the model's."""
    pairs, expected = {name: value for name, value in weights.items() if _LORA in name}, dict[str, Tensor]()
    for layer in dict.fromkeys(name.partition(_LORA)[0] for name in pairs):
        size, rank = own.get(f"{layer}.weight", torch.empty(0)).shape, len(pairs.get(layer + LORA_A, ()))
        expected[layer + LORA_A] = torch.empty(rank, size[-1])
        expected[layer + LORA_B] = torch.empty(size[0], rank)
    check_fit(expected, pairs, "of the task (LoRA)")
    layers = [name.removesuffix(LORA_A) for name in pairs if name.endswith(LORA_A)]
    return {f"{layer}.weight": pairs[layer + LORA_B] @ pairs[layer + LORA_A] for layer in layers}


def _tensors(adaptation: Adaptation) -> dict[str, Tensor]:
    offsets = {} if adaptation.offsets is None else {_OFFSETS: adaptation.offsets}
    return {_WEIGHT + name: value for name, value in adaptation.weights.items()} | offsets


def _metadata(adaptation: Adaptation) -> str:
    """The text of a ``_Task``, in the order of its fields."""
    prompt = adaptation.prompt
    words = {"caption": prompt.caption, "spans": [phrase.spans for phrase in prompt.phrases], "texts": prompt.texts}
    values = vars(adaptation) | words
    return json.dumps({part.name: values[part.name] for part in fields(_Task)}, default=dict)  # type: ignore[arg-type]
