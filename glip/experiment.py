"""An experiment (model, data, training run) and its YAML files.

A file may name one parent with ``extends:`` (maps merge, lists replace) and any value may be overridden with
``key.path=value``. Unknown keys and wrong values are errors before anything is loaded.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from glip.config import DataConfig, ModelConfig, TrainConfig
from glip.errors import ConfigError
from glip.files import refuse_special
from glip.schema import checked, did_you_mean, parse


@checked
class Experiment:
    """A whole training: the model, its data, its run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def read_tree(path: str | Path, overrides: Sequence[str] = (), *, children: tuple[Path, ...] = ()) -> dict[Any, Any]:
    """The plain maps of a config with its parents merged in and ``key.path=value`` texts set; the values are YAML.

    Raises:
        ConfigError: missing file, broken YAML, an override of another form, or files that extend each other.
    """
    file = find_config(path)
    if file in children:
        raise ConfigError(f"{file}: extends itself, by way of {children[-1]}: remove one of the two lines")
    tree = parse(dict[str, Any], read_yaml(file) or {}, at=str(file))
    parent = tree.pop("extends", None)
    if parent is not None:
        beside = file.parent / str(parent)
        tree = merge(read_tree(beside if beside.is_file() else str(parent), children=(*children, file)), tree)
    for item in overrides:
        keys, separator, value = item.partition("=")
        *parents, key = keys.strip().split(".")
        if not separator or "" in (*parents, key):
            raise ConfigError(f"override {item!r}: give key.path=value, such as train.steps=100")
        inner = tree
        for name in parents:  # where a value stands it is replaced by a map, which the schema then refuses
            inner[name] = inner[name] if isinstance(inner.get(name), dict) else {}
            inner = inner[name]
        inner[key] = _parse_yaml(value, item)
    return tree


def find_config(path: str | Path) -> Path:
    """The YAML file meant by a path, or by a name such as ``glip_t`` or ``pretrain/nano`` of the installed configs."""
    given = Path(path)
    if given.is_file():
        return given
    name = str(path).removesuffix(".yaml")
    named, known = config_folder() / f"{name}.yaml", list_configs()
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"config {str(path)!r}: no such file{hint}. Give a YAML file or one of: {', '.join(known)}")
    return named


def list_configs() -> list[str]:
    """The names of the installed configs."""
    folder = config_folder()
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def config_folder() -> Path:
    """Where the YAML files are: beside the code in a wheel, at the top level in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain maps and lists, ready for JSON or YAML."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def to_yaml(config: Any) -> str:
    """A config, or its plain maps, as YAML text, in the order of its fields."""
    return yaml.safe_dump(config if isinstance(config, dict) else to_dict(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: not YAML in UTF-8.
    """
    refuse_special(path)
    return _parse_yaml(path.read_bytes(), str(path))


def merge(base: dict[Any, Any], over: dict[Any, Any]) -> dict[Any, Any]:
    """Plain maps in which ``over`` replaces the values of ``base``; maps merge, lists are replaced."""
    merged = dict(base)
    for key, value in over.items():
        both_maps = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both_maps else value
    return merged


_MOST = 1_000_000  # values of a YAML file


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml where it is there
    """YAML 1.2's numbers: PyYAML reads 1e-4 as text; and its unique keys: of two alike PyYAML keeps the last."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called with each map; keys that it takes over from another (<<) stand before it in the file."""
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.start_mark.index >= node.start_mark.index:
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add((key.tag, key.value))
        super().flatten_mapping(node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
for _rules in _Loader.yaml_implicit_resolvers.values():  # dates are texts, as in JSON
    _rules[:] = [rule for rule in _rules if rule[0] != "tag:yaml.org,2002:timestamp"]


def _parse_yaml(text: str | bytes, where: str) -> Any:
    try:
        return _counted(yaml.load(text, _Loader))  # a subclass of SafeLoader: builds plain values only  # nosec B506
    except Exception as error:  # on tags with wrong values the library raises anything: KeyError, AttributeError...
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{where[:200]}: not valid YAML: {problem[:300]}") from None


def _counted(tree: Any) -> Any:
    """The values, unless aliases (``*name``) make them endless or millions out of a few bytes."""
    waiting, count = [tree], 0
    while waiting:
        value = waiting.pop()
        inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        waiting += inside if isinstance(value, dict | list) else ()
        count += 1
        if count > _MOST:
            raise ConfigError(f"more than {_MOST:,} values, or one that holds itself")
    return tree
