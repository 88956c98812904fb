"""Weights on disk: our folders (model.safetensors, config.json, vocab.txt), foreign checkpoints, public names.

Nothing pickled is ever run: ``.pth`` files are read with ``weights_only=True``.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from glip.config import ModelConfig
from glip.errors import CheckpointError
from glip.experiment import Experiment, read_tree, to_dict
from glip.model.glip import GLIP, build
from glip.model.language import TextLayer, quantize_rows
from glip.model.release import State, from_foreign, infer_config, is_foreign, load_yacs
from glip.model.vision import from_timm, timm_weights
from glip.schema import parse
from glip.shapes import Tensor

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = "glip-nano"
MIRROR = "GLIPModel/GLIP"  # the public mirror of the 2022 release on the Hugging Face hub
RELEASED = {
    "glip-t-a": "glip_a_tiny_o365.pth",
    "glip-t-b": "glip_tiny_model_o365.pth",
    "glip-t-c": "glip_tiny_model_o365_goldg.pth",
    "glip-t": "glip_tiny_model_o365_goldg_cc_sbu.pth",
    "glip-l": "glip_large_model.pth",
}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME on the hub
_ROWS, _SCALES = ".int8_rows", ".int8_scales"  # how a matrix of 8 bits is stored


@dataclass(frozen=True)
class Pretrained:
    """A loaded model, its config and the folder of its tokenizer."""

    model: GLIP
    config: ModelConfig
    tokenizer: Path


def list_pretrained() -> tuple[str, ...]:
    """Names that ``from_pretrained`` knows: the bundled checkpoint and the 2022 release."""
    return (BUNDLED, *RELEASED)


def load_pretrained(name_or_path: str | Path) -> Pretrained:
    """Load a model by name, from a folder of ours, or from a ``.pth`` of the release or of mmdetection.

    Raises:
        CheckpointError: unknown name, no network, a broken file, or weights that do not fit the sizes.
    """
    path = resolve(name_or_path)
    if path.is_dir():
        return _load_folder(path)
    state = read_state(path)
    if not is_foreign(state):
        hint = f"the folder {str(path.parent)!r}" if path.name == "model.safetensors" else "a folder of save_pretrained"
        raise CheckpointError(
            f"weights {str(path)!r} are no GLIP of the 2022 release (their first key is {next(iter(state))!r}): give "
            f"a checkpoint of the release or of mmdetection, or {hint}"
        )
    config = _foreign_config(path, state, str(name_or_path))
    renamed = from_foreign(state, max_tokens=config.max_tokens)
    return Pretrained(_filled(config, renamed, path), config, ASSETS / BUNDLED)


def pretrained_config(name_or_path: str | Path) -> ModelConfig:
    """The config of a model, without reading its weights where it is one of ours or a name of the release.

    Raises:
        CheckpointError: as ``load_pretrained``.
    """
    if str(name_or_path) in RELEASED and not Path(name_or_path).exists():
        return parse(Experiment, read_tree(str(name_or_path).replace("-", "_"))).model
    path = resolve(name_or_path)
    return _folder_config(path) if path.is_dir() else load_pretrained(path).config


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Tells one set of weights from another, wherever and however they are stored."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + b"\0")
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_pretrained(
    folder: str | Path, model: GLIP, config: ModelConfig, vocabulary: Path, *, half: bool = False
) -> None:
    """Write a folder that ``load_pretrained`` reads with no network; files appear whole or not at all.

    Args:
        folder: where to write; made if missing.
        model: the weights.
        config: its sizes and defaults.
        vocabulary: a folder with ``vocab.txt``.
        half: store float16 (with ``language.bits`` 8 the text encoder's matrices are int8 in any case).
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    if config.language.bits == 8:
        state = _quantized(state, model.state_dict())
    with tempfile.TemporaryDirectory(dir=target) as partial:
        save_file(state, Path(partial, "model.safetensors"), metadata={"format": "pt"})
        Path(partial, "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(vocabulary / "vocab.txt", Path(partial, "vocab.txt"))
        for name in ("vocab.txt", "config.json", "model.safetensors"):
            os.chmod(Path(partial, name), 0o644)
            os.replace(Path(partial, name), target / name)


def start_language(model: GLIP, source: str | Path) -> None:
    """Begin with a pretrained BERT: its layers fill the encoder, those left over the text layers of the tower.

    Args:
        model: the model to fill.
        source: a ``model.safetensors`` in BERT's layout, a folder with one, or the hub repository of one.

    Raises:
        CheckpointError: no such file, a download that failed, or another model.
    """
    path = Path(source)
    if not path.exists() and _REPOSITORY.fullmatch(str(source)):
        path = _download(str(source), "model.safetensors")
    state = read_state(path / "model.safetensors" if path.is_dir() else path)
    state = {key.removeprefix("bert."): value for key, value in state.items()}
    own = model.language.bert
    depth = len(own.encoder.layer)
    table = "embeddings.position_embeddings.weight"
    if table in state:  # a BERT reads 512 positions; ours may need fewer
        state[table] = state[table][: own.embeddings.position_embeddings.weight.shape[0]]
    encoder = {key: value for key, value in state.items() if key in own.state_dict()}
    fit(own, encoder, path)
    for number, stage in enumerate(model.tower):
        prefix = f"encoder.layer.{depth + number}."
        layer = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if layer and isinstance(stage.text, TextLayer):
            fit(stage.text.get_submodule("layer"), layer, path)


def start_vision(model: GLIP, source: str | Path) -> None:
    """Begin with ImageNet weights of a timm Swin; the norms of the outputs have none and start fresh.

    Args:
        model: the model to fill.
        source: a ``model.safetensors`` or ``.pth`` in timm's layout, a folder with the first, or a timm model name.

    Raises:
        CheckpointError: a file of another model.
    """
    path = Path(source)
    file = path / "model.safetensors" if path.is_dir() else path
    weights = from_timm(read_state(file)) if file.is_file() else timm_weights(str(source))
    fresh = {key: value for key, value in model.vision.state_dict().items() if key.startswith("norms.")}
    fit(model.vision, {**weights, **fresh}, path)


def read_state(path: Path) -> State:
    """The tensors of a ``.safetensors`` or a ``.pth``, unwrapped.

    Raises:
        CheckpointError: missing, truncated, or holding anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"weights {str(path)!r} are not there: check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes torch raise almost anything
        raise CheckpointError(f"weights {str(path)!r} cannot be read: {_reading_problem(path, error)}") from None
    for wrapper in ("model", "state_dict"):
        tree = tree.get(wrapper, tree) if isinstance(tree, Mapping) else tree
    tensors = isinstance(tree, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tree.items())
    if not tensors or not tree:
        raise CheckpointError(f"weights {str(path)!r} hold no state dict (tensors by name): give a model checkpoint")
    return dict(tree)


def _reading_problem(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
        return "it holds Python objects beside tensors, and those are never run: save its state dict alone"
    with path.open("rb") as file:
        start = file.read(8)
    known = path.suffix == ".safetensors" or start.startswith((b"PK", b"\x80"))
    return (
        f"the file ends early or is broken ({path.stat().st_size:,} bytes): copy or download it again"
        if known
        else "it is no checkpoint (neither a .pth of torch nor .safetensors): check the path"
    )


def fit(module: torch.nn.Module, state: State, path: Path) -> None:
    """Load a state dict that must match name by name and shape by shape.

    Raises:
        CheckpointError: naming what is missing, extra, or of another shape.
    """
    own = module.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"extra {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(f"weights {str(path)!r} are not of this model: {shown}: give its own config and weights")
    module.load_state_dict(state)


def resolve(name_or_path: str | Path) -> Path:
    """The folder or file meant by a name (downloaded and cached by huggingface_hub when public) or a path.

    Raises:
        CheckpointError: neither a name nor a path, or a download that failed.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    name = str(name_or_path)
    if name == BUNDLED:
        return ASSETS / BUNDLED
    if name in RELEASED:
        return _download(MIRROR, RELEASED[name])
    raise CheckpointError(
        f"model {name!r} is not known and no such path is there: give one of {', '.join(list_pretrained())}, "
        "a folder written by save_pretrained, or a .pth file"
    )


def _download(repository: str, file: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        size = get_hf_file_metadata(hf_hub_url(repository, file)).size or 0
        print(f"downloading {file} ({size / 1e6:.0f} MB) from {repository}", file=sys.stderr)
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub raises its own, requests' and httpx's errors, by version
        raise CheckpointError(
            f"{file} could not be downloaded from {repository} ({type(error).__name__}): fetch it from that hub "
            "repository on a machine with network, and pass its path instead of the name"
        ) from None


def _load_folder(path: Path) -> Pretrained:
    config = _folder_config(path)
    state = read_state(path / "model.safetensors")
    for key in [key for key in state if key.endswith(_ROWS) and key.removesuffix(_ROWS) + _SCALES in state]:
        name = key.removesuffix(_ROWS)
        state[name] = state.pop(key).float() * state.pop(name + _SCALES).float()[:, None]
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return Pretrained(_filled(config, state, path), config, path)


def _folder_config(path: Path) -> ModelConfig:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"folder {str(path)!r} has no config.json: give a folder written by save_pretrained")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}): copy the model's folder again") from None
    return parse(ModelConfig, tree, at=str(file), error=CheckpointError)


def _quantized(state: State, exact: Mapping[str, Tensor]) -> State:
    """The text encoder's matrices as int8 rows and scales; all else as it is."""
    stored: State = {}
    for key, value in state.items():
        if key.startswith("language.") and value.ndim == 2:
            stored[key + _ROWS], stored[key + _SCALES] = quantize_rows(exact[key].detach().cpu())
        else:
            stored[key] = value
    return stored


def _filled(config: ModelConfig, state: State, path: Path) -> GLIP:
    try:
        model = build(config)
    except (ValueError, RuntimeError, AssertionError, IndexError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"weights {str(path)!r}: no model has such sizes ({reason}): check where they are from"
        ) from None
    fit(model, state, path)
    return model.eval()


def _foreign_config(path: Path, state: State, name: str) -> ModelConfig:
    try:
        config = infer_config(from_foreign(state), name)
    except ValueError as error:
        raise CheckpointError(
            f"weights {str(path)!r} are no GLIP of the 2022 release or of mmdetection: {error} (their first key is "
            f"{next(iter(state))!r}): is this the checkpoint of another detector?"
        ) from None
    beside = _yacs_beside(path)
    try:
        return load_yacs(beside, config) if beside else config
    except ValueError as error:
        raise CheckpointError(f"the config beside {str(path)!r}: {error}; mend it or move it away") from None


def _yacs_beside(path: Path) -> Path | None:
    """The release's YAML of a checkpoint: the one of the same name, or the only one in the folder."""
    found = sorted(path.parent.glob("*.y*ml"))
    same = [file for file in found if file.stem == path.stem]
    return same[0] if same else found[0] if len(found) == 1 else None
