"""What was labelled and what was skipped: numbers for each shard, and for the run as JSON and as a page of plots."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glip.data.labels import sample_of_row
from glip.data.sets import Folders, SkipCounter
from glip.files import atomic_write, read_manifest, write_json
from glip.pseudo.store import Row, read_reports, read_rows
from glip.structures import Sample
from glip.visualize import contact_sheet

REPORT, PAGE = "report.json", "report.png"
STAGES = ("read", "parse", "decode", "detect", "write")
_SUMS = ("pairs", "kept", "images", "phrases", "boxes", "wall")
_BINS = 20  # of scores in 0..1
_SHOWN, _CONFIDENT = 8, 0.5  # sample images, and the lowest score of the boxes drawn in them
_EXAMPLES = 5  # places listed for each reason


def count_labels(rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers of one shard's labels; ``scores`` counts boxes in equal bins of 0..1."""
    scores, per_phrase = [0] * _BINS, Counter[str]()
    for row in rows:
        for box in row["boxes"]:
            scores[min(int(box["score"] * _BINS), _BINS - 1)] += 1
        found = Counter(phrase for box in row["boxes"] for phrase in box["phrases"])
        per_phrase.update(str(min(found[phrase], 10)) for phrase in range(len(row["phrases"])))
    return {
        "kept": len(rows),
        "images": len({(row["image"], row.get("member")) for row in rows}),
        "phrases": sum(len(row["phrases"]) for row in rows),
        "boxes": sum(scores),
        "scores": scores,
        "boxes per phrase": dict(per_phrase),
    }


def merge_reports(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reports of all shards as one; ``images/s`` is the rate of one worker."""
    total: dict[str, Any] = {"shards": len(reports)}
    total |= {key: round(sum(report[key] for report in reports), 1) for key in _SUMS}
    for key in ("skipped", "skipped by the reader", "boxes per phrase", "seconds"):
        counts = sum((Counter(report[key]) for report in reports), Counter[str]())
        total[key] = {name: round(count, 1) for name, count in counts.most_common()}
    total["seconds"] = {stage: total["seconds"].get(stage, 0.0) for stage in STAGES}
    total["boxes per phrase"] = dict(sorted(total["boxes per phrase"].items(), key=lambda item: int(item[0])))
    total["scores"] = np.sum([[0] * _BINS, *(report["scores"] for report in reports)], axis=0).tolist()
    total["images/s"] = round(total["images"] / total["wall"], 2) if total["wall"] else 0.0
    places: dict[str, list[str]] = {}
    for report in reports:
        for reason, named in report["places"].items():
            places[reason] = [*places.get(reason, []), *named][:_EXAMPLES]
    return {**total, "places": places}


def write_report(folder: Path, shards: int, failed: dict[str, str]) -> dict[str, Any]:
    """Write and return the report of all finished shards.

    Args:
        folder: the folder of labels.
        shards: how many shards there are in all.
        failed: shards whose input cannot be read, and why.
    """
    report = {"shards in all": shards, **merge_reports(read_reports(folder)), "failed": failed}
    write_json(folder / REPORT, report)
    return report


@contextmanager
def figure(path: Path, width: float, height: float, layout: Any = "tight") -> Iterator[Any]:
    """A matplotlib figure of the given size in inches, written as PNG when the block ends, whole or not at all."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, height), layout=layout)
    yield canvas
    with atomic_write(path, "wb") as file:
        canvas.savefig(file, dpi=90, format="png")


def draw_report(folder: Path, report: dict[str, Any]) -> None:
    """Draw scores, boxes per phrase, what was skipped, where the time went, and some images with their labels."""
    reasons = {**report["skipped"], **report["skipped by the reader"]} or {"nothing": 0}
    counts = {f"{key}+" if key == "10" else key: count for key, count in report["boxes per phrase"].items()}
    with figure(folder / PAGE, 14, 13, "constrained") as page:
        above, below = page.subfigures(2, 1, height_ratios=(1, 1.4))
        (scores, phrases), (skipped, seconds) = above.subplots(2, 2)
        scores.bar(np.arange(_BINS) / _BINS, report["scores"], width=1 / _BINS, align="edge")
        scores.set(title=f"scores of {report['boxes']:,} boxes", xlabel="score", xlim=(0, 1))
        phrases.bar(list(counts), list(counts.values()))
        phrases.set(title=f"boxes per phrase, {report['phrases']:,} phrases", xlabel="boxes")
        for panel, bars in ((skipped, reasons), (seconds, report["seconds"])):
            panel.barh(list(bars)[::-1], list(bars.values())[::-1])
        skipped.set(title=f"skipped; {report['kept']:,} of {report['pairs']:,} pairs are labelled")
        seconds.set(title=f"seconds by stage ({report['images/s']:.1f} images/s per worker)")
        if sheet := _draw_samples(folder):
            panel = below.subplots()
            panel.axis("off")
            panel.imshow(np.asarray(sheet))
            panel.set(title=f"the first images, boxes that score {_CONFIDENT} or more")


def _draw_samples(folder: Path) -> Image.Image | None:
    """A contact sheet of the first images with confident boxes, or None."""
    folders, samples = Folders(read_manifest(folder)["images"]), list[Sample]()
    for row in read_rows(folder):
        boxes = [box for box in row["boxes"] if box["score"] >= _CONFIDENT]
        samples += [sample_of_row({**row, "boxes": boxes}, (), folders, SkipCounter())] if boxes else []
        if len(samples) == _SHOWN:
            break
    return contact_sheet(samples) if samples else None
