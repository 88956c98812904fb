"""Weights on disk: model folders (model.safetensors, config.json, vocab.txt), other checkpoints, public names.

Files may come from strangers: a ``.pth`` is read with ``weights_only=True``, so no code in it ever runs, and no memory
is reserved for sizes that the weights themselves do not have. What cannot be loaded is a CheckpointError.
"""

import hashlib
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from glip.config import UNSTATED, VALIDATED, ModelConfig
from glip.errors import CheckpointError
from glip.experiment import Experiment, read_tree, to_dict
from glip.files import atomic_path, write_json
from glip.model.exported import IMAGE, ExportedGLIP
from glip.model.glip import GLIP, build
from glip.model.language import TextLayer, quantize_rows
from glip.model.release import State, from_foreign, from_timm, infer_config
from glip.model.vision import WindowAttention, timm_weights
from glip.model.zoo import check_published, checkpoints, details_of
from glip.provenance import RECORD, record, renew, sha256
from glip.schema import parse, parse_json
from glip.shapes import Tensor
from glip.text.tokens import Tokenizer

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = "glip-nano"
MIRROR = "GLIPModel/GLIP"  # the public mirror of the 2022 release on the Hugging Face hub
RELEASED = {one.name: one.file for one in checkpoints() if one.origin == "release" and one.name}
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # in a model folder, beside the tokenizer's
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME on the hub
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PROGRAM = "of torch.export, whose programs may hold any code and are never run"
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
    """Load a model by name, from a model folder, or from a ``.pth`` of the release or of mmdetection.

    Raises:
        CheckpointError: unknown name, no network, a broken file, or weights that do not fit the config.
    """
    path = find_model(name_or_path)
    if (path / f"{IMAGE}.onnx").is_file():
        config = _read_config(path)
        return Pretrained(ExportedGLIP(path, config).eval(), config, path)
    if path.is_dir():
        config, state, tokenizer = _read_config(path), _dequantized(read_tensors(path / WEIGHTS)), path
    else:
        config, state = _read_foreign(path, str(name_or_path))
        tokenizer = ASSETS / BUNDLED
    return Pretrained(build_with(config, state, path).eval(), config, tokenizer)


def build_with(config: ModelConfig, state: State, path: Path) -> GLIP:
    """A model with given weights, for which no random numbers are drawn; ``path`` is named in errors."""
    try:
        with torch.device("meta"), _WithoutNormal():
            model = build(config)
    except (RuntimeError, TypeError) as error:  # numbers beyond 64 bits
        raise CheckpointError(f"{str(path)!r}: no model has such sizes ({str(error)[:80]}): check its config") from None
    check_fit(model.state_dict(), state, repr(str(path)))
    model.to_empty(device="cpu").load_state_dict(state)
    for part in model.modules():
        if isinstance(part, WindowAttention):
            part.number_places()
    return model


def known_sha256(name: str) -> tuple[Path, str]:
    """The weights of a public name on this machine, and their checksum as stated here or by the hub; "" if unknown.

    Raises:
        CheckpointError: unknown name, or no network to download it.
    """
    path = find_model(name)
    if path.is_dir():
        return path / WEIGHTS, next(one.sha256 for one in checkpoints() if one.name == name)
    stored = path.resolve().name  # the hub names a large file in its cache after its checksum
    return path, stored if _SHA256.fullmatch(stored) else ""


def pretrained_config(name_or_path: str | Path) -> ModelConfig:
    """The config of a model. No weights are read or downloaded for a model folder or a public name."""
    if str(name_or_path) in RELEASED and not Path(name_or_path).exists():
        return parse(Experiment, read_tree(str(name_or_path).replace("-", "_"))).model
    path = find_model(name_or_path)
    return _read_config(path) if path.is_dir() else _read_foreign(path, str(name_or_path))[0]


def save_pretrained(
    folder: str | Path, model: GLIP, config: ModelConfig, vocabulary: Path, *, half: bool = False
) -> None:
    """Write a model folder for ``load_pretrained``. The config is written last: where it is, the rest is complete.

    The tokenizer's files are those of the folder ``vocabulary``. With ``half`` weights are float16, except the
    matrices of the text encoder with ``language.bits`` 8, which are always int8.
    """
    folder, state = Path(folder), {}
    for key, value in model.state_dict().items():
        if config.language.bits == 8 and key.startswith("language.") and value.ndim == 2:
            state[key + _ROWS], state[key + _SCALES] = quantize_rows(value.detach().cpu())
        else:
            state[key] = value.half() if half and value.is_floating_point() else value
    words = copy_tokenizer(vocabulary, folder)
    save_tensors(folder / WEIGHTS, state, {"format": "pt"})
    write_json(folder / CONFIG, to_dict(config))
    record(folder / RECORD, files=[folder / WEIGHTS, folder / CONFIG, *words])


def copy_tokenizer(source: Path, folder: Path) -> list[Path]:
    """Write the tokenizer's files of one folder into another, in place of those there."""
    words = {file.name: file.read_bytes() for file in Tokenizer(source).files}
    for name, content in words.items():
        with atomic_path(folder / name) as file:
            file.write_bytes(content)
    for old in Tokenizer(folder).files:
        if old.name not in words:
            old.unlink()
    return [folder / name for name in words]


def store_thresholds(folder: str | Path, thresholds: Mapping[str, float], data: str) -> None:
    """Store lowest scores by phrase in the config of a model folder; those of other phrases stay.

    ``data`` is the fingerprint of the set that they were chosen on.

    Raises:
        CheckpointError: no model folder.
    """
    config = _read_config(Path(folder))
    seen = dict.fromkeys([*(config.trained_on_data or [UNSTATED]), VALIDATED + data])
    store_config(folder, replace(config, thresholds={**config.thresholds, **thresholds}, trained_on_data=tuple(seen)))


def store_config(folder: str | Path, config: ModelConfig) -> None:
    """Write the config of a model folder again, such as with another temperature."""
    write_json(Path(folder) / CONFIG, to_dict(config))
    renew(Path(folder) / CONFIG)


def start_language(model: GLIP, source: str | Path) -> None:
    """Start from a pretrained BERT: its first layers fill the encoder, the next ones the text layers of the tower.

    ``source`` is a ``model.safetensors`` in BERT's layout, a folder with one, or its repository on the hub.
    """
    path = Path(source)
    if not path.exists() and _REPOSITORY.fullmatch(str(source)):
        path = _download(str(source), WEIGHTS)
    state = read_tensors(path / WEIGHTS if path.is_dir() else path)
    state = {key.removeprefix("bert."): value for key, value in state.items()}
    bert = model.language.bert
    own, table = bert.state_dict(), "embeddings.position_embeddings.weight"
    if table in state:  # BERT has 512 positions; ours may have fewer
        state[table] = state[table][: len(own[table])]
    fit(bert, {key: value for key, value in state.items() if key in own}, path)
    for number, stage in enumerate(model.tower, start=model.language.num_layers):
        prefix = f"encoder.layer.{number}."
        layer = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if layer and isinstance(stage.text, TextLayer):
            fit(stage.text.get_submodule("layer"), layer, path)


def start_vision(model: GLIP, source: str | Path) -> None:
    """Start from the ImageNet weights of a timm Swin; the norms of the outputs stay as they are.

    ``source`` is a ``model.safetensors`` or ``.pth`` in timm's layout, a folder with the first, or a timm model name.
    """
    path = Path(source)
    file = path / WEIGHTS if path.is_dir() else path
    weights = from_timm(read_tensors(file) if file.is_file() else timm_weights(str(source)))
    norms = {key: value for key, value in model.vision.state_dict().items() if key.startswith("norms.")}
    fit(model.vision, {**weights, **norms}, path)


class _WithoutNormal(TorchFunctionMode):
    """Leaves out normal initial values: on the meta device they are nothing, but load torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.endswith("normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs or {})


# ---- tensors by name


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash (hex) of names and values. Tuned tasks refer to their model by it, so it must never change."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + b"\0")
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_fingerprint(model: GLIP) -> str:
    """The fingerprint of a model's weights; an exported model states that of the weights it was made of."""
    return model.fingerprint or weights_fingerprint(model.state_dict())


def fit(module: torch.nn.Module, state: State, path: Path) -> None:
    """Load a state dict that must match name by name and shape by shape; ``path`` is named in the error."""
    check_fit(module.state_dict(), state, repr(str(path)))
    module.load_state_dict(state)


def check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a state dict whose names or shapes are not the expected ones."""
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"extra {key}" for key in state if key not in expected]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(f"weights {source} are not of this model: {shown}: give its own config and weights")


def read_tensors(path: Path) -> State:
    """The tensors of a ``.safetensors`` or a ``.pth``, without the wrappers of training checkpoints."""
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} does not exist: check the path")
    packed = list[zipfile.ZipInfo]()
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # of a broken one, or none, torch says what is wrong
        packed = archive.infolist()
    _refuse_inflated(path, sum(part.file_size for part in packed))
    try:
        safe = path.suffix == ".safetensors"
        tree = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes torch raise almost anything
        raise CheckpointError(f"{str(path)!r} cannot be read: {_reading_problem(path, error)}") from None
    for wrapper in ("model", "state_dict"):
        tree = tree.get(wrapper, tree) if isinstance(tree, Mapping) else tree
    tensors = isinstance(tree, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tree.items())
    if not tensors:
        raise CheckpointError(f"{str(path)!r} holds no state dict (tensors by name): give a checkpoint of a model")
    _refuse_inflated(path, sum(value.numel() * value.element_size() for value in tree.values()))
    return dict(tree)


def _refuse_inflated(path: Path, held: int) -> None:
    """Refuse to fill the memory from a small file: compressed, or with one number repeated as a large tensor."""
    if held > 2 * path.stat().st_size:  # tensors may be stored once under two names
        raise CheckpointError(
            f"{str(path)!r} has {path.stat().st_size:,} bytes, its tensors {held:,}: do not use it, or save the "
            "state dict again with contiguous tensors"
        )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a ``.safetensors`` file, whole or not at all."""
    with atomic_path(path) as file:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, file, metadata)
        file.chmod(0o644)  # safetensors lets only its owner read it


def _reading_problem(path: Path, error: Exception) -> str:
    if path.suffix == ".pt2":
        return f"it is {_PROGRAM}: give the model that it was made of"
    if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
        return "it holds Python objects beside tensors, which are never run: save its state dict alone"
    with path.open("rb") as file:
        known = path.suffix == ".safetensors" or file.read(8).startswith((b"PK", b"\x80"))
    if known:
        return f"the file ends early or is broken ({path.stat().st_size:,} bytes): copy or download it again"
    return "it is no checkpoint (neither a .pth of torch nor .safetensors): check the path"


def _dequantized(state: State) -> State:
    """Weights in float32, matrices that were stored as int8 rows included."""
    for key in [key for key in state if key.endswith(_ROWS) and key.removesuffix(_ROWS) + _SCALES in state]:
        name = key.removesuffix(_ROWS)
        state[name] = state.pop(key).float() * state.pop(name + _SCALES).float()[:, None]
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


# ---- names, paths and configs


def find_model(name_or_path: str | Path) -> Path:
    """The folder or file meant by a path, or by a public name (downloaded and cached by huggingface_hub)."""
    path, name = Path(name_or_path), str(name_or_path)
    if path.exists():
        return path
    if name == BUNDLED:
        return ASSETS / BUNDLED
    if name in RELEASED:
        return _download(MIRROR, RELEASED[name])
    known = f"give one of {', '.join(list_pretrained())}, a model folder, or a .pth file"
    is_path = path.suffix or path.is_absolute()
    problem = "does not exist: check the path" if is_path else f"is not known, and no such path exists: {known}"
    raise CheckpointError(f"model {name!r} {problem}")


def cache_folder() -> Path:
    """Where downloaded weights are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _download(repository: str, file: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    url = hf_hub_url(repository, file)
    if not url.startswith("https://"):
        raise CheckpointError(f"{url!r} is no https address: set HF_ENDPOINT to one, or unset it")
    try:
        stated = get_hf_file_metadata(url)
        print(f"downloading {file} ({(stated.size or 0) / 1e6:.0f} MB) from {repository}", file=sys.stderr)
        path = Path(hf_hub_download(repository, file))  # its hash is checked, nothing in it runs  # nosec B615
    except Exception as error:  # errors of the hub, requests or httpx, depending on the version
        raise CheckpointError(
            f"{file} could not be downloaded ({type(error).__name__}): download {url}{details_of(file)} on a machine "
            "with network and pass its path instead of the name (docs/models.md)"
        ) from None
    found = sha256(path)
    if _SHA256.fullmatch(stated.etag or "") and found != stated.etag:  # which the hub states of large files
        path.resolve().unlink()  # of the cache only the link is left, which counts as missing
        raise CheckpointError(f"{file} from {repository} has sha256 {found}, not {stated.etag}: download it again")
    return path


def _read_config(folder: Path) -> ModelConfig:
    file, wanted = folder / CONFIG, "give a folder written by save_pretrained"
    is_program = (folder / f"{IMAGE}.pt2").is_file()
    if is_program or not file.is_file():
        problem = f"holds {_PROGRAM}" if is_program else f"has no {CONFIG}"
        raise CheckpointError(f"folder {str(folder)!r} {problem}: {wanted}")
    return parse_json(ModelConfig, file.read_bytes(), at=str(file), error=CheckpointError)


def _read_foreign(path: Path, name: str) -> tuple[ModelConfig, State]:
    """The config and the renamed weights of a checkpoint of the release or of mmdetection."""
    if name not in RELEASED:  # which was checked when it was downloaded
        check_published(path)
    state = read_tensors(path)
    try:
        renamed = from_foreign(state)
        return infer_config(renamed, name), renamed
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(path)!r} is not a GLIP checkpoint of the 2022 release or of mmdetection ({error}; its first key is "
            f"{next(iter(state), None)!r}): give such a checkpoint, or a model folder instead of the file in it"
        ) from None
