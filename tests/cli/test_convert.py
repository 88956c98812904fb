"""``glip convert``: a checkpoint of the release becomes a folder in glip's format."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small import RELEASED, release_state

from glip.model.weights import load_pretrained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = replace(RELEASED, language=replace(RELEASED.language, vocabulary=300))
    path = tmp_path_factory.mktemp("released") / "glip.pth"
    torch.save({"model": {f"module.{key}": value for key, value in release_state(config).items()}}, path)
    return path


@pytest.mark.parametrize("half", [False, True])
def test_convert(half, checkpoint, tmp_path, command_line):
    flags = ["--half"] if half else []
    code, out, _ = command_line("convert", checkpoint, "first", *flags)
    assert code == 0 and "M parameters" in out
    stored = load_file(tmp_path / "first" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16 if half else torch.float32}
    before, after = (load_pretrained(source).model.state_dict() for source in (checkpoint, tmp_path / "first"))
    rounded = {key: value.half().float() if half else value for key, value in before.items()}
    assert all(torch.equal(value, after[key]) for key, value in rounded.items())
    assert command_line("convert", "first", "second", *flags)[0] == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second, "converting again changes nothing"


@pytest.mark.parametrize("source", ["nowhere.pth", "wrong.pth"])
def test_errors_are_one_line(source, tmp_path, command_line):
    (tmp_path / "wrong.pth").write_text("hello")
    code, _, err = command_line("convert", source, "converted")
    assert code == 2 and err.startswith("glip convert: ") and source in err and err.count("\n") == 1
    assert not (tmp_path / "converted").exists()
