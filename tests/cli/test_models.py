"""The table of checkpoints is true and in the docs; a downloaded file is compared with its checksum."""

import re
from dataclasses import replace

import pytest
import torch
from small import ROOT, SMALL, release_state, saved, to_mmdet

from glip.model import zoo
from glip.model.glip import build
from glip.model.weights import list_pretrained, pretrained_config
from glip.provenance import sha256


@pytest.mark.parametrize("flags", [(), ("--files",)])
def test_the_page_has_the_printed_table(flags, command_line):
    code, out, _ = command_line("models", *flags)
    assert code == 0 and out in (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), "copy it into the page"


def test_names_sizes_and_checksums_are_those_of_the_models():
    rows = {one.name: one for one in zoo.checkpoints() if one.name}
    assert tuple(rows) == list_pretrained()
    for name in ("glip-nano", "glip-t-a"):
        with torch.device("meta"):
            parameters = sum(value.numel() for value in build(pretrained_config(name)).parameters())
        assert rows[name].parameters == round(parameters / 1e6, 1), name
    assert all(re.fullmatch(r"([0-9a-f]{8}){,8}", one.sha256) for one in zoo.checkpoints())
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(glip-[\w-]+)` \|.*?\| ([\d.]+)", front, re.M))
    assert stated == {name: one.coco.split(" ")[0] for name, one in rows.items()}


@pytest.mark.parametrize("file", ["glip_a_tiny_o365.pth", "glip_tiny_c_mmdet-2fc427dd.pth"])
@pytest.mark.parametrize("verb", ["detect", "convert"])
def test_a_file_under_a_published_name_has_the_published_checksum(file, verb, command_line, tmp_path, monkeypatch):
    state = release_state(SMALL)
    path = saved(to_mmdet(state) if "mmdet" in file else state, tmp_path, file)
    arguments = {"detect": (ROOT / "docs/images/street.png", "dog", "--model", file), "convert": (file, "out")}[verb]
    code, _, err = command_line(verb, *arguments)
    row = next(one for one in zoo.checkpoints() if one.file == file)
    stated = f"'{file}' has sha256 {sha256(path)[:12]}..., and {file} as published {row.sha256[:12]}: download it again"
    assert code == 2 and stated in err and err.count("\n") == 1
    monkeypatch.setattr(zoo, "checkpoints", lambda: [replace(row, sha256=sha256(path)[: len(row.sha256)])])
    assert verb == "detect" or command_line(verb, *arguments)[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("label", "glip-nano", "none", "--names", "cat", "--out", "o"),
        ("tune", "glip-nano", "none.json"),
        ("self-train", "none", "none.jsonl", "--teacher", "glip-nano", "--out", "o"),
        ("serve", "--port", "0", "--task", "a=none.safetensors"),
        ("demo", "--port", "0", "--task", "a=none.safetensors"),
    ],
)
def test_verbs_say_once_what_glip_nano_does_not_know(words, command_line):
    if words[0] in ("serve", "demo"):
        pytest.importorskip({"serve": "fastapi", "demo": "gradio"}[words[0]])
    code, out, err = command_line(*words)
    first, second = err.splitlines()
    assert code == 2 and not out and second.startswith(f"glip {words[0]}: ")
    assert first.startswith("glip-nano was trained on drawings, ") and "use glip-t (3.7 GB" in first
