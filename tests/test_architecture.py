"""The laws of the house, read off the source: floors, doors, sizes, names, the public surface."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import glip

PACKAGE = Path(glip.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
# Floor 0 has an order: each imports only those before it.
GROUND = (
    "errors.py",
    "shapes.py",
    "schema.py",
    "files.py",
    "signals.py",
    "text/phrases.py",
    "text/prompt.py",
    "structures.py",
    "config.py",
    "adaptation.py",
    "experiment.py",
)
FLOORS = {
    "lettering": 1,
    "text": 1,
    "geometry": 1,
    "model": 2,
    "loss": 2,
    "processor": 2,
    "data": 3,
    "encoded": 3,
    "postprocess": 3,
    "detector": 4,
    "visualize": 4,
    "train": 5,
    "evaluate": 5,
    "pseudo": 5,
    "recipes": 6,
    "cli": 7,
    "__main__": 8,
}
DOORS = {
    "timm": ("model/vision.py",),
    "transformers": ("model/language.py", "text/tokens.py"),
    "tokenizers": ("text/tokens.py",),
    "spacy": ("text/phrases.py",),
    "pycocotools": ("evaluate/coco.py",),
    "lvis": ("evaluate/lvis.py",),
    "cv2": (),
    "yaml": ("experiment.py",),
    "pydantic": ("schema.py", "config.py", "cli/arguments.py"),
    "huggingface_hub": ("model/weights.py",),
    "safetensors": ("model/weights.py", "model/adapt.py"),
    "torchvision": ("geometry/boxes.py", "loss.py", "model/deform.py", "model/vision.py", "data/transforms.py"),
    "ray": ("pseudo/run.py",),
    "filelock": ("files.py",),
    "pyarrow": ("pseudo/store.py",),
    "imagehash": ("pseudo/filters.py",),
    "tensorboard": ("train/log.py",),
    "torch.utils.tensorboard": ("train/log.py",),
    "matplotlib": ("evaluate/figures.py", "pseudo/report.py"),
}
READS_CONFIG = {
    "data/caption.py",
    "data/catalog.py",
    "data/loader.py",
    "data/mixture.py",
    "model/glip.py",
    "model/release.py",
    "model/weights.py",
    "postprocess.py",
    "processor.py",
}
BANNED = {"utils", "util", "misc", "helpers", "helper", "common", "base", "manager"}
PUBLIC = {
    "Detector",
    "Detections",
    "Prompt",
    "GLIP",
    "Processor",
    "Criterion",
    "ModelConfig",
    "load_config",
    "list_pretrained",
    "__version__",
}
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    """The modules that a line imports, with the names it takes from them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imports_in(module: ast.Module) -> tuple[str, ...]:
    """Every module that a source imports, anywhere in it: also inside a function, also for type checking only."""
    return tuple(name for node in ast.walk(module) for name in imported(node))


@cache
def imports(file: str) -> tuple[str, ...]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}:{node.lineno}: a relative import; write it from glip"
    return imports_in(tree(file))


def own_files(file: str) -> set[str]:
    """The files of the package that a file imports."""
    names = {name.removeprefix("glip.").replace(".", "/") for name in imports(file) if name.startswith("glip.")}
    return {f"{name}.py" for name in names if f"{name}.py" in FILES}


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Files that import one another in a circle, the first also last; [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def floor(file: str) -> int:
    return 0 if file in GROUND else FLOORS[room(file)]


def functions(file: str) -> Iterator[Function]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, FUNCTIONS))


def depth(node: ast.AST) -> int:
    """How deep blocks nest below a node; an elif is no level, an inner function starts anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


PARTS = {file: own_files(file) for file in FILES if file != "__init__.py"}


def test_rooms_import_lower_floors_only():
    assert {room(file) for file in PARTS if file not in GROUND} <= set(FLOORS), "give each room a floor"
    wrong = [
        f"{file} imports {other}, which is not below it"
        for file, others in PARTS.items()
        for other in others
        if file not in GROUND and room(file) != room(other) and floor(other) >= floor(file)
    ]
    assert not wrong


def test_floor_zero_is_ordered():
    for place, file in enumerate(GROUND):
        assert own_files(file) <= set(GROUND[:place]), file


def test_no_file_imports_itself_through_others():
    assert not find_circle(PARTS)


def test_every_import_that_closes_a_circle_is_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not find_circle({"a": {"b", "c"}, "b": {"c"}})
    for file, others in PARTS.items():
        for other in others:
            assert find_circle(PARTS | {other: PARTS[other] | {file}}), f"{other} -> {file}"


@pytest.mark.parametrize(
    "source",
    [
        "import glip.a",
        "from glip import a",
        "def f():\n    from glip.a import b",
        "if TYPE_CHECKING:\n    import glip.a",
    ],
)
def test_late_imports_and_imports_for_types_count(source):
    assert "glip.a" in imports_in(ast.parse(source))


@pytest.mark.parametrize("door", DOORS)
def test_doors(door):
    used = {file for file in FILES for name in imports(file) if name == door or name.startswith(door + ".")}
    strangers = {file for file in used if not file.startswith(DOORS[door] or ("none",))}
    assert not strangers, f"{door} may be imported by {DOORS[door] or 'nothing'} only"


def test_config_stops_at_the_builder():
    readers = {file for file in FILES if own_files(file) & {"config.py", "experiment.py"}}
    low = {file for file in readers - {"__init__.py"} if 0 < floor(file) < 4}
    assert low <= READS_CONFIG


def test_files_are_short():
    lines = {file: len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert not {file: count for file, count in lines.items() if count > 400}


def test_functions_are_small_and_level():
    problems: list[str] = []
    for file in FILES:
        for function in functions(file):
            problems += [f"{file}:{function.lineno} {function.name} {problem}" for problem in objections(function)]
    assert not problems


def objections(function: Function) -> Iterator[str]:
    assert function.end_lineno is not None
    length = function.end_lineno - function.lineno + 1
    own = function.args
    names = [a.arg for a in [*own.posonlyargs, *own.args, *own.kwonlyargs] if a.arg not in ("self", "cls")]
    if length > 60:
        yield f"has {length} lines"
    if len(names) > 8:
        yield f"has {len(names)} arguments"
    if depth(function) > 3:
        yield f"nests {depth(function)} deep"


def test_an_elif_is_no_level():
    nested = "def f():\n if a:\n  pass\n elif b:\n  pass\n elif c:\n  for x in y:\n   pass\n"
    assert depth(ast.parse(nested).body[0]) == 2
    assert depth(ast.parse("def f():\n if a:\n  pass\n else:\n  if b:\n   pass\n  x = 1\n").body[0]) == 2


def test_no_name_says_nothing():
    for file in FILES:
        assert not BANNED & set(file.removesuffix(".py").replace("/", "_").split("_")), file
        for node in ast.walk(tree(file)):
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                words = {part.lower() for part in node.name.strip("_").split("_")}
                assert not BANNED & words, f"{file}:{node.lineno} {node.name}"


def test_room_init_files_are_empty():
    for file in FILES:
        if file.endswith("/__init__.py"):
            assert (PACKAGE / file).read_text() == "", file


def test_every_room_is_packaged():
    rooms = {"glip" + "".join(f".{part}" for part in Path(file).parent.parts) for file in FILES}
    lines = (PACKAGE.parent / "setup.cfg").read_text(encoding="utf-8").split("packages =")[1].split("install_requires")
    assert rooms <= {line.strip() for line in lines[0].splitlines()}


def test_public_names():
    assert set(glip.__all__) == PUBLIC
    assert len(glip.__all__) == len(PUBLIC) == 10


def undocumented(file: str) -> Iterator[str]:
    """The module, its public functions and classes, and their public methods (``forward`` says it in its shapes)."""
    if not ast.get_docstring(tree(file)):
        yield file
    for node in tree(file).body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if any(isinstance(decorator, ast.Name) and decorator.id == "overload" for decorator in node.decorator_list):
            continue
        methods = [method for method in node.body if isinstance(method, FUNCTIONS)]
        named = [method for method in methods if method.name != "forward" and not method.name.startswith("_")]
        own = named if isinstance(node, ast.ClassDef) else []
        yield from (f"{file}:{part.lineno} {part.name}" for part in [node, *own] if not ast.get_docstring(part))


def test_public_things_have_docstrings():
    assert not [place for file in FILES if not file.endswith("/__init__.py") for place in undocumented(file)]


def test_the_package_knows_nothing_of_tools_and_tests():
    for file in FILES:
        assert not any(name.split(".")[0] in ("tools", "tests") for name in imports(file)), file
