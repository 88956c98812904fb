"""The laws of the house, read off the source: floors, doors, sizes, names, the public surface."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from graphlib import CycleError, TopologicalSorter

import house
import pytest
from house import FUNCTIONS, PACKAGE, Figures, Function, functions_of, room_of, tree_of

import glip

FILES = house.package_files()
# Floor 0 has an order: each imports only those before it.
GROUND = (
    "errors.py",
    "shapes.py",
    "schema.py",
    "files.py",
    "provenance.py",
    "signals.py",
    "console.py",
    "text/phrases.py",
    "text/names.py",
    "text/prompt.py",
    "results.py",
    "structures.py",
    "config.py",
    "experiment.py",
)
LEVELS = (  # from floor 1 on
    ("lettering", "text", "geometry", "device"),
    ("model", "loss", "processor"),
    ("data", "encoded", "options", "postprocess"),
    ("detector", "visualize"),
    ("train", "evaluate", "pseudo"),
    ("recipes",),
    ("integrations",),
    ("cli",),
    ("__main__",),
)
FLOORS = {room: number for number, rooms in enumerate(LEVELS, start=1) for room in rooms}
DOORS = {
    "timm": ("model/vision.py",),
    "transformers": ("integrations/transformers.py", "integrations/sam.py"),
    "sahi": ("integrations/sahi.py",),
    "cvat_sdk": ("integrations/cvat.py",),
    "autodistill": ("integrations/autodistill.py",),
    "fiftyone": ("integrations/fiftyone.py",),
    "tokenizers": ("text/tokens.py",),
    "spacy": ("text/phrases.py",),
    "pycocotools": ("evaluate/coco.py", "results.py"),
    "scipy": ("evaluate/saco.py",),
    "lvis": ("evaluate/lvis.py",),
    "cv2": (),
    "yaml": ("experiment.py",),
    "pydantic": ("schema.py", "config.py", "cli/arguments.py"),
    "huggingface_hub": ("model/weights.py", "integrations/transformers.py", "integrations/sam.py"),
    "safetensors": ("model/weights.py", "model/adapt.py"),
    "torchvision": (
        "geometry/boxes.py",
        "loss.py",
        "model/deform.py",
        "model/vision.py",
        "data/transforms.py",
        "integrations/export.py",
    ),
    "ray": ("pseudo/run.py",),
    "filelock": ("files.py",),
    "tqdm": ("console.py",),
    "pyarrow": ("pseudo/store.py",),
    "pillow_heif": ("data/image.py",),
    "imagehash": ("pseudo/filters.py",),
    "tensorboard": ("train/loggers.py",),
    "torch.utils.tensorboard": ("train/loggers.py",),
    "wandb": ("train/loggers.py",),
    "mlflow": ("train/loggers.py",),
    "matplotlib": ("visualize.py",),
    "peft": ("train/lora.py",),
    "onnx": ("integrations/export.py",),
    "onnxscript": ("integrations/export.py",),
    "onnxruntime": ("model/exported.py", "integrations/export.py"),
    "av": ("data/video.py",),
    "trackers": ("recipes/track.py",),
    "fastapi": ("integrations/serve.py", "integrations/guard.py", "integrations/demo.py"),
    "gradio": ("integrations/demo.py",),
    "uvicorn": ("integrations/serve.py", "integrations/guard.py"),
    "prometheus_client": ("integrations/serve.py", "integrations/guard.py"),
    "httpx": ("integrations/label_studio_backend.py",),
}
READS_CONFIG = {
    "data/caption.py",
    "data/catalog.py",
    "data/loader.py",
    "data/mixture.py",
    "model/adapt.py",
    "model/exported.py",
    "model/glip.py",
    "model/language.py",
    "model/release.py",
    "model/weights.py",
    "model/zoo.py",
    "options.py",
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
    relative = [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, f"{file}: a relative import; write it from glip"
    return imports_in(tree_of(file))


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


def floor(file: str) -> int:
    return 0 if file in GROUND else FLOORS[room_of(file)]


PARTS = {file: own_files(file) for file in FILES if file != "__init__.py"}


def test_rooms_import_lower_floors_only():
    assert {room_of(file) for file in PARTS if file not in GROUND} <= set(FLOORS), "give each room a floor"
    wrong = [
        f"{file} imports {other}, which is not below it"
        for file, others in PARTS.items()
        for other in others
        if file not in GROUND and room_of(file) != room_of(other) and floor(other) >= floor(file)
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


def test_modules_that_are_loaded_by_name():
    """Only for public names, verbs, and what Detections become (``draw``), where an import would close a circle."""
    by_name = {file for file in FILES if "importlib.import_module" in imports(file)}
    assert by_name == {"__init__.py", "cli/main.py", "geometry/boxes.py", "results.py"}


@pytest.mark.parametrize("door", DOORS)
def test_doors(door):
    used = {file for file in FILES for name in imports(file) if name == door or name.startswith(door + ".")}
    strangers = {file for file in used if not file.startswith(DOORS[door] or ("none",))}
    assert not strangers, f"{door} may be imported by {DOORS[door] or 'nothing'} only"


def test_config_stops_at_the_builder():
    readers = {file for file in FILES if own_files(file) & {"config.py", "experiment.py"}}
    low = {file for file in readers - {"__init__.py"} if 0 < floor(file) < 4}
    assert low <= READS_CONFIG


@pytest.fixture(scope="module")
def figures() -> Figures:
    return house.measure()


def test_every_bar_is_kept(figures):
    """Lines of rooms, files and functions, `raise`, names that several files define, types met in one inference."""
    problems = list(house.broken_bars(figures))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rooms": {"loss": 100_000}}, "room loss has 100000 lines"),
        ({"rooms": {"attic": 1}}, "room attic has 1 lines, its budget is 0"),
        ({"rooms": {"data": 100_000}}, "the package has 100000 lines"),
        ({"raises": 5_000}, "`raise` per 1,000 lines"),
        ({"functions": {"loss.py:9 match": 61}}, "function loss.py:9 match has 61 lines"),
        ({"files": {"loss.py": 401}}, "file loss.py has 401 lines"),
        ({"twice": {"match": ["loss.py", "files.py"]}}, "match is defined in loss.py, files.py"),
        ({"twice": {"_match": ["loss.py", "files.py"]}}, "_match is defined in loss.py, files.py"),
        ({"types": dict.fromkeys("ABCDEFGHI", {"f"})}, "9 types are met in one inference"),
    ],
)
def test_every_bar_can_be_broken(figures, changes, message):
    assert any(message in problem for problem in house.broken_bars(replace(figures, **changes)))


def test_public_names():
    assert sorted(glip.__all__) == sorted(PUBLIC) and len(PUBLIC) == 10


def objections(function: Function) -> Iterator[str]:
    names, depth = house.arguments_of(function), house.depth_of(function)
    if len(names) > house.ARGUMENTS:
        yield f"has {len(names)} arguments"
    if depth > house.DEPTH:
        yield f"nests {depth} deep"


def test_depth_and_arguments_are_counted():
    nested = "def f():\n if a:\n  pass\n elif b:\n  pass\n elif c:\n  for x in y:\n   pass\n"
    assert house.depth_of(ast.parse(nested).body[0]) == 2, "an elif is no level"
    assert house.depth_of(ast.parse("def f():\n if a:\n  pass\n else:\n  if b:\n   pass\n  x = 1\n").body[0]) == 2
    deep = "def f(self, a, b, c, d, /, e, *, f, g, h, i):\n for a in b:\n  if c:\n   with d:\n    while e: pass\n"
    assert list(objections(ast.parse(deep).body[0])) == ["has 9 arguments", "nests 4 deep"]


def undocumented(file: str) -> Iterator[str]:
    """The module, its public functions and classes, and their public methods (``forward`` says it in its shapes)."""
    if not ast.get_docstring(tree_of(file)):
        yield file
    for node in (node for node in tree_of(file).body if isinstance(node, (*FUNCTIONS, ast.ClassDef))):
        methods = [one for one in getattr(node, "body", []) if isinstance(one, FUNCTIONS) and one.name != "forward"]
        for one in (node, *(methods if isinstance(node, ast.ClassDef) else ())):
            is_private = one.name.startswith("_") or node.name.startswith("_")
            if not is_private and "overload" not in map(ast.unparse, one.decorator_list) and not ast.get_docstring(one):
                yield f"{file}:{one.lineno} {one.name}"


@pytest.mark.parametrize("file", FILES)
def test_a_file(file):
    """Level functions of few arguments, names that say something, docstrings, empty ``__init__`` files of rooms."""
    found = [f"{one.lineno} {one.name} {problem}" for one in functions_of(file) for problem in objections(one)]
    assert not found
    assert not BANNED & set(file.removesuffix(".py").replace("/", "_").split("_"))
    for node in ast.walk(tree_of(file)):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            assert not BANNED & set(node.name.strip("_").lower().split("_")), node.name
    if file.endswith("/__init__.py"):
        assert (PACKAGE / file).read_text() == ""
    else:
        assert not list(undocumented(file))
    assert not any(name.split(".")[0] in ("tools", "tests") for name in imports(file))
