"""The wheel is whole: built, installed elsewhere and run there, it detects without the project's folder."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import extras
import pytest
from small import ROOT, TINY, VOCABULARY, scenes, seeded

from glip.model.weights import ASSETS, BUNDLED, save_pretrained


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what belongs to the package, so that no build folder lies about in the project."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", *package_files()]
    for name in (name for name in files if (ROOT / name).is_file()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), cwd=source)
    (built,) = folder.glob("glip-*.whl")
    return built


def package_files() -> list[str]:
    found = [file for top in ("glip", "configs") for file in (ROOT / top).rglob("*") if file.is_file()]
    return [str(file.relative_to(ROOT)) for file in found if "__pycache__" not in file.parts]


def test_every_package_folder_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = [file.parent.relative_to(ROOT) for file in (ROOT / "glip").rglob("__init__.py")]
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in folders), "glip.configs"])
    assert listed == sorted(listed)


def test_every_extra_has_a_use_that_shows_that_it_installs_alone():
    """``make test-extras`` installs each one alone and runs its use."""
    assert not set(extras.listed()) - set(extras.USES)
    assert all(extras.command_of(extra) for extra in extras.listed())


@pytest.mark.slow
def test_wheel_holds_everything(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {name if name.startswith("glip/") else f"glip/{name}" for name in package_files()}
    assert wanted <= inside, wanted - inside
    assert {"glip/py.typed", "glip/configs/tiny.yaml", "glip/configs/pretrain/nano.yaml"} <= inside
    assert "glip/assets/glip-nano/vocab.txt" in inside
    assert not [name for name in inside if name.startswith(("tests/", "tools/", "docs/"))]


@pytest.mark.slow
def test_installed_wheel_detects(wheel, tmp_path):
    target = tmp_path / "installed"
    options = ["-q", "--no-deps", "--no-index", "--target", str(target)]
    run(sys.executable, "-m", "pip", "install", *options, str(wheel), cwd=tmp_path)
    image, _ = scenes()[0]
    image.save(tmp_path / "drawn.png")
    model = BUNDLED
    if not (ASSETS / BUNDLED / "model.safetensors").is_file():
        model = str(tmp_path / "model")
        save_pretrained(model, seeded(TINY), TINY, VOCABULARY)
    away = {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}
    where = run(sys.executable, "-c", "import glip; print(glip.__file__)", cwd=tmp_path, **away)
    assert where.startswith(str(target)), "the installed package is the one that runs"
    command = ["detect", "drawn.png", "red circle", "--model", model, "--device", "cpu", "--format", "jsonl"]
    run(sys.executable, "-m", "glip", *command, cwd=tmp_path, **away)
    record = json.loads((tmp_path / "out/results/detections.jsonl").read_text())
    assert record["phrases"] == ["red circle"] and (tmp_path / "out" / "drawn.png").is_file()
    assert model != BUNDLED or record["detections"], "the bundled model finds the circle"
    assert "name: tiny" in run(sys.executable, "-m", "glip", "config", "tiny", cwd=tmp_path, **away)
