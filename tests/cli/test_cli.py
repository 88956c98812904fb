"""The command line: what it prints and writes, and one line with exit code 2 for every mistake a user can fix."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from glip.cli.main import main
from glip.train.start import load_config

BLOCKED = """
import sys
from importlib.machinery import ModuleSpec

class Broken:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split(".")[0] in ("lvis", "cv2", "spacy") else None

    def create_module(self, spec):
        raise ImportError(f"{spec.name}: libGL.so.1 is not there")

sys.meta_path.insert(0, Broken())
import glip
from glip.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shots(workplace, image):
    """A folder with three images and a text."""
    (workplace / "shots").mkdir()
    for name in ("b.png", "a.jpg", "c.bmp"):
        image.save(workplace / "shots" / name)
    (workplace / "shots" / "notes.txt").write_text("no image")
    return workplace / "shots"


@pytest.fixture
def detect(command_line, tiny_folder):
    return lambda *arguments: command_line("detect", *arguments, "--model", tiny_folder, "--device", "cpu")


@pytest.fixture
def refused(command_line):
    """Run a command that must end with one line and exit code 2; gives the line."""

    def run(*arguments: object) -> str:
        code, out, err = command_line(*arguments)
        assert code == 2 and out == "" and err.count("\n") == 1 and err.endswith("\n"), err
        return err.strip()

    return run


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_detections_of_an_image(detect, shots, workplace):
    code, out, err = detect("shots/a.jpg", "a red bus. dog", "--threshold", 0.5)
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert lines[0].startswith("shots/a.jpg: ") and int(lines[0].split()[1]) == len(lines) - 3 > 0
    assert lines[1].split() == ["phrase", "score", "box", "(x1", "y1", "x2", "y2)"]
    assert all(line.startswith(("  a red bus   0.", "  dog         0.")) for line in lines[2:-1])
    assert lines[-1] == "  drawn in out/a.jpg" and names(workplace / "out") == ["a.jpg"]
    code, out, _ = detect("shots/a.jpg", "dog", "--threshold", 1)
    assert code == 0 and "0 found" in out and "try a lower --threshold" in out


def test_folders_and_patterns(detect, shots, workplace):
    code, out, _ = detect("shots", "dog", "--out", "drawn/deep")
    found = [line.split(":")[0] for line in out.splitlines() if line.startswith("shots")]
    assert code == 0 and found == ["shots/a.jpg", "shots/b.png", "shots/c.bmp"]
    assert names(workplace / "drawn" / "deep") == ["a.jpg", "b.png", "c.png"]
    (shots / "sub").mkdir()
    assert detect("shots/*.[jp]*", "dog")[0] == 0 and names(workplace / "out") == ["a.jpg", "b.png"]
    assert len(detect("shots/[ab]*", "shots/a.jpg", "dog", "--json", "-")[1].splitlines()) == 2


def test_json_lines(detect, shots, workplace):
    code, out, _ = detect("shots/b.png", "shots/a.jpg", "a red bus. café", "--json", "deep/found.jsonl")
    assert code == 0 and "2 lines in deep/found.jsonl" in out
    lines = (workplace / "deep" / "found.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["image"], second["image"]) == ("shots/b.png", "shots/a.jpg")
    assert (first["width"], first["height"]) == (150, 110)
    assert first["caption"] == "a red bus. café" and first["phrases"] == ["a red bus", "café"]
    found = first["detections"]
    assert len(found) > 10 and found[0]["score"] >= found[-1]["score"]
    for item in found:
        assert set(item) == {"box", "score", "label", "phrase", "spans"}
        assert item["phrase"] == first["phrases"][item["label"]]
        assert item["spans"] == [[[0, 9]], [[11, 15]]][item["label"]]
        assert 0 <= item["box"][0] <= item["box"][2] <= 150 and 0 <= item["box"][1] <= item["box"][3] <= 110
    assert names(workplace / "deep") == ["found.jsonl"]


def test_json_on_standard_output_draws_nothing_whatever_the_batch_size(detect, shots, workplace):
    results = [detect("shots", "dog. cat", "--json", "-", "--batch-size", size) for size in (1, 3)]
    assert all(code == 0 and err == "" for code, _, err in results) and not (workplace / "out").exists()
    rows = [[json.loads(line) for line in out.splitlines()] for _, out, _ in results]
    assert [row["image"] for row in rows[0]] == ["shots/a.jpg", "shots/b.png", "shots/c.bmp"]
    for one, other in zip(*rows, strict=True):
        pairs = list(zip(one["detections"], other["detections"], strict=True))
        assert all(a["label"] == b["label"] and abs(a["score"] - b["score"]) < 1e-3 for a, b in pairs)


def test_many_images_show_a_bar_and_no_tables(detect, shots, workplace, image):
    for number in range(3):
        image.resize((40 + number, 30)).save(shots / f"d{number}.png")
    code, out, err = detect("shots", "dog", "--batch-size", 2)
    assert code == 0 and out == "" and "6/6" in err
    assert len(names(workplace / "out")) == 6


def test_drawn_images_never_replace_others(detect, shots, workplace, image):
    (workplace / "more").mkdir()
    image.save(workplace / "more" / "a.jpg")
    image.save(workplace / "more" / "a.png")
    code, out, _ = detect("shots/a.jpg", "more/a.jpg", "more/a.png", "dog")
    assert code == 0 and names(workplace / "out") == ["a-2.jpg", "a.jpg", "a.png"]
    before = (shots / "a.jpg").read_bytes()
    code, out, _ = detect("shots/a.jpg", "dog", "--out", "shots")
    assert code == 0 and "drawn in shots/a-2.jpg" in out and (shots / "a.jpg").read_bytes() == before


def test_broken_and_missing_images(detect, shots, workplace):
    (shots / "broken.png").write_bytes((shots / "b.png").read_bytes()[:200])
    code, out, err = detect("shots/none.jpg", "shots/a.jpg", "shots/broken.png", "dog")
    first, second, last = err.splitlines()
    assert code == 2 and first == "glip detect: image 'shots/none.jpg' is not there: check the path"
    assert second.startswith("glip detect: image 'shots/broken.png' ") and last == "2 of 3 images could not be read"
    assert out.startswith("shots/a.jpg: ") and names(workplace / "out") == ["a.jpg"]
    code, _, err = detect("x.jpg", "y.jpg", "dog", "--json", "found.jsonl")
    assert code == 2 and err.splitlines()[-1] == "2 of 2 images could not be read"
    assert (workplace / "found.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threshold", "1.2"], "--threshold: got 1.2: give a number, 0 or more and at most 1"),
        (["--threshold", "nan"], "--threshold: got nan"),
        (["--threshold", "high"], "argument --threshold: invalid float value: 'high' (see glip detect --help)"),
        (["--batch-size", "0"], "--batch-size: got 0: give a whole number, 1 or more"),
        (["--device", "cuda:77"], "Unknown device 'cuda:77'. Available: cpu."),
        (["--device", "gpu"], "Unknown device 'gpu'. Available: cpu."),
        (["--model", "glip-tiny"], "'glip-tiny'"),
        (["--model", "shots"], "'shots'"),
        (["--model", "shots/notes.txt"], "'shots/notes.txt'"),
        (["--out", "shots/a.jpg"], "--out 'shots/a.jpg' is a file: give a folder"),
        (["--json", "shots"], "--json 'shots' is a folder: give a file, or '-'"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_options_are_one_line(refused, shots, tiny_folder, options, words):
    model = [] if "--model" in options else ["--model", tiny_folder]
    line = refused("detect", "shots/a.jpg", "dog", *model, *options)
    assert line.startswith("glip") and words in line


@pytest.mark.parametrize("prompt", ["", " . ", "cat. \u200b. dog", "word " * 300, "cat \udcff"])
def test_wrong_prompts_are_one_line(refused, shots, tiny_folder, prompt):
    assert refused("detect", "shots/a.jpg", prompt, "--model", tiny_folder).startswith("glip detect: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["detect", "empty", "dog"], "'empty' contains no image: give files that end in .bmp, .gif, .jpeg, .jpg"),
        (["detect", "*.jpg", "dog"], "'*.jpg' contains no image"),
        (["detect"], "the following arguments are required: IMAGE... PROMPT (see glip detect --help)"),
        (["detect", "a.jpg"], "no prompt: give words after the images"),
        (["detct", "a.jpg"], "invalid choice: 'detct'"),
        (["convert", "nowhere.pth", "again"], "'nowhere.pth'"),
        (["config", "nano"], "config 'nano': no such file"),
        (["config", "glip_tt"], "(did you mean 'glip_t'?)"),
        (["config", "tiny", "model.visoin.kind=swin"], "model.visoin: no such key (did you mean 'vision'?)"),
        (["config", "tiny", "train.steps=ten"], "train.steps: got 'ten': give a whole number"),
        (["config", "tiny", "train.steps"], "override 'train.steps': give key.path=value"),
        (["config", "tiny", "train.schedule=cosin"], "(did you mean 'cosine'?)"),
        (["train", "broken.yaml"], "broken.yaml: not valid YAML"),
    ],
)
def test_wrong_commands_are_one_line(refused, workplace, arguments, words):
    (workplace / "empty").mkdir()
    (workplace / "broken.yaml").write_text("model: {vision: [\n- x")
    line = refused(*arguments)
    assert line.startswith(("glip: ", f"glip {arguments[0]}: ")) and words in line


def test_options_may_stand_anywhere(command_line, tiny_folder, shots):
    code, out, _ = command_line("detect", "--json", "-", "shots/a.jpg", "shots/b.png", "--model", tiny_folder, "dog")
    assert code == 0 and len(out.splitlines()) == 2 and json.loads(out.splitlines()[0])["phrases"] == ["dog"]


def test_printed_config_is_a_config(command_line, workplace):
    code, out, err = command_line("config", "pretrain/nano", "train.steps=900", "model.name=mine")
    assert code == 0 and err == "" and "name: mine" in out and "  steps: 900" in out
    (workplace / "mine.yaml").write_text(out)
    assert load_config("mine.yaml") == load_config("pretrain/nano", ["train.steps=900", "model.name=mine"])


def test_convert(command_line, tiny_folder, workplace):
    code, out, _ = command_line("convert", tiny_folder, "again")
    assert code == 0 and out.startswith("again: tiny, 6.5 M parameters")
    assert names(workplace / "again") == ["config.json", "model.safetensors", "vocab.txt"]
    assert (workplace / "again" / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()


def test_interrupted(command_line, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("glip.cli.config.run", interrupted)
    code, _, err = command_line("config", "tiny")
    assert code == 130 and err.strip() == "interrupted; run the same command again to resume"


def test_files_that_cannot_be_written_are_one_line(refused, shots, tiny_folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out/a.jpg")

    monkeypatch.setattr("glip.recipes.detect_files.save_image", full)
    assert "No space left on device" in refused("detect", "shots/a.jpg", "dog", "--model", tiny_folder)


@pytest.mark.slow
def test_a_plain_terminal_and_absent_packages(workplace, tiny_folder):
    """In a process of its own: lvis, cv2 and others not importable, and a terminal that only knows ASCII."""
    Image.new("RGB", (40, 30)).save(workplace / "café.png")
    command = ["detect", "café.png", "🐈. dog", "--model", str(tiny_folder), "--threshold", "0.3", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *command],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("ascii").startswith("caf\\xe9.png: ")
    assert (workplace / "out" / "café.png").is_file()


@pytest.mark.parametrize("flag", [(), ("--traceback",)])
def test_a_mistake_is_a_line_and_its_traceback_on_request(command_line, flag):
    code, _, err = command_line("config", "nothing", *flag)
    assert code == 2 and ("Traceback" in err) == bool(flag)
    assert err.splitlines()[-1].startswith("glip config: config 'nothing': no such file")


def test_a_bug_is_a_traceback(command_line, monkeypatch):
    monkeypatch.setattr("glip.cli.config.run", lambda _: {}["x"])
    code, _, err = command_line("config")
    assert code == 1 and "Traceback" in err and "this is a bug in glip: please report it" in err


def test_the_whole_command_is_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "required: VERB (see glip --help)" in capsys.readouterr().err
