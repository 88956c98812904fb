"""``glip convert``: a checkpoint of the release becomes a folder of ours."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small import RELEASED, release_state

from glip.cli.main import main
from glip.model.weights import load_pretrained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = replace(RELEASED, language=replace(RELEASED.language, vocabulary=300))
    path = tmp_path_factory.mktemp("released") / "glip.pth"
    torch.save({"model": {f"module.{key}": value for key, value in release_state(config).items()}}, path)
    return path


def glip(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    return int(exit_.value.code)


@pytest.mark.parametrize("half", [False, True])
def test_convert(half, checkpoint, tmp_path, capsys):
    assert glip("convert", str(checkpoint), str(tmp_path / "ours"), *(["--half"] if half else [])) == 0
    assert "M parameters" in capsys.readouterr().out
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16 if half else torch.float32}
    before, after = (load_pretrained(source).model.state_dict() for source in (checkpoint, tmp_path / "ours"))
    rounded = {key: value.half().float() if half else value for key, value in before.items()}
    assert all(torch.equal(value, after[key]) for key, value in rounded.items())


def test_convert_again_is_the_same(checkpoint, tmp_path):
    assert glip("convert", str(checkpoint), str(tmp_path / "a"), "--half") == 0
    assert glip("convert", str(tmp_path / "a"), str(tmp_path / "b"), "--half") == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize(("source", "told"), [("nowhere.pth", "is not known"), ("wrong.pth", "it is no checkpoint")])
def test_errors_are_one_line(source, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.pth").write_text("hello")
    assert glip("convert", source, "ours") == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("glip convert: ") and told in said and source in said and "\n" not in said
    assert not (tmp_path / "ours").exists()
