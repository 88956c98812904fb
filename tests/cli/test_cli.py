"""The command line: what it prints and writes, and one line with exit code 2 for everything that people can mend."""

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
def glip_(capsys):
    """Run the command in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture
def detect(glip_, tiny_folder):
    return lambda *arguments: glip_("detect", *arguments, "--model", tiny_folder, "--device", "cpu")


@pytest.fixture
def refused(glip_):
    """Run a command that must end with one line and exit code 2; gives the line."""

    def run(*arguments: object) -> str:
        code, out, err = glip_(*arguments)
        assert code == 2 and out == "" and err.count("\n") == 1 and err.endswith("\n"), err
        assert "Traceback" not in err
        return err.strip()

    return run


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_image(detect, shots, workplace):
    code, out, err = detect("shots/a.jpg", "a red bus. dog", "--threshold", 0.5)
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert lines[0].startswith("shots/a.jpg: ") and lines[0].endswith(" found")
    count = int(lines[0].split()[1])
    assert lines[1].split() == ["phrase", "score", "box", "(x1", "y1", "x2", "y2)"]
    assert count == len(lines) - 3 > 0
    assert all(line.startswith(("  a red bus   0.", "  dog         0.")) for line in lines[2:-1])
    assert lines[-1] == "  drawn in out/a.jpg"
    assert names(workplace / "out") == ["a.jpg"]


def test_nothing_found(detect, shots):
    code, out, _ = detect("shots/a.jpg", "dog", "--threshold", 1)
    assert code == 0
    assert "0 found" in out and "nothing scored high enough: try a lower --threshold, or other words" in out


def test_a_folder(detect, shots, workplace):
    code, out, _ = detect("shots", "dog", "--out", "drawn/deep")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("shots")] == [
        "shots/a.jpg",
        "shots/b.png",
        "shots/c.bmp",
    ]
    assert names(workplace / "drawn" / "deep") == ["a.jpg", "b.png", "c.png"]


def test_a_pattern(detect, shots, workplace):
    (shots / "sub").mkdir()
    code, out, _ = detect("shots/*.[jp]*", "dog")
    assert code == 0 and names(workplace / "out") == ["a.jpg", "b.png"]
    code, _, _ = detect("shots/[ab]*", "shots/a.jpg", "dog", "--json", "-")
    assert code == 0


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


def test_json_on_standard_output_draws_nothing(detect, shots, workplace):
    code, out, err = detect("shots", "dog", "--json", "-")
    assert code == 0 and err == ""
    assert [json.loads(line)["image"] for line in out.splitlines()] == ["shots/a.jpg", "shots/b.png", "shots/c.bmp"]
    assert not (workplace / "out").exists()


def test_many_images_show_a_bar_and_no_tables(detect, shots, workplace, image):
    for number in range(3):
        image.resize((40 + number, 30)).save(shots / f"d{number}.png")
    code, out, err = detect("shots", "dog", "--batch-size", 2)
    assert code == 0 and out == "" and "6/6" in err
    assert len(names(workplace / "out")) == 6


def test_the_batch_size_changes_nothing(detect, shots):
    first, second = (detect("shots", "dog. cat", "--json", "-", "--batch-size", size)[1] for size in (1, 3))
    for one, other in zip(first.splitlines(), second.splitlines(), strict=True):
        one, other = json.loads(one)["detections"], json.loads(other)["detections"]
        assert [item["label"] for item in one] == [item["label"] for item in other]
        assert all(abs(a["score"] - b["score"]) < 1e-3 for a, b in zip(one, other, strict=True))


def test_same_names_in_two_folders(detect, shots, workplace, image):
    (workplace / "more").mkdir()
    image.save(workplace / "more" / "a.jpg")
    image.save(workplace / "more" / "a.png")
    code, out, _ = detect("shots/a.jpg", "more/a.jpg", "more/a.png", "dog")
    assert code == 0 and names(workplace / "out") == ["a-2.jpg", "a.jpg", "a.png"]
    assert out.count("drawn in out/a-2.jpg") == 1


def test_given_images_are_never_written_over(detect, shots):
    before = (shots / "a.jpg").read_bytes()
    code, out, _ = detect("shots/a.jpg", "dog", "--out", "shots")
    assert code == 0 and "drawn in shots/a-2.jpg" in out
    assert (shots / "a.jpg").read_bytes() == before


def test_broken_and_missing_images(detect, shots, workplace):
    (shots / "broken.png").write_bytes((shots / "b.png").read_bytes()[:200])
    code, out, err = detect("shots/none.jpg", "shots/a.jpg", "shots/broken.png", "dog")
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "glip detect: image 'shots/none.jpg' is not there: check the path"
    assert lines[1].startswith("glip detect: image 'shots/broken.png' ")
    assert lines[2] == "2 of 3 images could not be read"
    assert out.startswith("shots/a.jpg: ") and names(workplace / "out") == ["a.jpg"]


def test_all_images_broken(detect, workplace):
    code, out, err = detect("x.jpg", "y.jpg", "dog", "--json", "found.jsonl")
    assert code == 2 and err.splitlines()[-1] == "2 of 2 images could not be read"
    assert (workplace / "found.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threshold", "1.2"], "threshold 1.2 is outside [0, 1]: scores are probabilities, such as 0.5"),
        (["--threshold", "-0.5"], "threshold -0.5 is outside [0, 1]"),
        (["--threshold", "nan"], "threshold nan is outside [0, 1]"),
        (["--threshold", "high"], "argument --threshold: invalid float value: 'high' (see glip detect --help)"),
        (["--batch-size", "0"], "batch size 0 is less than 1"),
        (["--device", "cuda:77"], "Unknown device 'cuda:77'. Available: cpu."),
        (["--device", "gpu"], "Unknown device 'gpu'. Available: cpu."),
        (["--model", "glip-tiny"], "model 'glip-tiny' is not known and no such path is there: give one of glip-nano,"),
        (["--model", "shots"], "folder 'shots' has no config.json: give a folder written by save_pretrained"),
        (["--model", "shots/notes.txt"], "weights 'shots/notes.txt' cannot be read"),
        (["--out", "shots/a.jpg"], "--out 'shots/a.jpg' is a file: give a folder"),
        (["--json", "shots"], "--json 'shots' is a folder: give a file, or '-'"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_options_are_one_line(refused, shots, tiny_folder, options, words):
    model = [] if "--model" in options else ["--model", tiny_folder]
    line = refused("detect", "shots/a.jpg", "dog", *model, *options)
    assert line.startswith("glip") and words in line


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompt '' names nothing: write what to look for, such as 'a red bus. a cyclist'"),
        (" . ", "names nothing"),
        ("cat. \u200b. dog", "phrase '\\u200b' yields no token: "),
        (
            "word " * 300,
            "name 'word word word word word word word word ' needs 302 tokens, the model reads 256: shorten it",
        ),
        ("cat \udcff", "prompt 'cat \\udcff' holds characters that are not UTF-8"),
    ],
)
def test_wrong_prompts_are_one_line(refused, shots, tiny_folder, prompt, words):
    assert words in refused("detect", "shots/a.jpg", prompt, "--model", tiny_folder)


def test_places_without_images_are_one_line(refused, workplace):
    (workplace / "empty").mkdir()
    assert "'empty' holds no image: give files that end in .bmp, .gif, .jpeg, .jpg" in refused("detect", "empty", "dog")
    assert "'*.jpg' holds no image" in refused("detect", "*.jpg", "dog")


def test_half_a_command_is_one_line(refused):
    assert "glip: the following arguments are required: VERB (see glip --help)" in refused()
    assert "the following arguments are required: IMAGE... PROMPT (see glip detect --help)" in refused("detect")
    assert "nothing to look for: give words after the images" in refused("detect", "a.jpg")
    assert "invalid choice: 'detct'" in refused("detct", "a.jpg")


def test_options_may_stand_anywhere(glip_, tiny_folder, shots):
    code, out, _ = glip_("detect", "--json", "-", "shots/a.jpg", "shots/b.png", "--model", tiny_folder, "dog")
    assert code == 0 and len(out.splitlines()) == 2 and json.loads(out.splitlines()[0])["phrases"] == ["dog"]


def test_config_is_printed(glip_):
    code, out, err = glip_("config", "tiny", "train.steps=7", "model.name=mine")
    assert code == 0 and err == ""
    assert "name: mine" in out and "  steps: 7" in out


def test_printed_config_is_a_config(glip_, workplace):
    (workplace / "mine.yaml").write_text(glip_("config", "pretrain/nano")[1])
    assert load_config("mine.yaml") == load_config("pretrain/nano")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nano"], "config 'nano': no such file"),
        (["glip_tt"], "(did you mean 'glip_t'?)"),
        (["tiny", "model.visoin.kind=swin"], "model.visoin: no such key (did you mean 'vision'?). Known keys: name,"),
        (["tiny", "train.steps=ten"], "train.steps: expected int, got 'ten'"),
        (["tiny", "train.steps"], "override 'train.steps' is not key.path=value"),
        (["tiny", "train.schedule=cosin"], "'cosin' is not one of 'step', 'cosine' (did you mean 'cosine'?)"),
        (["broken.yaml"], "broken.yaml: not valid YAML"),
    ],
)
def test_wrong_configs_are_one_line(refused, workplace, arguments, words):
    (workplace / "broken.yaml").write_text("model: {vision: [\n- x")
    line = refused("config", *arguments)
    assert line.startswith("glip config: ") and words in line
    assert refused("train", *arguments).startswith("glip train: ")


def test_convert(glip_, tiny_folder, workplace):
    code, out, _ = glip_("convert", tiny_folder, "again")
    assert code == 0 and out.startswith("again: tiny, 6.5 M parameters")
    assert names(workplace / "again") == ["config.json", "model.safetensors", "vocab.txt"]
    assert (workplace / "again" / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()


def test_convert_of_nothing_is_one_line(refused):
    assert "model 'nowhere.pth' is not known and no such path is there" in refused("convert", "nowhere.pth", "again")


def test_interrupted(glip_, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("glip.cli.config.run", interrupted)
    code, _, err = glip_("config", "tiny")
    assert code == 130 and err.strip() == "interrupted; run the same command again to go on"


def test_files_that_cannot_be_written_are_one_line(refused, shots, tiny_folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out/a.jpg")

    monkeypatch.setattr("glip.visualize.save_image", full)
    assert "No space left on device" in refused("detect", "shots/a.jpg", "dog", "--model", tiny_folder)


@pytest.mark.slow
def test_a_plain_terminal_and_absent_packages(workplace, tiny_folder, image):
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
