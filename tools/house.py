"""Measures the code against its budgets: lines for each room, `raise`, long functions, names defined twice, types.

    python tools/house.py

`tests/test_architecture.py` holds the budgets; a change that needs more raises the budget of its room here, in the same
commit, with the reason in docs/decisions.md.
"""

import ast
import inspect
import statistics
import sys
import tokenize
import typing
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "glip"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef
TOTAL, RAISES, TYPES, TESTS, TOOLS = 12_500, 8.0, 8, 12_000, 1_500


def package_files() -> list[str]:
    """The package's Python files, relative to it."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room_of(file: str) -> str:
    """The room of a file: its folder, or its own name at the top level."""
    return file.split("/")[0].removesuffix(".py")


@cache
def tree_of(file: str) -> ast.Module:
    """The syntax tree of a file of the package."""
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


@cache
def lines_of(path: Path) -> int:
    """How many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions_of(file: str) -> Iterator[Function]:
    """Every function and method of a file."""
    return (node for node in ast.walk(tree_of(file)) if isinstance(node, FUNCTIONS))


def length_of(function: Function) -> int:
    """A function's lines, signature and docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def lines_by_room() -> dict[str, int]:
    """Lines of each room."""
    found: dict[str, int] = defaultdict(int)
    for file in package_files():
        found[room_of(file)] += lines_of(PACKAGE / file)
    return dict(found)


def count_raises() -> int:
    """`raise` statements, and calls of functions that do nothing but raise."""
    raising = {
        node.name
        for file in package_files()
        for node in functions_of(file)
        if all(isinstance(part, ast.Raise | ast.Expr) for part in node.body) and isinstance(node.body[-1], ast.Raise)
    }
    nodes = [node for file in package_files() for node in ast.walk(tree_of(file))]
    calls = sum(isinstance(node, ast.Call) and getattr(node.func, "id", "") in raising for node in nodes)
    return sum(isinstance(node, ast.Raise) for node in nodes) + calls


def names_defined_twice() -> dict[str, list[str]]:
    """Public and private top-level functions and classes that several files define."""
    homes: dict[str, list[str]] = defaultdict(list)
    for file in package_files():
        for node in tree_of(file).body:
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                homes[node.name].append(file)
    return {name: files for name, files in homes.items() if len(files) > 1 and not name.startswith("__")}


def comment_share() -> float:
    """The share of the package's lines that have a comment."""
    comments = 0
    for file in package_files():
        with (PACKAGE / file).open("rb") as source:
            comments += sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(source.readline))
    return comments / sum(lines_by_room().values())


def inference_types() -> dict[str, set[str]]:
    """The package's types in the signatures of all functions that one detection calls, and where each is met.

    Network layers do not count: they take and give tensors.
    """
    import torch
    from PIL import Image

    from glip.detector import Detector

    detector = Detector.from_pretrained("glip-nano", device="cpu")
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            codes.add(frame.f_code)

    sys.setprofile(note)
    detector(Image.new("RGB", (64, 64)), ["person", "dog"])
    sys.setprofile(None)
    found: dict[str, set[str]] = defaultdict(set)
    for function in _functions_with(codes):
        for hint in typing.get_type_hints(function).values():
            for kind in _classes_in(hint):
                if kind.__module__.startswith("glip.") and not issubclass(kind, torch.nn.Module):
                    found[kind.__name__].add(function.__qualname__)
    return found


def _functions_with(codes: set[CodeType]) -> Iterator[Any]:
    for module in [module for name, module in sys.modules.items() if name.startswith("glip")]:
        owners: list[Any] = [module, *(one for one in vars(module).values() if inspect.isclass(one))]
        for owner in owners:
            if getattr(owner, "__module__", owner.__name__) == module.__name__ or owner is module:
                for one in vars(owner).values():
                    function = inspect.unwrap(getattr(one, "fget", getattr(one, "func", getattr(one, "__func__", one))))
                    if inspect.isfunction(function) and function.__code__ in codes:
                        yield function


def _classes_in(hint: Any) -> Iterator[type]:
    if inspect.isclass(hint) and not typing.get_args(hint):
        yield hint
    for part in typing.get_args(hint):
        yield from _classes_in(part)


def report() -> Iterator[str]:
    """The figures beside their bars, as lines."""
    rooms, lengths = lines_by_room(), [length_of(node) for file in package_files() for node in functions_of(file)]
    total = sum(rooms.values())
    for room, lines in sorted(rooms.items(), key=lambda item: -item[1]):
        yield f"{room:<16} {lines:>6} lines"
    yield f"glip/            {total:>6} lines (bar {TOTAL})"
    yield f"raise per 1,000  {1000 * count_raises() / total:>6.1f} (bar {RAISES:g})"
    median = statistics.median(lengths)
    yield f"functions        {len(lengths)}, median {median:g} lines, longest {max(lengths)} (bar 60)"
    yield f"longest file     {max(lines_of(PACKAGE / file) for file in package_files()):>6} lines (bar 400)"
    yield f"comments         {100 * comment_share():>6.1f} % of lines"
    for title, folder, bar in (("tests/", "tests", TESTS), ("tools/", "tools", TOOLS)):
        own = [path for path in (ROOT / folder).rglob("*.py") if "drawn_world" not in path.parts]
        yield f"{title:<16} {sum(map(lines_of, own)):>6} lines (bar {bar}, without the drawn world)"
    twice = names_defined_twice()
    listed = ", ".join(f"{name} ({len(files)})" for name, files in twice.items())
    yield f"defined twice    {len(twice)} names: {listed}"
    types = inference_types()
    yield f"inference types  {len(types)} (bar {TYPES}): {', '.join(sorted(types))}"


if __name__ == "__main__":
    print("\n".join(report()))
