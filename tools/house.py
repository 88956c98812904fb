"""Measures the code against its budgets: lines for each room, `raise`, long functions, names defined twice, types.

    python tools/house.py

`tests/test_architecture.py` holds the budgets; a change that needs more raises the budget of its room here, in the same
commit, with the reason in docs/decisions.md.
"""

import ast
import gc
import inspect
import re
import statistics
import sys
import typing
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "glip"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
Function = ast.FunctionDef | ast.AsyncFunctionDef

BUDGETS = {  # lines of each room
    "__init__": 60,
    "__main__": 10,
    "cli": 1_200,
    "config": 400,
    "console": 60,
    "data": 4_810,
    "detector": 400,
    "device": 80,
    "encoded": 120,
    "errors": 80,
    "evaluate": 3_380,
    "experiment": 160,
    "files": 310,
    "geometry": 250,
    "integrations": 2_070,
    "lettering": 250,
    "loss": 160,
    "model": 2_170,
    "options": 80,
    "postprocess": 160,
    "processor": 150,
    "provenance": 140,
    "pseudo": 1_340,
    "recipes": 1_680,
    "results": 220,
    "schema": 160,
    "shapes": 30,
    "signals": 60,
    "structures": 180,
    "text": 930,
    "train": 1_890,
    "visualize": 280,
}
TOTAL, RAISES, TYPES = 23_140, 9.5, 8  # lines, `raise` per 1,000 lines, types met in one inference
_RAISE = "what can go? If the lines earn their place, raise BUDGETS and TOTAL in tools/house.py in the same change"
FUNCTION, FILE, ARGUMENTS, DEPTH = 60, 400, 8, 3
TESTS, TOOLS = 12_000, 1_500  # lines; reported, not held
INTERFACE = {"run"}  # names that several files define because they are called alike: every verb of the command line


@dataclass(frozen=True)
class Figures:
    """What is measured. ``functions`` and ``files`` give lines by place, ``twice`` the files that define a name."""

    rooms: Mapping[str, int]
    functions: Mapping[str, int]
    files: Mapping[str, int]
    raises: int
    twice: Mapping[str, list[str]]
    types: Mapping[str, set[str]]

    @property
    def total(self) -> int:
        """Lines of the package."""
        return sum(self.rooms.values())

    @property
    def raise_rate(self) -> float:
        """`raise` per 1,000 lines."""
        return 1000 * self.raises / self.total


def measure() -> Figures:
    """The figures of the package as it is."""
    rooms: Counter[str] = Counter()
    files, functions, homes = dict[str, int](), dict[str, int](), defaultdict[str, list[str]](list)
    nodes = [node for file in package_files() for node in ast.walk(tree_of(file))]
    for file in package_files():
        files[file] = lines_of(PACKAGE / file)
        rooms[room_of(file)] += files[file]
        functions |= {f"{file}:{one.lineno} {one.name}": length_of(one) for one in functions_of(file)}
        names = [node.name for node in tree_of(file).body if isinstance(node, (*FUNCTIONS, ast.ClassDef))]
        for name in dict.fromkeys(names):
            homes[name].append(file)
    # A call of a function that does nothing but raise counts like a `raise`.
    raising = {
        node.name
        for node in nodes
        if isinstance(node, FUNCTIONS)
        and isinstance(node.body[-1], ast.Raise)
        and all(isinstance(part, ast.Raise | ast.Expr) for part in node.body)
    }
    calls = (node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") in raising)
    raises = sum(isinstance(node, ast.Raise) for node in nodes) + sum(1 for _ in calls)
    twice = {name: places for name, places in homes.items() if len(places) > 1 and not name.startswith("__")}
    return Figures(rooms, functions, files, raises, twice, inference_types())


def broken_bars(figures: Figures) -> Iterator[str]:
    """A sentence for each bar that the figures do not keep."""
    for room, lines in figures.rooms.items():
        if lines > BUDGETS.get(room, 0):
            yield f"room {room} has {lines} lines, its budget is {BUDGETS.get(room, 0)}: {_RAISE}"
    if figures.total > TOTAL:
        yield f"the package has {figures.total} lines, the bar is {TOTAL}: {_RAISE}"
    if figures.raise_rate > RAISES:
        yield f"{figures.raise_rate:.1f} `raise` per 1,000 lines, the bar is {RAISES}"
    for kind, found, bar in (("function", figures.functions, FUNCTION), ("file", figures.files, FILE)):
        long = {place: lines for place, lines in found.items() if lines > bar}
        yield from (f"{kind} {place} has {lines} lines, the bar is {bar}: divide it" for place, lines in long.items())
    for name in sorted(figures.twice.keys() - INTERFACE):
        yield f"{name} is defined in {', '.join(figures.twice[name])}"
    if len(figures.types) > TYPES:
        yield f"{len(figures.types)} types are met in one inference, the bar is {TYPES}: {', '.join(figures.types)}"


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


def lines_of(path: Path) -> int:
    """How many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions_of(file: str) -> Iterator[Function]:
    """Every function and method of a file."""
    return (node for node in ast.walk(tree_of(file)) if isinstance(node, FUNCTIONS))


def length_of(function: Function) -> int:
    """A function's lines, signature and docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def arguments_of(function: Function) -> list[str]:
    """A function's arguments without self and cls."""
    own = function.args
    names = [argument.arg for argument in [*own.posonlyargs, *own.args, *own.kwonlyargs]]
    return [name for name in names if name not in ("self", "cls")]


def depth_of(node: ast.AST) -> int:
    """How deep blocks nest below a node; an elif is no level, and an inner function is counted apart."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth_of(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


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
    for function in (one for one in gc.get_objects() if type(one) is FunctionType and one.__code__ in codes):
        for hint in typing.get_type_hints(function).values():
            for kind in classes_in(hint):
                if kind.__module__.startswith("glip.") and not issubclass(kind, torch.nn.Module):
                    found[kind.__name__].add(function.__qualname__)
    return found


def classes_in(hint: Any) -> Iterator[type]:
    """The classes in an annotation such as ``list[Phrase] | None``."""
    parts = typing.get_args(hint)
    if inspect.isclass(hint) and not parts:
        yield hint
    for part in parts:
        yield from classes_in(part)


def report() -> Iterator[str]:
    """The figures beside their bars, as lines."""
    figures = measure()
    for room, lines in sorted(figures.rooms.items(), key=lambda item: -item[1]):
        yield f"{room:<16} {lines:>6} lines (budget {BUDGETS.get(room, 0)})"
    yield f"glip/            {figures.total:>6} lines (bar {TOTAL})"
    yield f"raise per 1,000  {figures.raise_rate:>6.1f} (bar {RAISES:g})"
    lengths = figures.functions.values()
    median, longest = statistics.median(lengths), max(lengths)
    yield f"functions        {len(lengths)}, median {median:g} lines, longest {longest} (bar {FUNCTION})"
    yield f"longest file     {max(figures.files.values()):>6} lines (bar {FILE})"
    comments = sum(len(re.findall(r"(?m)(?:^|  )# ", (PACKAGE / file).read_text())) for file in figures.files)
    yield f"comments         {100 * comments / figures.total:>6.1f} % of lines"
    for folder, bar in (("tests/", TESTS), ("tools/", TOOLS)):
        own = [path for path in (ROOT / folder).rglob("*.py") if "drawn_world" not in path.parts]
        yield f"{folder:<16} {sum(map(lines_of, own)):>6} lines (bar {bar}, without the drawn world)"
    listed = ", ".join(f"{name} ({len(files)})" for name, files in figures.twice.items())
    yield f"defined twice    {len(figures.twice)} names: {listed}"
    yield f"inference types  {len(figures.types)} (bar {TYPES}): {', '.join(sorted(figures.types))}"
    yield from (f"BROKEN: {problem}" for problem in broken_bars(figures))


if __name__ == "__main__":
    print("\n".join(report()))
