"""A run's state is on disk whole or not at all."""

import os

import pytest
import torch

from glip.train.checkpoint import NAME, load_state, save_state


def parts(width: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_everything_comes_back(tmp_path):
    model, optimizer = parts()
    path = save_state(tmp_path / "new" / "run", model, optimizer, 7)
    drawn = torch.rand(3)
    other, stepped = parts()
    assert load_state(path, other, stepped) == 7
    assert torch.equal(torch.rand(3), drawn), "random numbers go on where they stopped"
    assert torch.equal(model.weight, other.weight)
    mine, theirs = optimizer.state_dict()["state"][0], stepped.state_dict()["state"][0]
    assert torch.equal(mine["exp_avg"], theirs["exp_avg"]) and mine["step"] == theirs["step"]


@pytest.mark.parametrize("broken", ["save", "fsync", "replace"])
def test_a_write_that_dies_leaves_the_old_file(broken, tmp_path, monkeypatch):
    model, optimizer = parts()
    before = save_state(tmp_path, model, optimizer, 1).read_bytes()

    def die(*given, **_):
        if broken == "save":
            given[1].write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch if broken == "save" else os, broken, die)
    with pytest.raises(OSError, match="no space"):
        save_state(tmp_path, model, optimizer, 2)
    assert (tmp_path / NAME).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [NAME], "no half-written file stays"


def test_another_model_is_told(tmp_path):
    path = save_state(tmp_path, *parts(), 1)
    with pytest.raises(ValueError, match=r"last\.pt' is of another model .*size mismatch.*train\.output") as told:
        load_state(path, *parts(width=5))
    assert "\n" not in str(told.value)


def test_another_optimizer_is_told(tmp_path):
    path = save_state(tmp_path, *parts(), 1)
    model, _ = parts()
    with pytest.raises(ValueError, match="another model or run"):
        load_state(path, model, torch.optim.AdamW([{"params": [p]} for p in model.parameters()]))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_broken_checkpoint_is_told(content, tmp_path):
    path = save_state(tmp_path, *parts(), 1)
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(ValueError, match="cannot be read.*remove it to start anew"):
        load_state(path, *parts())


def test_a_file_of_another_kind_is_told(tmp_path):
    torch.save({"model": {}}, tmp_path / NAME)
    with pytest.raises(ValueError, match="another model or run"):
        load_state(tmp_path / NAME, *parts())
