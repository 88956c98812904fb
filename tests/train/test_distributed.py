"""Two processes equal one: same losses, same weights, and neither waits forever for the other."""

import json
from pathlib import Path

import pytest
import torch
from shared_run import CASES, STEPS, run_case, run_tuning
from small_runs import in_two_processes, metrics

from glip.train.distributed import Group, process_group

MODES = ("prompt", "lora", "full")
PROGRAM = Path(__file__).with_name("shared_run.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The runs of two processes, and in ``alone`` the same steps in one."""
    folder = tmp_path_factory.mktemp("shared")
    ended = in_two_processes(PROGRAM, folder, *CASES, *MODES, "stop")
    for number, process in enumerate(ended):
        assert "Interrupted: step 3 is done and saved; run the same command again to resume" in process.stderr, (
            process.stderr
        )
        assert json.loads(process.stdout) == {"rank": number, "size": 2, "sum": 3.0}
    for name in CASES:
        (folder / "alone").mkdir(exist_ok=True)
        run_case(folder / "alone", name, Group())
    for mode in MODES:
        run_tuning(folder / "alone", mode, Group())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_follow_one(name, folder):
    both, alone = metrics(folder / name), metrics(folder / "alone" / name)
    assert [row["step"] for row in both] == [row["step"] for row in alone] == list(range(1, STEPS + 1))
    for ours, theirs in zip(both, alone, strict=True):
        assert ours["skipped_steps"] == theirs["skipped_steps"] == (ours["step"] == 4), (
            "one bad process makes the step bad in both"
        )
        for term in ("token", "box", "centerness", "loss", "gradient_norm") if not ours["skipped_steps"] else ():
            assert ours[term] == pytest.approx(theirs[term], rel=1e-5, abs=1e-5), (ours["step"], term)
    assert both[-1]["skipped"] == {"box without area": 2 * STEPS}, "counts are of both processes"
    assert both[-1]["broken"] == 2 * STEPS and alone[-1]["broken"] == STEPS
    progress = torch.load(folder / name / "last.pt", weights_only=True)["progress"]
    assert progress["broken"] == 2 * STEPS and progress["tried"] == (4 + 2) * STEPS
    shipped, single = (torch.load(place / f"{name}.pt", weights_only=True) for place in (folder, folder / "alone"))
    for key, value in single.items():
        torch.testing.assert_close(shipped[key], value, rtol=1e-4, atol=2e-5, msg=key)


@pytest.mark.slow
def test_division_does_not_matter(folder):
    losses = [[row["loss"] for row in metrics(folder / name) if row["loss"]] for name in ("ddp", "accumulated")]
    assert len(losses[0]) == STEPS - 1 and losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_tuning_in_two_processes_follows_one(mode, folder):
    both, alone = (torch.load(place / f"tune-{mode}.pt", weights_only=True) for place in (folder, folder / "alone"))
    for key in ("loss", "validation", "rate"):  # the validation of the main process decides
        theirs = [row[key] for row in alone["history"]]
        assert [row[key] for row in both["history"]] == pytest.approx(theirs, rel=1e-4), key
    assert both["learned"].keys() == alone["learned"].keys()
    for key, value in alone["learned"].items():
        torch.testing.assert_close(both["learned"][key], value, rtol=1e-2, atol=1e-4, msg=key)


@pytest.mark.slow
def test_checkpoints_are_whole_however_many_processes_wrote_them(folder):
    single, split = (torch.load(place / "fsdp" / "last.pt", weights_only=True) for place in (folder / "alone", folder))
    assert len(split["random"]) == 2 and len(single["random"]) == 1
    for key, value in single["optimizer"]["state"].items():
        theirs = split["optimizer"]["state"][key]
        assert value["step"] == theirs["step"] == STEPS - 1 and value["exp_avg"].shape == theirs["exp_avg"].shape
    assert {key: value.shape for key, value in single["ema"].items()} == {
        key: value.shape for key, value in split["ema"].items()
    }


@pytest.mark.slow
def test_a_process_that_fails_ends_the_other(tmp_path):
    first, second = in_two_processes(PROGRAM, tmp_path, "fail")
    assert second.returncode != 0 and "image 'x.jpg' cannot be read" in second.stderr
    assert first.returncode != 0, "it does not wait forever"


@pytest.mark.slow
def test_a_signal_to_one_stops_both_behind_the_same_step(folder):
    assert torch.load(folder / "stop" / "last.pt", weights_only=True)["progress"]["step"] == 3


def test_without_torchrun_there_is_one_process():
    with process_group("cpu") as group:
        assert group == Group() and group.main
        assert group.sum(torch.ones(2)).tolist() == [1.0, 1.0] and group.gather("x") == ["x"]
