"""Files of strangers: names in them are no paths and no commands, nothing in them runs, waits or fills the memory."""

import ast
import csv
import io
import json
import logging
import os
import re
import signal
import stat
import sys
import traceback
import zipfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

import house
import pytest
import torch
import yaml
from PIL import Image
from small import QUICK, VOCABULARY, seeded, write_coco

from glip.cli.main import main
from glip.console import ProgressBar, Screen, printable
from glip.data.captions import read_captions
from glip.data.image import load_image
from glip.data.labels import read_labels
from glip.data.sets import PackedSamples, SampleSet
from glip.data.writers import write_labels, write_yolo
from glip.detector import Detector
from glip.errors import CheckpointError, ConfigError, GlipError
from glip.evaluate.report import Report, for_terminal, markdown_text
from glip.experiment import read_tree, to_dict
from glip.files import file_name, read_json, read_jsonl
from glip.model.weights import load_pretrained, save_pretrained
from glip.recipes.result_files import Item, output_names, write_crops, write_csv
from glip.structures import Detections, Phrase, Prompt, Sample, TarMember
from glip.train.run import starting_model
from glip.train.start import load_config

EVIL = "../../../../../up\x1b]0;x\x07\u202e\nrow<script>"  # leaves a folder, sets a title, turns text, begins a line
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
PLAIN = ("glip-t", "coco_val", "my set", "grüne Bäume", "हिन्दी", "猫", "v1.2+x")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A verb of ``glip`` in a folder five deep, where writes above it are seen: exit code, output, errors."""
    (tmp_path / "a" / "b" / "c" / "d" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c" / "d" / "here")
    monkeypatch.delenv("GLIP_DATA", raising=False)

    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert not RAW.search(out + err), "a terminal acts on this"
        return int(stopped.value.code or 0), out, err

    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model folder whose config names what its author likes."""
    place = tmp_path_factory.mktemp("stranger") / "model"
    vision = replace(QUICK.vision, pretrained="/etc/passwd")
    language = replace(QUICK.language, pretrained="evil/repository")
    config = replace(QUICK, name=EVIL, vision=vision, language=language)
    save_pretrained(place, seeded(config), config, VOCABULARY)
    return place


@pytest.fixture
def in_time():
    """What waits for a pipe or reads a device without end is stopped."""

    def stop(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---- names as paths


ODD = ("", ".", "..", "../../up", "/abs", "a/b", "a\\b", "C:\\x", "C:x", "CON", "nul.txt", "com1", "x.", " x", "-rf")
ODD += ("a\0b", "\x1b[31m", "\u202eb", "\ud800", "a?*|", "ü" * 200, "x" * 300, "e\u0301", EVIL, "a_b", "x", "_CON")


def test_any_name_is_one_file_below_its_folder(tmp_path):
    made = {name: file_name(name) for name in ODD}
    assert len(set(made.values())) == len(ODD), "two names never become one"
    for name in made.values():
        assert Path(name).name == name and len(name.encode()) < 120
        assert not re.search(r'[\x00-\x1f<>:"/\\|?*\u202e]|^[-.]|[. ]$', name)
        assert not re.match(r"(?i)(con|nul|com1)(\.|$)", name), "a device of Windows"
        (tmp_path / name).mkdir()
    assert tuple(map(file_name, PLAIN)) == PLAIN


def test_names_that_differ_in_case_stay_apart():
    assert file_name("cat", ["Cat"]).startswith("cat-") and file_name("cat", ["dog"]) == "cat"
    twins = output_names([Path("a/X.png"), Path("b/x.png")], Path("out"))
    assert [path.name for path in twins.values()] == ["X.png", "x-2.png"]


def test_names_of_models_sets_and_tasks_stay_in_the_output_folder(run, folder, tmp_path):
    coco = write_coco(tmp_path / "data")
    sets = {EVIL: {"format": "coco", "annotations": str(coco), "images": [str(coco.parent / "images")]}}
    (tmp_path / "data" / "datasets.yaml").write_text(yaml.safe_dump(sets))
    table = tmp_path / "data" / "tasks.yaml"
    table.write_text(yaml.safe_dump({EVIL: {"train": str(coco), "test": str(coco)}}))
    before = set(tmp_path.rglob("*"))
    root = ("--root", tmp_path / "data")
    assert run("evaluate", folder, EVIL, *root)[0] == 0
    results = next(Path("runs").rglob("results.json"))
    assert run("evaluate", "--predictions", results, EVIL, *root, "--out", "scored")[0] == 0
    tuning = ("--epochs", 1, "--max-val-images", 1, "--shots", 1, "--mode", "linear", *root)
    assert run("tune", folder, coco, *tuning)[0] == 0
    assert run("tune", folder, "--tasks", table, *tuning, "--out", "tuned")[0] == 0
    here = Path.cwd()
    assert all(here in path.parents for path in set(tmp_path.rglob("*")) - before)
    pages = [path.read_text() for path in here.rglob("*.md")]
    assert len(pages) == 3 and not any("<script>" in page or RAW.search(page) for page in pages)


def test_crops_of_odd_phrases_stay_in_their_folder(tmp_path):
    prompt = Prompt.from_names(["../up", "a b", "a_b", "A_B"])
    boxes = torch.tensor([[0.0, 0, 4, 4]] * 4)
    found = Detections(boxes, torch.ones(4), torch.arange(4), prompt, (8, 8))
    with write_crops(tmp_path / "deep" / "cut", [Path("x.png")], prompt) as add:
        add(Item(Path("x.png"), Image.new("RGB", (8, 8))), found)
    made = sorted(path.parent.name.casefold() for path in tmp_path.rglob("*.png"))
    assert len(set(made)) == 4 and all((tmp_path / "deep" / "cut") in path.parents for path in tmp_path.rglob("*.png"))


@pytest.mark.parametrize("write", [write_labels, write_yolo])
def test_an_image_above_its_folder_is_written_by_no_path_out_of_it(write, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "up.png")
    image = tmp_path / "images" / ".." / "up.png"
    sample = Sample(image, torch.tensor([[0.0, 0, 4, 4]]), ((0,),), ("cat",), image_id=1)
    with pytest.raises(GlipError, match="is not in the image folders"):
        write(SampleSet([sample], ("cat",)), tmp_path / "out" / "set", [tmp_path / "images"])


# ---- names on a terminal, in a log, on a page, in a table


def test_a_terminal_gets_no_commands():
    assert printable("é 猫 👩‍🚀 שלום") == "é 猫 👩‍🚀 שלום" and printable("a\tb\n") == "a\\u0009b\\u000a"
    text = io.StringIO()
    with redirect_stdout(Screen(text)), redirect_stderr(Screen(text)):
        print(EVIL, "\x9b31m\r", sep="\t")
        print(EVIL, file=sys.stderr)
        logging.lastResort.emit(logging.makeLogRecord({"msg": EVIL}))
        traceback.print_exception(ValueError(EVIL))
        ProgressBar.write(EVIL)
    assert not RAW.search(text.getvalue()) and text.getvalue().count("\\u001b]0;x\\u0007\\u202e\nrow") == 5
    assert json.loads(printable(json.dumps([EVIL], ensure_ascii=False))) == [EVIL]


def test_names_of_files_on_a_terminal(run, folder, tmp_path):
    name = "a\x1b[31m\u202e\n  fake row  0.99"
    Image.new("RGB", (40, 40)).save(f"{name}.png")
    Path(f"{name}.txt").touch()
    code, out, err = run("detect", ".", "a cat", "--model", folder, "--threshold", 0.9)
    assert code == 0 and out.count("a\\u001b[31m\\u202e\\u000a  fake row") == 2 and "\n  fake row" not in out + err
    code, out, _ = run("detect", ".", "a cat", "--model", folder, "--out", "-")
    assert json.loads(out)["image"] == f"{name}.png", "exact in JSON"
    for wrong in ((f"{name}.png", "cat", "--model", name), (f"{name}.txt", "cat"), ("x.png", "cat", f"--{name}")):
        assert run("detect", *wrong)[0] == 2
    assert run("config", "tiny", f"{name}=1")[0] == 2 and run("data", "list", "--root", name)[0] == 0


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("a|b `c` *d*", r"a\|b \`c\` \*d\*"),
        ("[x](https://y.z) www.a.b c@d.e", r"\[x\](https\://y.z) www\.a.b c\@d.e"),
        ("a\n\n# b\x1b", r"a # b\\u001b"),
        ("&lt;b&gt; & c", "&amp;lt;b&amp;gt; & c"),
        ("grüner_Baum 猫 #1", "grüner_Baum 猫 #1"),
    ],
)
def test_a_page_shows_names_as_they_are(name, shown):
    assert markdown_text(name) == shown and for_terminal(shown) == printable(" ".join(name.split())), "as on a terminal"
    report = Report(name, name, "coco", 1, "no", {name: 0.5}, {"Per category": [{"name": name, name: name}]})
    report.noted, report.places = {name: 1}, {name: [name]}
    assert report.markdown().count(shown) == 8 and report.markdown().count("\n") == 15


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@a", "\ta", "'=a", "＝1", "'a", "a=b", "1-2", ""])
def test_no_cell_of_a_csv_is_a_formula_and_its_text_is_read_back(text, tmp_path):
    prompt = Prompt("x", (Phrase(text, ((0, 1),)),))
    found = Detections(torch.ones(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.long), prompt, (8, 8))
    source = Path(f"{text}.png")
    with write_csv(tmp_path / "x.csv", [source], prompt) as add:
        add(Item(source, Image.new("RGB", (8, 8))), found)
    row = list(csv.DictReader((tmp_path / "x.csv").open(newline="")))[0]
    for cell, meant in ((row["phrase"], text), (row["image"], f"{text}.png")):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝"))
        assert re.sub(r"^'(?='*[=+\-@\t\r\n＝＋－＠])", "", cell) == meant


# ---- what is opened


def _pipe(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("x.png", load_image),
        ("x.json", read_json),
        ("x.jsonl", lambda path: list(read_jsonl(path))),
        ("x.yaml", lambda path: read_tree(path)),
        ("x.csv", lambda path: read_captions(path, [path.parent])),
        ("x.tar", lambda path: read_captions(path, [])),
        ("labels.jsonl", lambda path: read_labels(path, [path.parent])),
        ("x.pth", load_pretrained),
        ("shard.tar", lambda path: load_image(TarMember(path, "a.png", 0, 10))),
    ],
)
@pytest.mark.parametrize("make", [_pipe, lambda folder, name: (folder / name).symlink_to("/dev/zero") or folder / name])
def test_pipes_and_devices_are_refused(name, read, make, tmp_path, in_time):
    with pytest.raises(GlipError, match="pipe or a device|no such file|does not exist"):
        read(make(tmp_path, name))


def test_a_pipe_among_images_is_skipped(run, folder, in_time):
    os.mkfifo("b.png")
    Image.new("RGB", (40, 40)).save("a.png")
    code, out, err = run("detect", ".", "a cat", "--model", folder)
    assert code == 2 and "a.png: " in out and "image 'b.png' is a pipe or a device: give a file" in err


def test_yaml_of_tags_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("train: !!python/object/apply:os.system [touch ran]")
    with pytest.raises(ConfigError, match="not valid YAML.*python/object"):
        load_config(tmp_path / "x.yaml")
    assert not (tmp_path / "ran").exists()


# ---- models of strangers


def test_a_config_makes_nobody_read_other_files(folder, tmp_path, monkeypatch):
    Detector.from_pretrained(folder, device="cpu")
    monkeypatch.setattr("glip.train.run.start_vision", lambda *_: pytest.fail("it reads what the config names"))
    monkeypatch.setattr("glip.train.run.start_language", lambda *_: pytest.fail("it reads what the config names"))
    experiment = load_config("tiny", [f"train.start={folder}", f"train.output={tmp_path / 'out'}", "train.steps=1000"])
    assert experiment.model.vision.pretrained == "/etc/passwd" and starting_model(experiment)


def numbers(tree: dict, at: tuple[str, ...] = ()):
    """The keys of all whole numbers, also first ones of lists."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, (*at, key))
        elif type(value[0] if isinstance(value, list) and value else value) is int:
            yield (*at, key)


@pytest.mark.parametrize("huge", [2**20, 2**40, 2**62])
def test_no_number_of_a_config_reserves_memory(huge, folder):
    file, image = folder / "config.json", Image.new("RGB", (40, 40))
    given, keys = file.read_text(), [*numbers(to_dict(QUICK))]
    assert len(keys) > 20 and ("vision", "window") in keys
    try:
        for *above, key in keys:
            part = tree = to_dict(QUICK)
            for name in above:
                part = part[name]
            part[key] = [huge, *part[key][1:]] if isinstance(part[key], list) else huge
            file.write_text(json.dumps(tree))
            with suppress(CheckpointError):  # else it works, and needs no more memory
                detector = Detector.from_pretrained(folder, device="cpu")
                assert detector.processor.images([image])[0].nbytes < 2**25, (*above, key)
                detector(image, ["a cat"])
    finally:
        file.write_text(given)


def test_a_small_checkpoint_fills_no_memory(tmp_path):
    torch.save({"model": {"a": torch.zeros(1).expand(2**20, 2**20)}}, tmp_path / "stride.pth")
    torch.save({"model": {"a": torch.zeros(2**20)}}, tmp_path / "plain.pth")
    plain, packed = zipfile.ZipFile(tmp_path / "plain.pth"), tmp_path / "packed.pth"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in plain.namelist():
            file.writestr(name, plain.read(name))
    for name in ("stride", "packed"):
        with pytest.raises(CheckpointError, match=r"bytes, its tensors [0-9,]{9,}: do not use it"):
            load_pretrained(tmp_path / f"{name}.pth")
    shared = torch.zeros(2**10, 4)
    torch.save({"a": shared, "b": shared}, tmp_path / "tied.pth")
    with pytest.raises(CheckpointError, match="is not a GLIP checkpoint"):
        load_pretrained(tmp_path / "tied.pth")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_samples_in_a_temporary_file_are_their_owners():
    assert stat.S_IMODE(PackedSamples([])._path.stat().st_mode) == 0o600


# ---- the code


FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.Unpickler",
    "marshal.loads", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "torch.hub.load", "joblib.load",
    "shutil.unpack_archive",
}  # fmt: skip
ALLOWED = {"data/sets.py": "pickle.loads", "experiment.py": "yaml.load"}  # our own temporary file; a safe loader


def dotted(node: ast.AST) -> str:
    """A name such as ``torch.load``, or a value."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return str(getattr(node, "id", getattr(node, "value", "")))


def dangers(module: ast.Module, allowed: str = ""):
    """Calls that run what a file says."""
    for node in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        name, options = dotted(node.func), {word.arg: dotted(word.value) for word in node.keywords}
        unsafe = name in FORBIDDEN or (name in ("pickle.loads", "yaml.load") and name != allowed)
        unsafe |= name == "torch.load" and options.get("weights_only") != "True"
        unsafe |= options.get("allow_pickle", "False") != "False" or options.get("shell", "False") != "False"
        unsafe |= "trust_remote_code" in options or name.endswith((".extract", ".extractall"))
        if unsafe:
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


def test_no_call_runs_what_a_file_says():
    files = house.package_files()
    assert not [(file, found) for file in files for found in dangers(house.tree_of(file), ALLOWED.get(file, ""))]


@pytest.mark.parametrize(
    "line",
    [
        "eval(x)", "os.system(x)", "pickle.loads(x)", "yaml.load(x, L)", "torch.load(x)", "t.extractall()",
        "torch.load(x, weights_only=no)", "np.load(x, allow_pickle=True)", "f(x, trust_remote_code=False)",
        "subprocess.run(x, shell=True)",
    ],
)  # fmt: skip
def test_such_calls_are_found(line):
    assert list(dangers(ast.parse(line)))
