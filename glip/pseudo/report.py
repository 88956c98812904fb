"""What a labelling did: one report over all shards, as json and as a page of plots with sample images."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glip.data.labels import sample_of_row
from glip.data.sets import Folders, SkipCounter
from glip.files import atomic_write
from glip.pseudo.engine import Failed
from glip.pseudo.label import SCORE_BINS, STAGES
from glip.pseudo.store import Store, read_manifest, read_rows
from glip.structures import Sample
from glip.visualize import contact_sheet

REPORT, PAGE = "report.json", "report.png"
_SHOWN, _SURE = 8, 0.5  # sample images, and the score from which their boxes are drawn
_EXAMPLES = 5


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reports of shards as one; ``images/s`` is of one worker's wall time."""
    dropped, skipped, per_phrase, seconds = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    places: dict[str, list[str]] = {}
    for report in reports:
        dropped.update(report["dropped"])
        skipped.update(report["left out by the reader"])
        per_phrase.update(report["boxes per phrase"])
        seconds.update(report["seconds"])
        for reason, named in report["places"].items():
            places[reason] = [*places.get(reason, []), *named][:_EXAMPLES]
    total = {key: sum(report[key] for report in reports) for key in ("pairs", "kept", "images", "phrases", "boxes")}
    wall = sum(report["wall"] for report in reports)
    scores = np.sum([report["scores"] for report in reports], axis=0).tolist() if reports else [0] * SCORE_BINS
    return {
        "shards": len(reports),
        **total,
        "dropped": dict(dropped.most_common()),
        "places": places,
        "left out by the reader": dict(skipped.most_common()),
        "scores": scores,
        "boxes per phrase": dict(sorted(per_phrase.items(), key=lambda item: int(item[0]))),
        "seconds": {stage: round(seconds[stage], 1) for stage in STAGES},
        "wall": round(wall, 1),
        "images/s": round(total["images"] / wall, 2) if wall else 0.0,
    }


def write_report(store: Store, shards: int, failed: Sequence[Failed]) -> dict[str, Any]:
    """Write the report over the shards that are done; gives it.

    Args:
        store: where they lie.
        shards: that there are in all.
        failed: shards whose input cannot be read.

    Raises:
        OSError: it cannot be written.
    """
    report = {"shards in all": shards, **merged(store.reports()), "failed": {one.shard: one.reason for one in failed}}
    with atomic_write(store.folder / REPORT) as file:
        json.dump(report, file, indent=1)
    return report


def draw_report(store: Store, report: dict[str, Any]) -> Path:
    """Draw the page: scores, boxes per phrase, what was dropped, where the time went, and some images."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(14, 13), layout="constrained")
    above, below = page.subfigures(2, 1, height_ratios=(1, 1.4))  # type: ignore[misc]
    (scores, phrases), (dropped, time) = above.subplots(2, 2)
    edges = np.arange(SCORE_BINS) / SCORE_BINS
    scores.bar(edges, report["scores"], width=1 / SCORE_BINS, align="edge")
    scores.set(title=f"scores of {report['boxes']:,} boxes", xlabel="score", xlim=(0, 1))
    counts = report["boxes per phrase"]
    phrases.bar([f"{key}+" if key == "10" else key for key in counts], list(counts.values()))
    phrases.set(title=f"boxes of each of {report['phrases']:,} phrases", xlabel="boxes")
    reasons = {**report["dropped"], **report["left out by the reader"]}
    dropped.barh(list(reasons)[::-1], list(reasons.values())[::-1])
    if not reasons:
        dropped.text(0.5, 0.5, "nothing", ha="center", transform=dropped.transAxes)
        dropped.set_axis_off()
    dropped.set(title=f"not labelled of {report['pairs']:,} pairs ({report['kept']:,} are)")
    time.barh(list(report["seconds"])[::-1], list(report["seconds"].values())[::-1])
    time.set(title=f"seconds by stage ({report['images/s']:.1f} images/s of a worker)")
    panel = below.subplots()
    panel.axis("off")
    sheet = _samples(store)
    if sheet is not None:
        panel.imshow(np.asarray(sheet))
        panel.set(title=f"the first images, with boxes from score {_SURE} on")
    path = store.folder / PAGE
    partial = path.with_name(f".{PAGE}")
    page.savefig(partial, dpi=90, format="png")
    partial.replace(path)
    return path


def _samples(store: Store) -> Image.Image | None:
    """A contact sheet of images of which something was found, or None."""
    folders, samples = Folders(read_manifest(store.folder)["images"]), list[Sample]()
    for row in read_rows(store.folder):
        sure = [box for box in row["boxes"] if box["score"] >= _SURE]
        samples += [sample_of_row({**row, "boxes": sure}, (), folders, "", SkipCounter())] if sure else []
        if len(samples) == _SHOWN:
            break
    return contact_sheet(samples) if samples else None
