"""Does a GPU compute what the 2022 release computes? The golden cases in float32, and the tests marked ``gpu``.

The release was run on a CPU. Its tolerances are several times its own float32 noise there; a GPU adds in another
order and may take four times as much.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import golden_compare as compare
from golden_cases import BIG_NAMES, TINY_NAMES, TRAIN_NAMES, Case, case_path, load_case
from golden_recorder import run_case, run_training_case

from gpu.measure import Measurement, Missing, Row, Setup, precision

TOLERANCE_FACTOR = 4.0  # on a GPU
_STAGES = {"lang": "text", "body": "image encoder", "fpn": "pyramid", "tower": "tower", "logits": "logits"}
_OUTPUTS = {"bbox": "boxes", "ctr": "centerness", "anchors": "anchors"}
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


def inference_rows(name: str, setup: Setup) -> list[Row]:
    """A row for each device: every stage's deviation, and which detections differ."""
    rows = []
    for device in dict.fromkeys(("cpu", setup.device)):
        case = stored_case(name)
        with precision("float32", device):
            run = run_case(case, device)
        size = compare.SIZE_OF[case.form]
        row: Row = {"case": name, "device": device}
        share = 0.0
        for quantity, title in (_STAGES | _OUTPUTS).items():
            gaps = compare.deviations(run, quantity)
            row[title] = max(gaps.values()) if gaps else None
            allowed = compare.TOLERANCES[quantity][size]
            worst = max(gaps.values(), default=0.0)
            share = max(share, worst / allowed if allowed else (float("inf") if worst else 0.0))
        apart = [compare.detections_apart(run, index) for index in range(len(run.detections))]
        lost, gained, count = (sum(column) for column in zip(*apart, strict=True))
        row |= {"tolerances taken": share, "detections lost, gained": f"{lost}, {gained} of {count}"}
        allowed_apart = max(1, count // 100) * len(apart)
        row["passed"] = share <= factor(device) and max(lost, gained) <= allowed_apart
        rows.append(row)
    return rows


def training_rows(name: str, setup: Setup) -> list[Row]:
    """A row for each device: losses, gradients and the assignment of boxes to anchors."""
    rows = []
    for device in dict.fromkeys(("cpu", setup.device)):
        case = stored_case(name)
        with precision("float32", device):
            run = run_training_case(case, device)
        losses = max(compare.loss_deviations(run).values())
        gradients = max(compare.gradient_deviations(run).values())
        moved = sum(
            int((owners.cpu() != case.tensor(f"assign_{index}")).sum()) for index, owners in enumerate(run.owners)
        )
        rows.append(
            {
                "case": name,
                "device": device,
                "losses, relative": losses,
                "gradients, tolerances taken": gradients,
                "anchors assigned otherwise": moved,
                "passed": losses <= compare.LOSS * factor(device) and gradients <= factor(device) and not moved,
            }
        )
    return rows


def factor(device: str) -> float:
    """How many of the CPU's tolerances a device may take."""
    return 1.0 if device == "cpu" else TOLERANCE_FACTOR


def test_rows(setup: Setup) -> list[Row]:
    """Run the tests marked gpu in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--device", setup.device, "tests/test_gpu.py"]
    command += ["-p", "no:cacheprovider", "--durations=0", "--tb=short"]
    paths = os.pathsep.join(filter(None, (str(setup.root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=setup.root, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["pytest printed nothing"]
    failed = [line.removeprefix("FAILED ") for line in lines if line.startswith(("FAILED", "ERROR"))]
    endings = [line for line in lines if re.search(r"\d+ (passed|failed|error|skipped)", line)]
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    return [{"result": (endings or lines)[-1], "failed": "; ".join(failed) or None, "passed": done.returncode == 0}]
