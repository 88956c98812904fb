"""A run's state is on disk whole or not at all, and all of it comes back."""

import os
import random
import resource

import numpy as np
import pytest
import torch
from runs import same

from glip.model.weights import fingerprint
from glip.train.averages import RunningMean
from glip.train.checkpoint import LAST, Parts, Progress, capture, read_state, restore, write_state
from glip.train.distributed import Group


def parts(width: int = 3) -> Parts:
    model = torch.nn.Sequential(torch.nn.Linear(width, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    mean = RunningMean(model, 0.9)
    model(torch.randn(4, width)).sum().backward()
    optimizer.step()
    mean.update(model)
    return Parts(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), mean, Group())


def saved(folder, made: Parts, progress: Progress | None = None):
    path = folder / LAST
    write_state(path, capture(made, progress or Progress(step=1), config="{}", start="abc"))
    return path


def draws() -> list[object]:
    return [torch.rand(3), np.random.rand(3).tolist(), random.random()]


def test_everything_comes_back(tmp_path):
    made = parts()
    progress = Progress(step=7, best=0.5, skipped={"box without area": 2}, window={"loss": 1.25}, bad_in_row=1)
    path = saved(tmp_path, made, progress)
    drawn = draws()
    other = parts()
    state = read_state(path)
    assert restore(state, other, path) == progress
    assert same(draws(), drawn), "random numbers go on where they stopped"
    assert same(dict(made.model.state_dict()), dict(other.model.state_dict()))
    assert same(made.mean.means, other.mean.means) and other.mean.updates == 1
    assert same(made.optimizer.state_dict(), other.optimizer.state_dict())
    assert state["config"] == "{}" and state["start"] == "abc"
    assert [file.name for file in tmp_path.iterdir()] == [LAST]


@pytest.mark.parametrize("broken", ["save", "save in torch", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(broken, tmp_path, monkeypatch):
    made = parts()
    before = saved(tmp_path, made).read_bytes()

    def die(*given, **_):
        if broken.startswith("save"):
            given[1].write(b"half of it")
        raise RuntimeError("unexpected pos 64 vs 0") if "torch" in broken else OSError(28, "No space left on device")

    monkeypatch.setattr(torch if broken.startswith("save") else os, broken.split()[0], die)
    with pytest.raises(OSError, match=r"last\.pt' could not be written .*, the one before is whole; [\d,]+ MB") as told:
        saved(tmp_path, made)
    message = str(told.value)
    assert "make room" in message and "run the same command again" in message and "\n" not in message
    assert (tmp_path / LAST).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [LAST], "no half-written file stays"


def test_a_real_failing_write_is_told(tmp_path):
    made = parts()
    before = saved(tmp_path, made).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # writes fail behind 4 KB, as on a full disk
    try:
        with pytest.raises(OSError, match="could not be written"):
            saved(tmp_path, made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / LAST).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_a_kill_left_is_overwritten(tmp_path):
    (tmp_path / f".{LAST}.partial").write_bytes(b"half of it")
    saved(tmp_path, parts())
    assert [file.name for file in tmp_path.iterdir()] == [LAST]


def test_another_model_is_told(tmp_path):
    path = saved(tmp_path, parts())
    with pytest.raises(ValueError, match=r"last\.pt' is of another model .*size mismatch.*train\.output") as told:
        restore(read_state(path), parts(width=5), path)
    assert "\n" not in str(told.value)


def test_another_optimizer_is_told(tmp_path):
    path, made = saved(tmp_path, parts()), parts()
    apart = torch.optim.AdamW([{"params": [p]} for p in made.model.parameters()])
    with pytest.raises(ValueError, match="another model or run"):
        restore(read_state(path), Parts(made.model, apart, made.scaler, None, Group()), path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_broken_checkpoint_is_told(content, tmp_path):
    path = saved(tmp_path, parts())
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(ValueError, match="cannot be read.*remove it to start anew"):
        read_state(path)


@pytest.mark.parametrize("tree", [{"model": {}, "step": 3}, [1, 2]])
def test_a_file_of_another_kind_is_told(tree, tmp_path):
    torch.save(tree, tmp_path / LAST)
    with pytest.raises(ValueError, match="another version or no run's .it has no 'config'"):
        read_state(tmp_path / LAST)


def test_fingerprints_tell_weights_apart():
    weights = dict(parts().model.state_dict())
    other = {**weights, "0.bias": weights["0.bias"] + 1e-7}
    assert fingerprint(weights) == fingerprint({key: value.clone() for key, value in weights.items()})
    assert fingerprint(weights) != fingerprint(other)
    assert fingerprint({"a": torch.ones(2)}) != fingerprint({"b": torch.ones(2)})
