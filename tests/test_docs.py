"""The documentation: what it names exists (files, links, headings, symbols, options), and its code blocks run.

Every ``python``, ``sh`` and ``bash`` block of README.md and docs/ is run, in order, as a reader would run it. Blocks of
one file share a namespace and a working folder, in which the project's files can be read (each is a link) and what the
blocks write stays apart. A block that cannot be run here says why in the line above it: ``<!-- not run: reason -->``;
one that installs, clones or makes must.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from small import ROOT

from glip.cli.arguments import build_parser
from glip.cli.main import main

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
WIDTH = 100
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
_CODE = re.compile(r"`([^`]+)`")
_PATH = re.compile(r"(?<![\w/.-])(?:glip|tools|tests|configs|docs)/[\w/.*-]*\w\.[a-z]+\b")
_MODULE = re.compile(r"([\w/]+\.py)(?:: ([\w.]+))?")
_COMMAND = re.compile(r"(?:^(?:\w+=\S+ )*|-m |\$ )glip ([a-z][a-z-]*)(?: (list|check|show|convert)\b)?")
_KEY = re.compile(r"(?<![\w/.])(?:model|data|train)\.(?!yaml)[a-z_]+(?:\.[a-z_]+)?(?=[=`:\s])(?!\.)")
_BLOCK = re.compile(r"^(?P<above>[^\n]*)\n+```(?P<language>python|sh|bash)\n(?P<code>.*?)^```$", re.M | re.S)
_REASON = re.compile(r"^\s*<!-- not run: \S.* -->\s*$")
_NEVER = re.compile(r"^\s*\$?\s*(make|git clone|(python3? -m )?pip install)\b", re.MULTILINE)
_GENERATED = {"options.md": "## model", "gpu.md": "## Last figures"}  # from this heading on, programs write the page


def prose(page: Path) -> Iterator[str]:
    """The lines of a page that people write and wrap: no code, tables, comments, headings, images or long links."""
    text = page.read_text(encoding="utf-8").split(_GENERATED.get(page.name, "\0"))[0]
    for line in _FENCE.sub("", text).splitlines():
        if not line.startswith(("|", "#", "!", "<!--")) and " " in line.strip():
            yield line


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def flags_of(verb: str, what: str) -> set[str]:
    """The flags of a verb, such as ``data check``."""
    parser = build_parser()
    for word in filter(None, (verb, what)):
        choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if choices:
            parser = choices[0][word]
    return set(parser._option_string_actions)


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_links_lead_to_files_and_headings(page):
    for target, heading in _LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not heading or heading[1:] in anchors(file), heading


def test_named_files_exist(page):
    if page.name == "CHANGELOG.md":
        return  # it also names what is gone
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"))  # markers of generated tables
    missing = [path for path in _PATH.findall(text) if not list(ROOT.glob(path))]
    assert not missing


@pytest.mark.slow
def test_named_modules_and_symbols_exist(page):
    sources = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("*/**/*.py")}
    for code in _CODE.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if page.name == "CHANGELOG.md" or not (named := _MODULE.fullmatch(" ".join(code.split()))):
            continue
        file, symbol = named.groups()
        homes = [text for path, text in sources.items() if f"/{path.relative_to(ROOT).as_posix()}".endswith(f"/{file}")]
        assert homes, code
        assert any(re.search(rf"\b{(symbol or '').split('.')[-1]}\b", text) for text in homes), code


def test_flags_of_commands_exist(page):
    if page.name == "CHANGELOG.md":
        return
    text = page.read_text(encoding="utf-8")
    for command in [
        *_CODE.findall(_FENCE.sub("", text)),
        *"".join(_FENCE.findall(text)).replace("\\\n", "").splitlines(),
    ]:
        if found := _COMMAND.search(" ".join(command.split())):
            known = flags_of(*found.groups(""))
            assert set(re.findall(r" (--[a-z][a-z-]*)", found.string[found.start() :])) <= known, command


def test_config_keys_exist(page):
    options = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    named = set(_KEY.findall(page.read_text(encoding="utf-8"))) if page.name != "CHANGELOG.md" else set()
    assert not {key for key in named if f"`{key}`" not in options and f"\n## {key}\n" not in options}


def test_prose_is_wrapped(page):
    assert not [line for line in prose(page) if len(line) > WIDTH], f"wrap at {WIDTH} columns"


def test_options_page_is_what_the_command_prints(capsys):
    with pytest.raises(SystemExit):
        main(["config", "--explain"])
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page.endswith(capsys.readouterr().out.strip("\n") + "\n"), "write it again: glip config --explain"


# ---- blocks of code


class Block(NamedTuple):
    """A fenced block: its language, its code, whether it says that it is not run, and its line in the file."""

    language: str
    code: str
    excused: bool
    line: int


def blocks(text: str) -> list[Block]:
    found = []
    for one in _BLOCK.finditer(text := f"\n\n{text}"):
        line = text[: one.start("code")].count("\n") - 2
        found.append(Block(one["language"], one["code"], bool(_REASON.match(one["above"])), line))
    return found


def run_shell(block: Block, folder: Path) -> None:
    """Run the lines; where some have a prompt only these, since the others are what comes out."""
    lines = block.code.splitlines()
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(typed or lines)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"line {block.line}:\n{block.code}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_blocks_run(page, tmp_path, monkeypatch):
    found = [block for block in blocks(page.read_text(encoding="utf-8")) if not block.excused]
    if page.name in ("CHANGELOG.md", "CONTRIBUTING.md") or not found:
        pytest.skip("no block to run")
    for name in ("docs", "configs", "glip", "tools", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in found:
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
        else:
            run_shell(block, tmp_path)


def test_blocks_that_install_say_why_they_are_not_run(page):
    found = blocks(page.read_text(encoding="utf-8"))
    silent = [block.line for block in found if not block.excused and _NEVER.search(block.code)]
    assert page.name == "CONTRIBUTING.md" or not silent, "these need a line <!-- not run: reason --> right above"


def test_blocks_are_found():
    text = "# x\n```python\na = 1\n```\n\n<!-- not run: needs a network -->\n```sh\nmake demo\n```\n```text\nno\n```\n"
    first, second = blocks(text)
    assert (first.language, first.code, first.excused, first.line) == ("python", "a = 1\n", False, 2)
    assert (second.language, second.excused) == ("sh", True) and _NEVER.search(second.code)
