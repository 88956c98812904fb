"""What the documentation names exists: files, links, headings, symbols, options; its prose is wrapped."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import ROOT

from glip.cli.main import main

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
WIDTH = 100
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
_CODE = re.compile(r"`([^`]+)`")
_PATH = re.compile(r"(?<![\w/.-])(?:glip|tools|tests|configs|docs)/[\w/.*-]*\w\.[a-z]+\b")
_MODULE = re.compile(r"([\w/]+\.py)(?:: ([\w.]+))?")
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
    text = page.read_text(encoding="utf-8")
    missing = [path for path in _PATH.findall(text) if not list(ROOT.glob(path))]
    assert not missing


def test_named_modules_and_symbols_exist(page):
    sources = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("*/**/*.py")}
    for code in _CODE.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if page.name == "CHANGELOG.md" or not (named := _MODULE.fullmatch(" ".join(code.split()))):
            continue
        file, symbol = named.groups()
        homes = [text for path, text in sources.items() if f"/{path.relative_to(ROOT).as_posix()}".endswith(f"/{file}")]
        assert homes, code
        assert any(re.search(rf"\b{(symbol or '').split('.')[-1]}\b", text) for text in homes), code


def test_prose_is_wrapped(page):
    assert not [line for line in prose(page) if len(line) > WIDTH]


def test_options_page_is_what_the_command_prints(capsys):
    with pytest.raises(SystemExit):
        main(["config", "--explain"])
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page.endswith(capsys.readouterr().out.strip("\n") + "\n"), "write it again: glip config --explain"
