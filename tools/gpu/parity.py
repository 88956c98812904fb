"""Does a GPU compute what the 2022 release computes? The golden cases in float32, and the tests marked ``gpu``.

The release was run on a CPU. Its tolerances are several times its own float32 noise there; a GPU adds in another
order and may take four times as much.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial

import golden_compare as compare
import torch
from golden_cases import BIG_NAMES, TINY_NAMES, TRAIN_NAMES, Case, case_path, load_case
from golden_recorder import run_case, run_training_case

from gpu.measure import Measurement, Missing, Row, Setup, precision

TOLERANCE_FACTOR = 4.0  # on a GPU
_STAGES = {
    "lang": "text",
    "head_in": "prompt",
    "body": "image encoder",
    "fpn": "pyramid",
    "tower": "tower",
    "logits": "logits",
    "bbox": "boxes",
    "ctr": "centerness",
    "anchors": "anchors",
}
_TABLE = "Golden cases: largest deviation from the 2022 release"
_TRAINING = "Golden training cases"
_TESTS = "Tests marked gpu"


def measurements(setup: Setup) -> Iterator[Measurement]:
    """Each golden case on the CPU and on the device, then the tests that need a device."""
    for name in case_names(setup):
        yield Measurement(name, _TABLE, partial(inference_rows, name, setup))
    for name in TRAIN_NAMES[-2:] if setup.tiny else TRAIN_NAMES:
        yield Measurement(name, _TRAINING, partial(training_rows, name, setup))
    yield Measurement("pytest -m gpu", _TESTS, partial(test_rows, setup))


def case_names(setup: Setup) -> tuple[str, ...]:
    """The inference cases; a tiny check leaves out the big ones."""
    return TINY_NAMES if setup.tiny else (*TINY_NAMES, *BIG_NAMES)


def stored_case(name: str) -> Case:
    """A case from its file.

    Raises:
        Missing: the file is not on this machine.
    """
    if not case_path(name).is_file():
        raise Missing(f"{case_path(name).name} is not on this machine (tools/check_gpu.py --pack brings it)")
    return load_case(name)


def inference_rows(name: str, setup: Setup) -> Iterator[Row]:
    """Every stage's deviation and which detections differ, on the device and on the CPU; then the tolerances."""
    case = stored_case(name)
    size = compare.SIZE_OF[case.form]
    for device in dict.fromkeys((setup.device, "cpu")):
        with precision("float32", device):
            run = run_case(case, device)
        row: Row = {"case": name, "device": device}
        share = 0.0
        for quantity, title in _STAGES.items():
            gaps = compare.deviations(run, quantity)
            row[title] = max(gaps.values()) if gaps else None
            share = max(share, *(gap / compare.TOLERANCES[quantity][size] for gap in gaps.values()), 0.0)
        apart = [compare.detections_apart(run, index) for index in range(len(run.detections))]
        lost, gained, count = (sum(column) for column in zip(*apart, strict=True))
        row |= {"deviation / tolerance": share, "detections lost, gained": f"{lost}, {gained} of {count}"}
        allowed_apart = max(1, count // 100) * len(apart)
        yield {**row, "passed": share <= factor(device) and max(lost, gained) <= allowed_apart}
    tolerances = {title: compare.TOLERANCES[quantity][size] for quantity, title in _STAGES.items()}
    yield {"case": name, "device": "tolerance of the CPU", **tolerances}


def training_rows(name: str, setup: Setup) -> Iterator[Row]:
    """Losses, gradients and the assignment of boxes to anchors, on the device and on the CPU."""
    case = stored_case(name)
    for device in dict.fromkeys((setup.device, "cpu")):
        with precision("float32", device):
            run = run_training_case(case, device)
        losses = max(compare.loss_deviations(run).values())
        gradients = max(compare.gradient_deviations(run).values())
        moved = sum(
            int((owners.cpu() != case.tensor(f"assign_{index}")).sum()) for index, owners in enumerate(run.owners)
        )
        close = losses <= compare.LOSS * factor(device) and gradients <= factor(device)
        allowed = 0 if device == "cpu" else 1 + int(run.losses.num_positive) // 100  # of anchors near a threshold
        yield {
            "case": name,
            "device": device,
            "losses, relative": losses,
            "gradients, deviation / tolerance": gradients,
            "anchors assigned differently": moved,
            "passed": close and moved <= allowed,
        }


def factor(device: str) -> float:
    """How many of the CPU's tolerances a device may take."""
    return 1.0 if device == "cpu" else TOLERANCE_FACTOR


def test_rows(setup: Setup) -> Iterator[Row]:
    """Run the tests marked gpu in this process, which is a worker's; a row for each that fails, then the counts."""
    import hypothesis  # noqa: F401 - which the tests need
    import pytest

    counts: Counter[str] = Counter()
    failed: list[str] = []

    class Reports:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] += 1
            if report.outcome == "failed":
                failed.append(f"{report.nodeid.split('::')[-1]}: {first_line_of(report.longreprtext)}")

    threads = torch.get_num_threads()
    command = ["-c", str(setup.root / "setup.cfg"), "-p", "no:cacheprovider", "-m", "gpu", "--device", setup.device]
    code = pytest.main([*command, str(setup.root / "tests" / "test_gpu.py")], [Reports()])
    torch.set_num_threads(threads)
    yield from ({"result": "failed", "test": line, "passed": False} for line in failed)
    listed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    yield {"result": listed or f"pytest ended with code {int(code)}", "passed": code == pytest.ExitCode.OK}


def first_line_of(text: str) -> str:
    """The line of a failure that says what is wrong."""
    return next((line[4:] for line in text.splitlines() if line.startswith("E   ")), text.strip()[-200:])
