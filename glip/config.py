"""The experiment as a tree of frozen dataclasses: read from YAML, extended, overridden, checked, explained.

A YAML file may name one parent with ``extends:`` (maps merge, lists replace) and any value may be overridden with
``key.path=value``. Unknown keys, wrong types and wrong choices are errors before anything is loaded. Layers never
see a config: ``build`` in model/glip.py hands them plain numbers.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

MAX_EXTENDS = 5


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image encoder. ``swin`` computes what the 2022 release computes; ``resnet`` is timm's, for small models."""

    kind: Literal["swin", "resnet"] = "swin"
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    drop_path: float = 0.2
    pretrained: str | None = None  # a timm model name or a local file, read when a training starts from nothing


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The text encoder, a BERT without pooler."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    vocabulary: int = 30522
    positions: int = 512
    dropout: float = 0.1
    pretrained: str | None = None  # a folder or file in BERT's layout, read when a training starts from nothing
    frozen_layers: int = 0  # the embeddings and that many first layers keep their weights; 0 trains everything
    bits: Literal[8, 32] = 32  # 8: the matrices are rounded to int8 rows before training and stored as such


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Feature pyramid, dynamic head and fusion."""

    channels: int = 256
    blocks: int = 6
    fusion: bool = True
    fusion_width: int = 2048
    fusion_heads: int = 8
    fusion_dropout: float = 0.1
    groups: int = 16
    drop_block: float = 0.3
    prompt_offsets: bool = False  # a learned offset per token position, added before fusion (prompt tuning)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How an image becomes the network's input; mean and std are in the channel order, on 0..255 values."""

    min_size: int = 800
    max_size: int = 1333
    channels: Literal["bgr", "rgb"] = "bgr"
    mean: tuple[float, ...] = (103.530, 116.280, 123.675)
    std: tuple[float, ...] = (57.375, 57.120, 58.395)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Defaults of decoding; each is also an argument of the Detector."""

    threshold: float = 0.5  # what a person is shown
    candidate_threshold: float = 0.05  # class score before centerness
    candidates_per_level: int = 1000
    nms: float = 0.6
    max_detections: int = 100
    inclusive: bool = False  # boxes end on their last pixel, as the release learned them: COCO results are wider by one
    aggregate: Literal["mean", "max", "power"] = "mean"  # token scores to phrase score


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build a model and to use it; stored in the checkpoint as config.json."""

    name: str = "glip-t"
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    max_tokens: int = 256
    trained_on: tuple[str, ...] = ()
    license: str = ""


Format = Literal["coco", "lvis", "mdetr", "flickr30k", "odvg", "silver", "captions", "labels", "label-studio", "world"]


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """Where a set lies and how it is written: an entry of ``datasets.yaml``, paths relative to the data root.

    For drawn images (format world) the last five fields say which.
    """

    format: Format | None = None  # None: told from the file itself
    annotations: str = ""  # a file, or a folder for flickr30k and for shards of captions
    images: tuple[str, ...] = ()  # folders, looked through in order
    names: str = ""  # odvg: the json of names by label; flickr30k: the list of image ids of the split
    prompts: str = ""  # a YAML of words to write around or instead of a name (ODinW's caption prompts)
    split: Literal["train", "seen", "novel"] = "train"
    captioned: float = 0.2
    sides: tuple[int, ...] = (200, 360)
    plain: bool = False
    count: int = 0  # different images; 0: as many as asked for


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(SetConfig):
    """One set of a mixture: an entry of ``datasets.yaml`` by its name, or given here in full."""

    name: str
    weight: float = 1.0
    short_side: tuple[int, ...] = ()  # overrides data.short_side
    flip: float = 0.5
    first: int = 0  # learn from the first so many samples only; 0: all
    soft: bool = False  # scores of pseudo-labels weigh their losses
    box_loss: bool = True  # its boxes also teach where boxes end, not only what is where
    held_out: tuple[str, ...] = ()  # names with one of these words are not asked for, nor their boxes learned


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on and how images and names are varied."""

    root: str | None = None  # else the environment variable GLIP_DATA
    train: tuple[DatasetConfig, ...] = ()
    validate: tuple[DatasetConfig, ...] = ()  # evaluated every train.validate_every steps
    replay: float = 0.0  # share of the images that come from the mixture of replay_from, against forgetting
    replay_from: str = ""  # a config, such as pretrain/nano
    crop: int = 0  # side of square crops in pixels; 0 keeps whole images
    short_side: tuple[int, ...] = (640, 800)  # drawn uniformly between the two
    colour: float = 0.0
    max_negatives: int = 85  # absent names in a caption at most
    full_vocabulary: float = 0.5  # probability that all names of a set are in the prompt (if they fit)
    borrow: float = 0.0  # probability that names of the other sets join as negatives (never one sharing a word)
    pack_captions: int = 0  # captions of other images beside the true one, at most (the paper: 19)
    workers: int = 0
    max_broken: float = 0.01  # share of unreadable images at which a run stops


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run: optimizer, schedule, checkpoints."""

    steps: int = 1000
    batch_size: int = 4  # images per step, of all processes together
    micro_batch: int = 0  # images at once in one process (gradients accumulate); 0: all of its share
    lr: float = 1e-4
    bert_lr: float = 1e-5  # of the language model
    text_lr: float = 1e-4  # of what changes the tokens in the tower; the release has the base rate here
    weight_decay: float = 0.05
    warmup: int = 500
    schedule: Literal["step", "cosine"] = "step"
    drops: tuple[float, ...] = (0.67, 0.89)  # shares of the run after which the rate falls to a tenth
    clip: float = 1.0
    frozen_stages: int = 0  # the image encoder's stem and that many stages keep their weights
    freeze_language: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, more time
    compile: bool = False  # torch.compile the image encoder and the tower
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun; fsdp shards what one GPU cannot hold
    ema: float = 0.0  # decay of the running mean of the weights, which is then what is evaluated and shipped
    wise_ft: float = 0.0  # share of the starting weights in the finished model, against forgetting
    max_bad_steps: int = 20  # steps in a row without finite losses and gradients, before the run stops
    seed: int = 0
    save_every: int = 500  # last.pt
    keep_every: int = 0  # also step-N.pt every so many steps; 0: never
    validate_every: int = 0
    validate_images: int = 200  # of each set at most, evenly spread over it; 0: all
    log_every: int = 20
    tensorboard: bool = False
    output: str = "runs/train"
    start: str | None = None  # a model to start from (its config holds where nothing is stated), else random weights


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole training: the model, its data, its run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stated: tuple[str, ...] = field(default=(), compare=False)  # keys of the model that were given: see train.start


class ConfigError(ValueError):
    """A config that cannot be read; the message names the key, the value and what is allowed."""


T = TypeVar("T")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment: a YAML file (a path, or a name under the installed configs) plus ``key.path=value``.

    Raises:
        ConfigError: missing file, broken YAML, unknown key, wrong type or choice.
    """
    tree = read_overrides(overrides, _read_tree(find_config(path), depth=0))
    tree["stated"] = _leaves(tree.get("model", {}), "model")
    return from_dict(Experiment, tree)


def read_overrides(overrides: Sequence[str], tree: dict[Any, Any] | None = None) -> dict[Any, Any]:
    """Plain maps with ``key.path=value`` texts set in them; the values are YAML.

    Raises:
        ConfigError: a text of another form.
    """
    found: dict[Any, Any] = {} if tree is None else tree
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            lacking = "key" if separator else "'='"
            raise ConfigError(f"override {item!r} is not key.path=value: no {lacking} in it: try train.steps=100")
        _set(found, key.strip().split("."), _parse_yaml(value, item))
    return found


def find_config(path: str | Path) -> Path:
    """The YAML file meant by a path, or by a name such as ``glip_t`` or ``pretrain/nano`` of the installed configs."""
    given = Path(path)
    if given.is_file():
        return given
    installed = config_folder()
    name = str(path).removesuffix(".yaml")
    named = installed / f"{name}.yaml"
    if named.is_file():
        return named
    known = sorted(str(p.relative_to(installed).with_suffix("")) for p in installed.rglob("*.yaml"))
    hint = _did_you_mean(name, known)
    raise ConfigError(f"config {str(path)!r}: no such file{hint}. Give a YAML file or one of: {', '.join(known)}")


def config_folder() -> Path:
    """Where the YAML files lie: beside the code in a wheel, at the top level in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def from_dict(kind: type[T], tree: Any, at: str = "") -> T:
    """Build a config dataclass from nested maps, checking every key and type.

    Raises:
        ConfigError: naming the path of the key, the value, and what is allowed.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{at or 'config'}: expected a map of keys, got {tree!r}")
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            dotted = f"{at}.{key}" if at else str(key)
            hint = _did_you_mean(str(key), list(hints))
            raise ConfigError(f"{dotted}: no such key{hint}. Known keys: {', '.join(hints)}")
    missing = [
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.name not in tree and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{at or 'config'}: missing key {missing[0]!r}")
    values = {key: convert(hints[key], value, f"{at}.{key}" if at else str(key)) for key, value in tree.items()}
    return kind(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain maps and lists, ready for JSON or YAML."""
    plain = dataclasses.asdict(config)
    return typing.cast(dict[str, Any], _listed(plain))


def to_yaml(config: Any) -> str:
    """A config, or its plain maps, as YAML text, in the order of its fields."""
    return yaml.safe_dump(config if isinstance(config, dict) else to_dict(config), sort_keys=False, allow_unicode=True)


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _leaves(tree: Any, at: str) -> list[str]:
    if not isinstance(tree, dict):
        return [at]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{at}.{key}")]


def _read_tree(path: Path, depth: int) -> dict[Any, Any]:
    if depth > MAX_EXTENDS:
        raise ConfigError(f"{path}: 'extends' goes deeper than {MAX_EXTENDS} files; flatten the chain")
    tree = read_yaml(path) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a map of keys, got {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    beside = path.parent / str(parent)
    return _merge(_read_tree(beside if beside.is_file() else find_config(str(parent)), depth + 1), tree)


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        ConfigError: not UTF-8, or not YAML.
    """
    try:
        return _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text: give a YAML file") from None


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def _merge(base: dict[Any, Any], over: dict[Any, Any]) -> dict[Any, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_maps = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_maps else value
    return merged


def _set(tree: dict[Any, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{'.'.join(keys)}: {key!r} is a value, not a map of keys")
    tree[keys[-1]] = value


def convert(kind: Any, value: Any, at: str) -> Any:
    """A plain value as a field of type ``kind``; ``at`` is the key that messages name."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type[Any], kind), value, at)
    if origin is Literal:
        return choice(typing.get_args(kind), value, at)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{at}: expected a list, got {value!r}")
        inner = typing.get_args(kind)[0]
        return tuple(convert(inner, item, f"{at}[{index}]") for index, item in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        inner = next(option for option in typing.get_args(kind) if option is not type(None))
        return None if value is None else convert(inner, value, at)
    return _scalar(kind, value, at)


def choice(choices: tuple[Any, ...], value: Any, at: str) -> Any:
    """A value that is one of ``choices``."""
    if value in choices and type(value) in {type(choice) for choice in choices}:
        return value
    hint = _did_you_mean(str(value), [str(choice) for choice in choices])
    raise ConfigError(f"{at}: {value!r} is not one of {', '.join(repr(choice) for choice in choices)}{hint}")


def _scalar(kind: type[Any], value: Any, at: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):  # PyYAML reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{at}: expected {kind.__name__}, got {value!r}")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
