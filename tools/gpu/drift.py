"""What faster number formats change, compared with exact float32: logits, detections, average precision."""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import torch
from golden_recorder import Run, run_case

import glip
from glip.structures import Sample
from gpu.measure import Measurement, Missing, Row, Setup, precision
from gpu.parity import case_names, stored_case

_TABLE = "Golden cases compared with float32 on the same device"
_AP = "Average precision of glip-nano"
_SAME_BOX = 0.5  # IoU from which two boxes of a label are one detection
_IMAGES = 100  # of a set at most


def measurements(setup: Setup) -> Iterator[Measurement]:
    """Each case in each precision, then glip-nano on datasets."""
    others = [*setup.precisions[1:], *(["default"] if setup.cuda else [])]
    for name in case_names(setup):
        yield Measurement(name, _TABLE, partial(case_rows, name, others, setup))
    yield Measurement("glip-nano on drawings", _AP, partial(drawn_rows, setup))
    yield Measurement("glip-nano on datasets", _AP, partial(dataset_rows, setup))


def case_rows(name: str, precisions: list[str], setup: Setup) -> Iterator[Row]:
    """A row for each precision."""
    case = stored_case(name)
    with precision("float32", setup.device):
        exact = run_case(case, setup.device)
    for other in precisions:
        with precision(other, setup.device):
            run = run_case(case, setup.device)
        yield {"case": name, "precision": other, **drift(exact, run)}


def drift(exact: Run, other: Run) -> Row:
    """How far the logits and the detections of a run are from those of an exact one."""
    names = [name for name in exact.arrays if name.startswith("logits_p")]
    gaps = torch.cat([(exact.arrays[n].float() - other.arrays[n].float()).abs().flatten() for n in names])
    lost, gained, moved, scores = 0, 0, list[torch.Tensor](), list[torch.Tensor]()
    for first, second in zip(exact.detections, other.detections, strict=True):
        first, second = first.to("cpu"), second.to("cpu")
        pairs = paired(first.boxes, first.labels, second.boxes.float(), second.labels)
        lost, gained = lost + len(first) - len(pairs), gained + len(second) - len(pairs)
        own, theirs = pairs[:, 0], pairs[:, 1]
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


def paired(boxes: torch.Tensor, labels: torch.Tensor, others: torch.Tensor, their_labels: torch.Tensor) -> torch.Tensor:
    """Index pairs of detections that are the same: of one label, overlapping, each used once, best overlap first."""
    from torchvision.ops import box_iou

    overlap = box_iou(boxes, others) * (labels[:, None] == their_labels[None])
    pairs: list[tuple[int, int]] = []
    for flat in overlap.flatten().argsort(descending=True).tolist():
        row, column = divmod(flat, len(others))
        if overlap[row, column] < _SAME_BOX:
            break
        if all(row != own and column != theirs for own, theirs in pairs):
            pairs.append((row, column))
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def dataset_rows(setup: Setup) -> Iterator[Row]:
    """AP on the test sets of the data root that configs/datasets.yaml, or a table in the root, knows."""
    from glip.data.catalog import find_set, known_sets, read_set

    root = setup.data
    if root is None:
        raise Missing("no datasets are at hand (--data, or gpu_data/data from --pack)")
    for name, entry in known_sets(root).items():
        if name.endswith("_test") and entry.format == "coco" and (root / entry.annotations).is_file():
            yield from score_rows(name, read_set(find_set(name, root=root), root).samples, setup)


def drawn_rows(setup: Setup) -> list[Row]:
    """AP on the first images of world_novel, drawn here."""
    from drawn_world.scenes import World, draw_sample

    world = World("novel", 0.0, plain=True)
    return score_rows("world_novel", [draw_sample(seed, world) for seed in range(_images(setup))], setup)


def _images(setup: Setup) -> int:
    return 2 if setup.tiny else _IMAGES


def score_rows(name: str, samples: Sequence[Sample], setup: Setup) -> list[Row]:
    """AP50 and AP of glip-nano on the first images of a set in each precision."""
    from glip.evaluate.coco import average_precision
    from glip.evaluate.run import detect_all

    samples = [samples[index] for index in range(min(len(samples), _images(setup)))]
    row: Row = {"set": name, "images": len(samples)}
    for kind in setup.precisions:
        with precision(kind, setup.device):
            score = average_precision(list(detect_all(nano(setup.device), samples)))
        row |= {f"AP50 {kind}": score.ap50, f"AP {kind}": score.ap}
    return [row]


@lru_cache(maxsize=1)
def nano(device: str) -> "glip.Detector":
    """The bundled model."""
    return glip.Detector.from_pretrained("glip-nano", device=device)
