"""Every ``python``, ``sh`` and ``bash`` block of README.md and docs/ is run, in order, as a reader would run it.

Blocks of one file share a namespace and a working folder, in which the project's files can be read (each is a link)
and what the blocks write stays apart. A block that cannot be run here says why in the line above it:
``<!-- not run: reason -->``; one that installs, clones or makes must.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from small import ROOT

_FENCE = re.compile(r"^(?P<above>[^\n]*)\n+```(?P<language>python|sh|bash)\n(?P<code>.*?)^```$", re.M | re.S)
_REASON = re.compile(r"^\s*<!-- not run: \S.* -->\s*$")
_NEVER = re.compile(r"^\s*\$?\s*(make|git clone|(python3? -m )?pip install)\b", re.MULTILINE)
_SHARED = ("docs", "configs", "glip", "tools", "tests")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, whether it says that it is not run, and its line in the file."""

    language: str
    code: str
    excused: bool
    line: int


def documents() -> list[Path]:
    return [file for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if file.is_file()]


def blocks(text: str) -> list[Block]:
    text = f"\n\n{text}"
    return [
        Block(
            found["language"],
            found["code"],
            bool(_REASON.match(found["above"])),
            text[: found.start("code")].count("\n") - 2,
        )
        for found in _FENCE.finditer(text)
    ]


def run_python(block: Block, file: Path, namespace: dict[str, object]) -> None:
    code = "\n" * block.line + block.code
    exec(compile(code, str(file), "exec"), namespace)


def run_shell(block: Block, file: Path, folder: Path) -> None:
    lines = block.code.splitlines()
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    # with prompts shown, the other lines are what comes out
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(typed or lines)],
        cwd=folder,
        env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{file.name}, line {block.line}:\n{block.code}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("file", documents() or [None], ids=lambda file: file.name if file else "none")
def test_blocks_run(file, tmp_path, monkeypatch):
    found = blocks(file.read_text(encoding="utf-8")) if file else []
    if not [block for block in found if not block.excused]:
        pytest.skip("no block to run")
    for name in _SHARED:
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in found:
        if block.excused:
            continue
        if block.language == "python":
            run_python(block, file, namespace)
        else:
            run_shell(block, file, tmp_path)


@pytest.mark.parametrize("file", documents() or [None], ids=lambda file: file.name if file else "none")
def test_blocks_that_install_say_why_they_are_not_run(file):
    found = blocks(file.read_text(encoding="utf-8")) if file else []
    shell = [block for block in found if block.language != "python" and not block.excused]
    silent = [block.line for block in shell if _NEVER.search(block.code)]
    assert not silent, f"{file}: the blocks at lines {silent} need a line <!-- not run: reason --> right above"


def test_blocks_are_found():
    text = "# x\n```python\na = 1\n```\n\n<!-- not run: needs a network -->\n```sh\nmake demo\n```\n```text\nno\n```\n"
    first, second = blocks(text)
    assert (first.language, first.code, first.excused, first.line) == ("python", "a = 1\n", False, 2)
    assert (second.language, second.excused) == ("sh", True) and _NEVER.search(second.code)
