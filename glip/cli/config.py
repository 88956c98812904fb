"""``glip config [NAME] [key=value ...]``: list the configs, print one with every key and value, or explain its keys."""

import argparse
import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Any

from glip.experiment import Experiment, find_config, list_configs, read_tree, to_yaml
from glip.schema import allowed
from glip.train.start import load_config


def run(args: argparse.Namespace) -> int:
    """Print the list, the experiment as YAML, or the explanations."""
    if args.config is None and not args.explain:
        for name in list_configs():
            if not read_tree(name).keys() <= {"model", "data", "train"}:
                continue  # a table of datasets or tasks
            summary = find_config(name).read_text(encoding="utf-8").partition("\n")[0]
            print(f"{name:<26} {summary.lstrip('# ')}")
        return 0
    experiment = load_config(args.config, args.overrides) if args.config else Experiment()
    print("\n".join(explain(experiment)) if args.explain else to_yaml(experiment).rstrip("\n"))
    return 0


def explain(config: Any, at: str = "") -> Iterator[str]:
    """A list item for each key: its value, its meaning and what it may be.

    Args:
        config: an options dataclass.
        at: the key that holds it.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    nested = []
    for name, field in type(config).__pydantic_fields__.items():
        key, value = f"{at}.{name}" if at else name, getattr(config, name)
        if dataclasses.is_dataclass(value):
            nested.append((key, value))
        else:
            shown = json.dumps(value, default=dataclasses.asdict)
            shown = shown if len(shown) < 60 else "..."
            yield f"- `{key}` = `{shown}`: {field.description or 'name'} ({allowed(field, hints[name])})"
    for key, value in nested:
        yield from ("", f"## {key}", "", str(type(value).__doc__).replace("``", "`"), "")
        yield from explain(value, key)
