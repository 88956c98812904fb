"""A folder of pseudo-labels: for each shard a file of labels and a report that says it is finished; a report of all.

``NAME.jsonl`` is an ordinary label file (``glip.data.labels.py``) whose boxes have raw scores down to a low
threshold; ``NAME.parquet`` has the same in columns. ``NAME.report.json`` is written after it. A manifest says which
teacher and options made the labels. ``report.json`` and the plots of ``report.png`` are about all shards.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glip.console import counted
from glip.data.labels import sample_of_row
from glip.data.sets import Folders, Row, SkipCounter
from glip.files import atomic_write, read_json, read_jsonl, read_manifest, write_json
from glip.structures import Sample
from glip.visualize import contact_sheet, figure

REPORT, PAGE = "report.json", "report.png"
STAGES = ("read", "parse", "decode", "detect", "write")
_SHARD_REPORT = ".report.json"
_SUMS = ("pairs", "kept", "images", "phrases", "boxes", "wall")
_BINS = 20  # of scores in 0..1
_SHOWN, _CONFIDENT = 8, 0.5  # sample images, and the lowest score of the boxes drawn in them
_EXAMPLES = 5  # places listed for each reason


def is_done(folder: Path, shard: str) -> bool:
    """Whether a shard is labelled completely."""
    return (folder / f"{shard}{_SHARD_REPORT}").is_file()


def write_shard(folder: Path, shard: str, form: str, rows: Sequence[Row], report: Mapping[str, Any]) -> None:
    """Write a shard's labels as "jsonl" or "parquet", then its report.

    Raises:
        OSError: a file cannot be written.
    """
    path = folder / f"{shard}.{form}"
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        integer, number, text = pa.int64(), pa.float64(), pa.string()
        phrase = pa.struct({"text": text, "spans": pa.list_(pa.list_(integer))})
        box = pa.struct({"box": pa.list_(number), "phrases": pa.list_(integer), "score": number})
        columns = dict.fromkeys(("image", "member", "caption", "id"), text)
        columns |= dict.fromkeys(("start", "length", "width", "height"), integer)
        schema = pa.schema({**columns, "phrases": pa.list_(phrase), "boxes": pa.list_(box)})
        # ids are numbers or text, and a column has one type: they are stored as JSON
        table = pa.Table.from_pylist([{**row, "id": json.dumps(row["id"])} for row in rows], schema=schema)
        with atomic_write(path, "wb", durable=True) as file:
            pyarrow.parquet.write_table(table, file)
    else:
        with atomic_write(path, durable=True) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    write_json(folder / f"{shard}{_SHARD_REPORT}", report)


def finished_shards(folder: Path) -> dict[Path, Path]:
    """The label file of each finished shard, by name, and its report; other files of the folder are not labels."""
    found = dict[Path, Path]()
    for report in sorted(folder.glob(f"*{_SHARD_REPORT}")):
        name = report.name.removesuffix(_SHARD_REPORT)
        columns = folder / f"{name}.parquet"
        found[columns if columns.is_file() else folder / f"{name}.jsonl"] = report
    return found


def read_rows(folder: Path) -> Iterator[Row]:
    """The labels of all finished shards, by name.

    Raises:
        DataError: a line that is not JSON.
    """
    for labels in finished_shards(folder):
        if labels.suffix == ".jsonl":
            yield from read_jsonl(labels)
            continue
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(labels) as file:
            for row in (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist()):
                given = {key: value for key, value in row.items() if value is not None}
                yield {**given, "id": json.loads(row["id"])}


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


def unfinished(folder: Path) -> str:
    """How much of a folder's captions is not labelled yet and how to go on; "" where nothing is missing."""
    done, report = len(finished_shards(folder)), folder / REPORT
    total = read_json(report)["shards in all"] if report.is_file() else done
    if done >= total:
        return ""
    return (
        f"{done} of {counted(total, 'shard')} are labelled in {str(folder)!r}, {total - done} missing: to label the "
        "rest run the same glip label command again"
    )


def write_report(folder: Path, shards: int, failed: dict[str, str]) -> dict[str, Any]:
    """Write and return the report of all finished shards; ``images/s`` is the rate of one worker.

    Args:
        folder: the folder of labels.
        shards: how many shards there are in all.
        failed: shards whose input cannot be read, and why.
    """
    reports = [read_json(path) for path in finished_shards(folder).values()]
    total: dict[str, Any] = {"shards in all": shards, "shards": len(reports)}
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
    total |= {"places": places, "failed": failed}
    write_json(folder / REPORT, total)
    return total


def draw_report(folder: Path, report: dict[str, Any]) -> None:
    """Draw scores, boxes per phrase, what was skipped, where the time went, and different images with their labels."""
    reasons = {**report["skipped"], **report["skipped by the reader"]}
    counts = {f"{key}+" if key == "10" else key: count for key, count in report["boxes per phrase"].items()}
    folders, samples = Folders(read_manifest(folder)["images"]), dict[str, Sample]()
    for row in read_rows(folder):
        boxes, name = [box for box in row["boxes"] if box["score"] >= _CONFIDENT], f"{row['image']}:{row.get('member')}"
        if boxes and name not in samples:
            samples[name] = sample_of_row({**row, "boxes": boxes}, (), folders, SkipCounter())
        if len(samples) == _SHOWN:
            break
    bins = (np.arange(_BINS) + 0.5) / _BINS
    panels = [
        (f"scores of {report['boxes']:,} boxes", dict(zip(bins, report["scores"], strict=True)), "score", "boxes"),
        (f"boxes per phrase, {report['phrases']:,} phrases", counts, "boxes", "phrases"),
        (f"skipped; {report['kept']:,} of {report['pairs']:,} pairs are labelled", reasons, "pairs", ""),
        (f"seconds by stage ({report['images/s']:.1f} images/s per worker)", report["seconds"], "seconds", ""),
    ]
    panels = [panel for panel in panels if any(panel[1].values())]
    rows, page = (len(panels) + 2) // 3, contact_sheet(list(samples.values())) if samples else None
    below = page.height / 100 if page else 0.0
    if not (panels or page):
        return
    with figure(folder / PAGE, 15.3, height := below + 4 * rows) as canvas:
        canvas.get_layout_engine().set(rect=(0, below / height, 1, 1 - below / height))
        for place, (title, values, across, up) in enumerate(panels, start=1):
            panel = canvas.add_subplot(rows, -(-len(panels) // rows), place, title=title, xlabel=across, ylabel=up)
            if up:
                panel.bar(list(values), list(values.values()), width=1 / _BINS if across == "score" else 0.8)
            else:
                panel.barh(list(values)[::-1], list(values.values())[::-1])
        if page:
            canvas.figimage(np.asarray(page))
