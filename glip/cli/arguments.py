"""The arguments of every verb; imports nothing heavy, so that ``glip --help`` is quick.

Flags of a verb's own settings are made from its options dataclass in ``config.py``: name, type, default and help text
stand there once. Experiment configs take ``key.path=value`` instead.
"""

import argparse
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from glip.errors import ConfigError
from glip.schema import parse

T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser, kind: type, title: str = "", leave_out: Sequence[str] = ()) -> None:
    """Add a flag for each field of an options dataclass: ``min_side`` becomes ``--min-side N``.

    A field that is true by default also gets ``--no-NAME``. What is given is read back by ``read_options``.

    Args:
        parser: a verb's parser.
        kind: a dataclass of ``config.py``.
        title: heading of the group of flags.
        leave_out: fields that get no flag of their own.
    """
    group = parser.add_argument_group(title or str(kind.__doc__).splitlines()[0].rstrip(".").lower())
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__  # type: ignore[attr-defined]
    for name, field in fields.items():
        if name not in leave_out:
            _add_option(group, name, field)


def read_options(kind: type[T], args: argparse.Namespace, **more: Any) -> T:
    """The options dataclass that the flags give; ``more`` are fields without a flag.

    Raises:
        ConfigError: a value out of range, in one sentence.
    """
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__  # type: ignore[attr-defined]
    given = {name: getattr(args, name) for name in fields if getattr(args, name, None) is not None}
    try:
        return parse(kind, {**given, **more})
    except ConfigError as error:
        name, separator, rest = str(error).partition(":")
        raise ConfigError(f"--{name.replace('_', '-')}{separator}{rest}") from None


def _add_option(group: Any, name: str, field: FieldInfo) -> None:
    kind, help = _plain(field.annotation), field.description or name.replace("_", " ")
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        how: Any = argparse.BooleanOptionalAction if field.default else "store_true"
        group.add_argument(flag, action=how, default=None, help=help + (" (default: yes)" if field.default else ""))
        return
    if "default:" not in help and field.default not in (None, ()):
        help += f" (default: {field.default})"
    choices = [str(choice) for choice in typing.get_args(kind)] if typing.get_origin(kind) is typing.Literal else None
    more: dict[str, Any] = {"choices": choices} if choices else {"type": kind, "metavar": _METAVARS.get(kind, "TEXT")}
    if typing.get_origin(kind) is tuple:  # may be repeated
        more |= {"type": typing.get_args(kind)[0], "action": "append"}
    group.add_argument(flag, dest=name, default=None, help=help.replace("%", "%%"), **more)


_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _plain(kind: Any) -> Any:
    """The type without Annotated and None."""
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    members = [one for one in typing.get_args(kind) if one is not type(None)]
    return _plain(members[0]) if type(None) in typing.get_args(kind) else kind
