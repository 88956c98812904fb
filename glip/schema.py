"""Plain values (YAML, JSON, command line) into typed dataclasses, checked once; errors in one sentence.

Types, choices and ranges stand in the dataclasses (pydantic's, see ``config.py``). ``parse`` is the one door: it names
the key, the value, what is allowed and, for a misspelled word, what was probably meant.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, overload

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from glip.errors import ConfigError, GlipError

T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_adapter = cache(TypeAdapter)
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
Corners = Annotated[tuple[Annotated[float, Field(gt=-1e9, lt=1e9)], ...], Field(min_length=4, max_length=4)]  # of a box
Edges = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2, max_length=2)]  # of a span of text
LARGEST = 2**53  # of a whole number; beyond it other programs, and floats, lose digits
_BOUNDS = {"ge": "{:g} or more", "gt": "more than {:g}", "le": "at most {:g}", "lt": "less than {:g}"}


@dataclass_transform(frozen_default=True, kw_only_default=True)
def checked(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass whose values are checked whenever one is made."""
    made: Any = dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)
    return typing.cast(type[T], made)


@overload
def parse(kind: type[T], value: Any, *, at: str = "", error: type[GlipError] = ConfigError) -> T: ...
@overload
def parse(kind: Any, value: Any, *, at: str = "", error: type[GlipError] = ConfigError) -> Any: ...
def parse(kind: Any, value: Any, *, at: str = "", error: type[GlipError] = ConfigError) -> Any:
    """Build a value of type ``kind``, usually a dataclass, from plain maps, lists and scalars.

    Args:
        kind: the type to build.
        value: what YAML, JSON or a caller gave.
        at: where the value stands, named in errors: a key such as ``train`` or a file.
        error: the kind of error to raise.

    Raises:
        GlipError: of the given kind, naming the first key that is wrong, its value and what is allowed.
    """
    try:
        text = json.dumps(value, default=_plain)
    except (RecursionError, ValueError, TypeError) as caught:  # nested too deep or in itself; a key that is no text
        raise error(f"{at or 'config'}: {caught}: give plain values") from None
    return parse_json(kind, text, at=at, error=error)


def _plain(value: Any) -> Any:
    """Scalars and arrays of NumPy and torch as numbers and lists; anything else as text, which errors can show."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def parse_json(kind: Any, text: str | bytes, *, at: str = "", error: type[GlipError] = ConfigError) -> Any:
    """The same from the text of a JSON file."""
    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as caught:
        raise error(_sentence(kind, caught.errors()[0], at)) from None


def allowed(field: FieldInfo | None, kind: Any) -> str:
    """What a field may hold, for errors, ``--help`` and ``glip config --explain``: its choices, or type and range."""
    inner, limits = bare_type(kind)
    limits += field.metadata if field else []
    most = next((limit.max_length for limit in limits if hasattr(limit, "max_length")), 0)
    least = next((limit.min_length for limit in limits if hasattr(limit, "min_length")), 0)
    span = str(most) if least == most else f"{least} to {most}"
    length = f" of {span}" if most else " that is not empty" if least else ""
    bounds = dict.fromkeys(
        text.format(getattr(limit, key))
        for limit in limits
        for key, text in _BOUNDS.items()
        if getattr(limit, key, LARGEST) != LARGEST
    )
    if typing.get_origin(inner) is Literal:
        said = "one of " + ", ".join(map(str, typing.get_args(inner)))
    elif typing.get_origin(inner) is tuple:
        said = f"a list{length}; each {allowed(None, typing.get_args(inner)[0])}"
    else:
        said = _KINDS.get(inner, "a map of keys") + length + " characters" * bool(most)
        said += f", {' and '.join(bounds)}" * bool(bounds)
    return f"{said}, or null" if type(None) in typing.get_args(kind) else said


def bare_type(kind: Any) -> tuple[Any, list[Any]]:
    """A type without Annotated and None, and the limits that Annotated gives."""
    limits: list[Any] = []
    while typing.get_origin(kind) in (typing.Annotated, typing.Union, types.UnionType):
        kind, *more = (one for one in typing.get_args(kind) if one is not type(None))
        limits += [limit for one in more if isinstance(one, FieldInfo) for limit in one.metadata]
    return kind, limits


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint at the known word that is most like a misspelled one; "" where none is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _sentence(kind: Any, problem: Any, at: str) -> str:
    loc, given = problem["loc"], problem["input"]
    owner, field, inner = _walk(kind, loc)
    key = at
    for part in loc:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [part.name for part in dataclasses.fields(owner)]
        return f"{key}: no such key{did_you_mean(str(loc[-1]), known)}. Known keys: {', '.join(known)}"
    if problem["type"] == "json_invalid":
        return f"{at}: not valid JSON ({problem['ctx']['error'][:80]})"
    if problem["type"] == "missing":
        return f"{key.rpartition('.')[0] or 'config'}: missing key {loc[-1]!r}"
    if problem["type"] == "value_error":
        return f"{key}.{problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    choices = [str(choice) for choice in typing.get_args(bare_type(inner)[0])]
    hint = did_you_mean(str(given), choices) if problem["type"] == "literal_error" else ""
    most = f" and at most {LARGEST:,}" if problem.get("ctx", {}).get("le") == LARGEST else ""
    return f"{key or 'config'}: got {_cut(given)}{hint}: give {allowed(field, inner)}{most}"


def _cut(given: Any) -> str:
    shown = repr(given)
    return shown if len(shown) < 200 else f"{shown[:150]}... ({len(shown):,} characters)"


def _walk(kind: Any, loc: Sequence[str | int]) -> tuple[Any, FieldInfo | None, Any]:
    """The dataclass that holds the last key of a path, that key's field, and its type."""
    owner, field = kind, None
    for part in loc:
        inner, _ = bare_type(kind)
        if typing.get_origin(inner) is dict:
            kind = typing.get_args(inner)[1]
        elif isinstance(part, int):
            kind, field = (typing.get_args(inner) or (Any,))[0], None
        elif dataclasses.is_dataclass(inner):
            owner = inner
            field = getattr(inner, "__pydantic_fields__", {}).get(part)
            kind = typing.get_type_hints(inner, include_extras=True).get(str(part), Any)
    return owner, field, kind
