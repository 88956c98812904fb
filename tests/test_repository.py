"""What surrounds the code: the site, workflows and forms, minimal versions, deprecated names, ``glip env``."""

import argparse
import ast
import configparser
import getpass
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import house
import pytest
from small import ROOT

import glip
from glip.cli import env
from glip.cli.arguments import VERBS

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
REMOVAL = re.compile(r"removed in glip (\d+)\.(\d+)\b")


def tool(name: str, *words: str | Path) -> None:
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([program, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    paths = {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"""(<link[^>]*href|<(script|img|iframe)[^>]*src)=["']?(https?:)?//""", text), page
    for verb in VERBS:
        assert f"glip {verb}" in (tmp_path / "cli" / verb / "index.html").read_text(encoding="utf-8")
    reference = (tmp_path / "reference" / "detector" / "index.html").read_text(encoding="utf-8")
    assert "from_pretrained" in reference and (tmp_path / "search" / "search_index.json").is_file()
    assert "reference/detector/" in (tmp_path / "walkthrough" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("dependabot", [GITHUB / "dependabot.yml"]),
        ("github-issue-forms", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*_*.yml"))),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
        ("citation-file-format", [ROOT / "CITATION.cff"]),
    ],
)
def test_files_for_github_follow_their_schema(schema, files):
    tool("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


def test_workflows_are_safe():
    """Pinned actions, least permissions, no injection: zizmor's rules; timeouts are ours."""
    tool("zizmor", "--offline", "--quiet", "--min-severity", "low", GITHUB)
    for file in WORKFLOWS:
        text = file.read_text(encoding="utf-8")
        assert "\npermissions: {}\n" in text, file
        assert text.count("runs-on:") == text.count("timeout-minutes:"), file
        for action in re.findall(r"uses: (?!\./)(.*)", text):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def minima(extra: str = "") -> dict[str, str]:
    """The minimal versions that setup.cfg states: of what glip requires, or of an extra."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.extras_require"][extra] if extra else setup["options"]["install_requires"]
    return dict(re.findall(r"^([\w.-]+)(?:\[\w+\])? >= ([\d.]+)", lines, re.M))


def test_environment_and_tested_minimum_are_those_of_setup():
    stated = minima()
    conda = (ROOT / "environment.yml").read_text(encoding="utf-8").replace("pytorch >=", "torch >=")
    assert {name: number for name, number in stated.items() if name != "lvis"} == dict(
        re.findall(r"^  - ([\w.-]+) >=([\d.]+)$", conda.replace("  - python >=3.11\n", ""), re.M)
    )
    tested = dict(re.findall(r"^([\w.-]+)==([\d.]+)", (GITHUB / "minimal.txt").read_text(encoding="utf-8"), re.M))
    promised = {**stated, **minima("test")}
    for name in promised.keys() - {"transformers", "peft"}:  # their extras need a later huggingface_hub
        found, number = tested[name.replace("_", "-").lower()], promised[name]
        assert f"{found}.0.".startswith(f"{number}."), f"{name} {found} is tested, {number} is promised"


def overdue(source: str, version: str) -> Iterator[str]:
    """Deprecated names whose time is over, or that do not say when it is."""
    for node in ast.walk(ast.parse(source)):
        for mark in getattr(node, "decorator_list", []):
            if isinstance(mark, ast.Call) and ast.unparse(mark.func).split(".")[-1] == "deprecated":
                removal = REMOVAL.search(ast.literal_eval(mark.args[0]))
                if not removal or tuple(map(int, removal.groups())) <= tuple(map(int, version.split(".")[:2])):
                    yield node.name


@pytest.mark.parametrize(
    ("message", "version", "due"),
    [
        ("use g; removed in glip 0.3", "0.2.9", []),
        ("use g; removed in glip 0.3", "0.3.0", ["f"]),
        ("use g; removed in glip 0.3", "1.0.0", ["f"]),
        ("use g; removed in glip 0.10", "0.9.0", []),
        ("use g", "0.1.0", ["f"]),
    ],
)
def test_removal_is_due_with_its_version(message, version, due):
    assert list(overdue(f"@deprecated({message!r})\ndef f(): ...\n", version)) == due


def test_no_deprecated_name_has_outlived_its_removal():
    sources = {file: (house.PACKAGE / file).read_text(encoding="utf-8") for file in house.package_files()}
    assert not [f"{file}: {name}" for file, text in sources.items() for name in overdue(text, glip.__version__)]


def test_env_names_versions_and_no_user(capsys, monkeypatch):
    home = str(Path.home())
    monkeypatch.setenv("HF_HOME", f"/data/{getpass.getuser()}/hf")
    monkeypatch.setenv("GLIP_DATA", f"{home}/sets")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert env.run(argparse.Namespace(json=False)) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("torch ", "threads", "allocator", "cache", "HF_HOME /data/USER/hf", "~/sets"))
    env.run(argparse.Namespace(json=True))
    found = json.loads(printed := capsys.readouterr().out)
    assert found["glip"].startswith(glip.__version__) and "torchvision" in found["packages"]
    assert home not in text + printed and "secret" not in text + printed


def test_env_of_a_user_without_a_name(capsys, monkeypatch):
    """A container that runs as a number (docker run --user 1234): neither a name nor a home folder is known."""

    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 1234")

    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert env.run(argparse.Namespace(json=False)) == 0 and "cache" in capsys.readouterr().out
