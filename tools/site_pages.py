"""The hook of ``mkdocs.yml``: pages made from README.md and its neighbours, the verbs' parsers and the docstrings.

Links are written for GitHub. On the site a link to a module leads to its reference, and one to another file that has no
page there is plain text.
"""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import glip
from glip.cli.arguments import VERBS, build_parser

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "glip").rglob("[!_]*.py"))
_FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")
_BADGE = re.compile(r"^\[!\[.*\n", re.M)  # images of another host
_MARKUP = re.compile(r"([\\|*_<>`\[\]])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the sections of the navigation that are generated."""
    for section in config.nav or []:
        if "Commands" in section:
            section["Commands"] += [f"cli/{verb}.md" for verb in VERBS]
        elif "Reference" in section:
            rooms: dict[str, list[str]] = {}
            for module in MODULES:
                rooms.setdefault(module.rpartition("/")[0].replace("/", "."), []).append(reference(module))
            section["Reference"] += [{room: rooms[room]} for room in sorted(rooms)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in ROOT_PAGES}
    made = {site_path(name): _BADGE.sub("", text) for name, text in texts.items()}
    made |= {"cli/index.md": overview(), **{f"cli/{verb}.md": verb_page(verb) for verb in VERBS}}
    public = [f"- [`glip.{name}`][{home}.{name}]" for name, home in glip._HOMES.items()]
    made["reference/index.md"] = "\n".join(["# Reference", "", "The public names:", "", *public, ""])
    names = {module: module.removesuffix(".py").replace("/", ".") for module in MODULES}
    made |= {reference(module): f"# {name}\n\n::: {name}\n" for module, name in names.items()}
    for path, text in made.items():
        files.append(File.generated(config, str(path), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let the links of a page lead to pages of the site."""
    here = PurePosixPath(page.file.src_uri)
    source = ROOT / ("README.md" if str(here) == "index.md" else here if (ROOT / here).is_file() else f"docs/{here}")

    def link(found: re.Match[str]) -> str:
        image, label, target, heading = found.groups("")
        if not target:
            return found[0]
        path = site_path(os.path.relpath((source.parent / target).resolve(), ROOT))
        if path is None:
            return label
        return f"{image}[{label}]({os.path.relpath(path, here.parent)}{heading})"

    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in _FENCE.split(markdown))


def site_path(name: str) -> str | None:
    """Where a file of the project is on the site, relative to the site's root."""
    if name in ROOT_PAGES:
        return "index.md" if name == "README.md" else name
    if name in MODULES:
        return reference(name)
    return name.removeprefix("docs/") if name.startswith(("docs/", "cli/")) else None


def reference(module: str) -> str:
    """The page of a module such as ``glip/data/coco.py``."""
    return f"reference/{module.removeprefix('glip/').removesuffix('.py')}.md"


def overview() -> str:
    """The table of all verbs."""
    rows = [f"| [`glip {verb}`]({verb}.md) | {plain(summary)} |" for verb, (summary, _) in VERBS.items()]
    return "\n".join(["# Commands", "", "| command | what it does |", "|---|---|", *rows, ""])


def verb_page(verb: str) -> str:
    """The help of a verb as a page."""
    (verbs,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return "\n".join(sections(verbs.choices[verb], "#"))


def sections(parser: argparse.ArgumentParser, level: str) -> Iterator[str]:
    """A parser's usage and tables of its arguments, then those of the parsers below it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield from (f"{level} {parser.prog}", "", plain(parser.description or ""), "")
    yield from ("```text", parser.format_usage().strip(), "```", "")
    for group in parser._action_groups:
        own = [action for action in group._group_actions if action not in below]
        rows = [f"| {invocation(action)} | {plain(action.help or '')} |" for action in own]
        if rows:
            yield from (
                f"{level}# {plain(str(group.title).capitalize())}",
                "",
                "| argument | meaning |",
                "|---|---|",
                *rows,
                "",
            )
    for action in below:
        for name, own in action.choices.items():
            own.description = next(choice.help for choice in action._choices_actions if choice.dest == name)
            yield from sections(own, f"{level}#")


def invocation(action: argparse.Action) -> str:
    """How an argument is written."""
    value = action.metavar or (f"{{{', '.join(action.choices)}}}" if action.choices else action.dest.upper())
    words = [", ".join(action.option_strings), "" if action.nargs == 0 else str(value)]
    return " ".join(f"`{word}`" for word in words if word)


def plain(text: str) -> str:
    """Text of a help line as Markdown; a page that it names is a link."""
    text = _MARKUP.sub(r"\\\1", text.replace("%%", "%"))
    return re.sub(r"docs/([\w\\-]+)\.md", lambda found: f"[{found[1]}](../{found[1]}.md)".replace("\\", ""), text)
