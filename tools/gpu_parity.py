"""Does a GPU compute what the 2022 release computes (parity), and what do faster number formats change (drift)?

The release was run on a CPU. Its tolerances are several times its own float32 noise there; a GPU adds in another
order and may take four times as much.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import golden_compare as compare
import torch
from golden_cases import BIG_NAMES, TINY_NAMES, TRAIN_NAMES, Case, case_path, load_case
from golden_recorder import Run, run_case, run_training_case
from measuring import Measurement, Missing, Row, Setup, each, held, precision
from torch import Tensor

import glip
from glip.geometry.boxes import iou
from glip.structures import Sample

ROOT = Path(__file__).resolve().parent.parent
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
_SAME_BOX = 0.5  # IoU from which two boxes of a label are one detection
_IMAGES = 100  # of a set at most


def parity(setup: Setup) -> Iterator[Measurement]:
    """Each golden case on the CPU and on the device, then the tests that need a device."""
    cases = TINY_NAMES if setup.tiny else (*TINY_NAMES, *BIG_NAMES)
    yield from each(
        "{case}", "Golden cases: largest deviation from the 2022 release", inference_rows, setup, case=cases
    )
    names = TRAIN_NAMES[-2:] if setup.tiny else TRAIN_NAMES
    yield from each("{case}", "Golden training cases", training_rows, setup, case=names)
    yield from each("pytest -m gpu", "Tests marked gpu", test_rows, setup)


def drift(setup: Setup) -> Iterator[Measurement]:
    """Each golden case in each precision, then glip-nano on drawings and datasets."""
    cases = TINY_NAMES if setup.tiny else (*TINY_NAMES, *BIG_NAMES)
    yield from each("{case}", "Golden cases compared with float32 on the same device", drift_rows, setup, case=cases)
    yield from each("glip-nano on drawings", "Average precision of glip-nano", drawn_rows, setup)
    yield from each("glip-nano on datasets", "Average precision of glip-nano", dataset_rows, setup)


def stored_case(name: str) -> Case:
    """A case from its file, or Missing."""
    if not case_path(name).is_file():
        raise Missing(f"{case_path(name).name} is not on this machine (tools/check_gpu.py --pack brings it)")
    return load_case(name)


# ---- parity


def inference_rows(setup: Setup, case: str) -> Iterator[Row]:
    """Every stage's deviation and which detections differ, on the device and on the CPU; then the tolerances."""
    stored = stored_case(case)
    tolerances = {quantity: compare.TOLERANCES[quantity][compare.SIZE_OF[stored.form]] for quantity in _STAGES}
    for device in dict.fromkeys((setup.device, "cpu")):
        with precision("float32", device):
            run = run_case(stored, device)
        gaps = {quantity: compare.deviations(run, quantity).values() for quantity in _STAGES}
        share = max(gap / tolerances[quantity] for quantity, own in gaps.items() for gap in own)
        apart = [compare.detections_apart(run, index) for index in range(len(run.detections))]
        lost, gained, count = (sum(column) for column in zip(*apart, strict=True))
        row: Row = {"case": case, "device": device}
        row |= {title: max(gaps[quantity], default=None) for quantity, title in _STAGES.items()}
        row |= {"deviation / tolerance": share, "detections lost, gained": f"{lost}, {gained} of {count}"}
        allowed = max(1, count // 100) * len(apart)
        yield {**row, "passed": share <= factor(device) and max(lost, gained) <= allowed}
    own = {title: tolerances[quantity] for quantity, title in _STAGES.items()}
    yield {"case": case, "device": "tolerance of the CPU", **own}


def training_rows(setup: Setup, case: str) -> Iterator[Row]:
    """Losses, gradients and the assignment of boxes to anchors, on the device and on the CPU."""
    stored = stored_case(case)
    for device in dict.fromkeys((setup.device, "cpu")):
        with precision("float32", device):
            run = run_training_case(stored, device)
        losses = max(compare.loss_deviations(run).values())
        gradients = max(compare.gradient_deviations(run).values())
        owners = [stored.tensor(f"assign_{index}") for index in range(len(run.owners))]
        moved = sum(int((own.cpu() != other).sum()) for own, other in zip(run.owners, owners, strict=True))
        close = losses <= compare.LOSS * factor(device) and gradients <= factor(device)
        allowed = 0 if device == "cpu" else 1 + int(run.losses.num_positive) // 100  # of anchors near a threshold
        row: Row = {"case": case, "device": device, "losses, relative": losses}
        row |= {"gradients, deviation / tolerance": gradients, "anchors assigned differently": moved}
        yield {**row, "passed": close and moved <= allowed}


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
                text = report.longreprtext
                errors = [line[4:] for line in text.splitlines() if line.startswith("E   ")]
                failed.append(f"{report.nodeid.split('::')[-1]}: {[*errors, text.strip()[-200:]][0]}")

    threads = torch.get_num_threads()
    command = ["-c", str(ROOT / "setup.cfg"), "-p", "no:cacheprovider", "-m", "gpu", "--device", setup.device]
    code = pytest.main([*command, str(ROOT / "tests" / "test_gpu.py")], [Reports()])
    torch.set_num_threads(threads)
    yield from ({"result": "failed", "test": line, "passed": False} for line in failed)
    listed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    yield {"result": listed or f"pytest ended with code {int(code)}", "passed": code == pytest.ExitCode.OK}


# ---- drift


def drift_rows(setup: Setup, case: str) -> Iterator[Row]:
    """How far the logits and the detections of each precision are from those of float32."""
    stored = stored_case(case)
    with precision("float32", setup.device):
        exact = run_case(stored, setup.device)
    for kind in [*setup.precisions[1:], *(["default"] if setup.cuda else [])]:
        with precision(kind, setup.device):
            run = run_case(stored, setup.device)
        yield {"case": case, "precision": kind, **differences(exact, run)}


def differences(exact: Run, other: Run) -> Row:
    """Logits, detections that appear or vanish, boxes that move and scores that change."""
    names = [name for name in exact.arrays if name.startswith("logits_p")]
    gaps = torch.cat([(exact.arrays[n].float() - other.arrays[n].float()).abs().flatten() for n in names])
    lost, gained, moved, scores = 0, 0, list[Tensor](), list[Tensor]()
    for first, second in zip(exact.detections, other.detections, strict=True):
        first, second = first.to("cpu"), second.to("cpu")
        overlap = iou(first.boxes, second.boxes.float(), inclusive=False) * (
            first.labels[:, None] == second.labels[None]
        )
        own, theirs = best_pairs(overlap)
        lost, gained = lost + len(first) - len(own), gained + len(second) - len(own)
        moved.append((first.boxes[own] - second.boxes[theirs].float()).abs().amax(1))
        scores.append((first.scores[own] - second.scores[theirs].float()).abs())
    shifts, changes = torch.cat(moved), torch.cat(scores)
    return {
        "logits, mean": gaps.mean().item(),
        "logits, largest": gaps.max().item(),
        "detections lost, gained": f"{lost}, {gained} of {sum(map(len, exact.detections))}",
        "boxes moved, median px": shifts.median().item() if len(shifts) else None,
        "boxes moved, largest px": shifts.max().item() if len(shifts) else None,
        "scores changed, largest": changes.max().item() if len(changes) else None,
    }


def best_pairs(overlap: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns that are the same detection: each used once, best overlap first."""
    rows, columns = list[int](), list[int]()
    for flat in overlap.flatten().argsort(descending=True).tolist():
        row, column = divmod(flat, overlap.shape[1])
        if overlap[row, column] < _SAME_BOX:
            break
        if row not in rows and column not in columns:
            rows.append(row)
            columns.append(column)
    return rows, columns


def dataset_rows(setup: Setup) -> Iterator[Row]:
    """AP on the test sets of the data root that configs/datasets.yaml, or a table in the root, knows."""
    from glip.data.catalog import find_set, known_sets, read_set

    root = setup.data
    if root is None:
        raise Missing("there are no datasets (--data, or gpu_data/data from --pack)")
    for name, entry in known_sets(root).items():
        if name.endswith("_test") and entry.format == "coco" and (root / entry.annotations).is_file():
            yield precision_row(name, read_set(find_set(name, root=root), root).samples, setup)


def drawn_rows(setup: Setup) -> Iterator[Row]:
    """AP on the first images of world_novel, drawn here."""
    from drawn_world.scenes import World, draw_sample

    world, count = World("novel", 0.0, plain=True), 2 if setup.tiny else _IMAGES
    yield precision_row("world_novel", [draw_sample(seed, world) for seed in range(count)], setup)


def precision_row(name: str, samples: Sequence[Sample], setup: Setup) -> Row:
    """AP50 and AP of glip-nano on the first images of a set in each precision."""
    from glip.evaluate.coco import average_precision
    from glip.evaluate.run import detect_all

    samples = [samples[index] for index in range(min(len(samples), 2 if setup.tiny else _IMAGES))]
    nano = held("glip-nano", lambda: glip.Detector.from_pretrained("glip-nano", device=setup.device), setup)
    row: Row = {"set": name, "images": len(samples)}
    for kind in setup.precisions:
        with precision(kind, setup.device):
            score = average_precision(list(detect_all(nano, samples)))
        row |= {f"AP50 {kind}": score.ap50, f"AP {kind}": score.ap}
    return row
