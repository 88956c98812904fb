"""A folder of pseudo-labels: for each shard a file of labels and a report that says it is finished; a report of all.

``NAME.jsonl`` is an ordinary label file (``glip.data.labels.py``) whose boxes have raw scores down to a low
threshold; ``NAME.parquet`` has the same in columns. ``NAME.report.json`` is written after it. A manifest says which
teacher and options made the labels. ``report.json`` and the plots of ``report.png`` are about all shards.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glip.config import Count, CountOrZero, Name, Rate, Share
from glip.console import counted
from glip.data.labels import sample_of_row
from glip.data.sets import Folders, Row, SkipCounter
from glip.errors import DataError
from glip.files import MANIFEST, atomic_write, read_json, write_json
from glip.provenance import record
from glip.schema import Corners, Edges, parse, parse_json
from glip.structures import Sample
from glip.visualize import contact_sheet, figure

REPORT, PAGE = "report.json", "report.png"
STAGES = ("read", "parse", "decode", "detect", "write")
_SHARD_REPORT = ".report.json"
_SUMS = ("pairs", "kept", "images", "phrases", "boxes", "wall")
_BINS = 20  # of scores in 0..1
_REPORT: dict[Any, tuple[str, ...]] = {  # the keys of a shard's report by the kind of their value
    Rate: _SUMS,
    dict[str, Rate]: ("skipped", "skipped by the reader", "boxes per phrase", "seconds"),
    dict[str, tuple[str, ...]]: ("places",),
    tuple[(CountOrZero,) * _BINS]: ("scores",),  # type: ignore[misc]
}
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
        columns: dict[str, Any] = dict.fromkeys(("image", "member", "caption", "id"), text)
        columns |= dict.fromkeys(("start", "length", "width", "height"), integer)
        columns |= {"names": pa.list_(text)}
        schema = pa.schema({**columns, "phrases": pa.list_(phrase), "boxes": pa.list_(box)})
        # ids are numbers or text, and a column has one type: they are stored as JSON
        table = pa.Table.from_pylist([{**row, "id": json.dumps(row["id"])} for row in rows], schema=schema)
        with atomic_write(path, "wb", durable=True) as file:
            pyarrow.parquet.write_table(table, file)
    else:
        with atomic_write(path, durable=True) as file:
            file.writelines(to_lines(rows))
    record(folder / f"{shard}{_SHARD_REPORT}", files=[path], **report)


def to_lines(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of a label file; names are written where they change."""
    names = None
    for row in rows:
        yield json.dumps({key: value for key, value in row.items() if key != "names" or value != names}) + "\n"
        names = row.get("names", names)


@dataclass(frozen=True)
class _Phrase:
    text: str
    spans: tuple[Edges, ...]


@dataclass(frozen=True)
class _Box:
    box: Corners
    phrases: tuple[CountOrZero, ...]
    score: Share


@dataclass(frozen=True, kw_only=True)
class _Label:
    """What the rows of a folder have; other keys may be there."""

    image: Name
    width: Count
    height: Count
    boxes: tuple[_Box, ...]
    phrases: tuple[_Phrase, ...]  # none where class names are given
    names: tuple[Name, ...] | None = None
    caption: str | None = None
    member: str | None = None


def finished_shards(folder: Path) -> dict[Path, Path]:
    """The label file of each finished shard, by name, and its report; other files of the folder are not labels."""
    found = dict[Path, Path]()
    for report in sorted(folder.glob(f"*{_SHARD_REPORT}")):
        name = report.name.removesuffix(_SHARD_REPORT)
        columns = folder / f"{name}.parquet"
        found[columns if columns.is_file() else folder / f"{name}.jsonl"] = report
    return found


def read_rows(folder: Path) -> Iterator[Row]:
    """The labels of all finished shards, by name; those of a detection dataset each with all names.

    Raises:
        DataError: a file that cannot be read, or a row that is no label.
        FileNotFoundError: the file of a finished shard is missing.
    """
    for path in finished_shards(folder):
        names, kind = Row(), "line" if path.suffix == ".jsonl" else "row"
        for number, text in enumerate(_read_texts(path), start=1):
            parse_json(_Label, text, at=f"{path}, {kind} {number}", error=DataError)
            row = json.loads(text)
            names = {"names": row["names"]} if "names" in row else names
            yield {**row, **names}


def _read_texts(path: Path) -> Iterator[str | bytes]:
    """The rows of a file as JSON."""
    if path.suffix != ".parquet":
        with path.open("rb") as file:
            yield from file
        return
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for row in (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist()):
                given = {key: value for key, value in row.items() if value is not None}
                yield json.dumps({**given, "id": json.loads(given.get("id", "null"))}, default=str)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:  # OSError: of its bytes too
        raise DataError(f"{path}: not parquet that can be read ({str(error)[:120]}): label its shard again") from None


def image_folders(folder: Path) -> tuple[str, ...]:
    """The folders of the labelled images, as the manifest states them."""
    stated = parse(dict[str, Any], read_json(folder / MANIFEST), at=f"{folder / MANIFEST}", error=DataError)
    return parse(tuple[str, ...], stated.get("images"), at=f"{folder / MANIFEST}: images", error=DataError)


def _read_report(path: Path) -> Row:
    """The report of a shard."""
    report = parse(dict[str, Any], read_json(path), at=str(path), error=DataError)
    for kind, keys in _REPORT.items():
        for key in keys:
            parse(kind, report.get(key), at=f"{path}: {key}", error=DataError)
    return report


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


def _stated(folder: Path, kind: Any, key: str, usual: Any) -> Any:
    """What the report of a folder says under a key; the usual where there is none."""
    path = folder / REPORT
    report = parse(dict[str, Any], read_json(path), at=str(path), error=DataError) if path.is_file() else {}
    return parse(kind, report.get(key, usual), at=f"{path}: {key}", error=DataError)


def unfinished(folder: Path) -> str:
    """How much of a folder's captions is not labelled yet and how to go on; "" where nothing is missing."""
    done = len(finished_shards(folder))
    total = _stated(folder, int, "shards in all", done)
    if done >= total:
        return ""
    return (
        f"{done} of {counted(total, 'shard')} are labelled in {str(folder)!r}, {total - done} missing: to label the "
        "rest run the same glip label command again"
    )


def write_report(folder: Path, shards: int, failed: dict[str, str], others: Collection[str] = ()) -> dict[str, Any]:
    """Write and return the report of all finished shards of so many; ``images/s`` is the rate of one worker.

    ``failed`` are the shards whose input cannot be read, and why; what the report that is there says of ``others``,
    which other processes label, stays.
    """
    before = _stated(folder, dict[str, str], "failed", {}) if others else {}
    failed = {name: why for name, why in before.items() if name in others and not is_done(folder, name)} | failed
    reports = [_read_report(path) for path in finished_shards(folder).values()]
    total: dict[str, Any] = {"shards in all": shards, "shards": len(reports)}
    total |= {key: round(sum(report[key] for report in reports), 1) for key in _SUMS}
    for key in ("skipped", "skipped by the reader", "boxes per phrase", "seconds"):
        counts = sum((Counter(report[key]) for report in reports), Counter[str]())
        total[key] = {name: round(count, 1) for name, count in counts.most_common()}
    total["seconds"] = {stage: total["seconds"].get(stage, 0.0) for stage in STAGES}
    total["boxes per phrase"] = dict(sorted(total["boxes per phrase"].items(), key=lambda item: item[0].zfill(2)))
    total["scores"] = np.sum([[0] * _BINS, *(report["scores"] for report in reports)], axis=0).tolist()
    total["images/s"] = round(total["images"] / total["wall"], 2) if total["wall"] else 0.0
    places: dict[str, list[str]] = {}
    for report in reports:
        for reason, named in report["places"].items():
            places[reason] = [*places.get(reason, []), *named][:_EXAMPLES]
    total |= {"places": places, "failed": failed}
    write_json(folder / REPORT, total)
    return total


def confident(sample: Sample, limits: Sequence[float]) -> Sample:
    """A sample with the boxes that score at least the limit of their class, or 0.5 without limits."""
    numbers = zip(sample.box_phrases, sample.scores, strict=True)
    kept = (box for box, ((one, *_), score) in enumerate(numbers) if score >= (limits[one] if limits else _CONFIDENT))
    return sample.keep(list(kept))


def draw_report(folder: Path, report: dict[str, Any], limits: Mapping[str, float]) -> None:
    """Draw scores, boxes per phrase, what was skipped, where the time went, and different images with their labels.

    Of class names ``limits`` are the lowest scores drawn.
    """
    lowest, what = tuple(limits.values()), "candidates" if limits else "boxes"
    reasons = {**report["skipped"], **report["skipped by the reader"]}
    counts = {f"{key}+" if key == "10" else key: count for key, count in report["boxes per phrase"].items()}
    folders, samples = Folders(image_folders(folder)), dict[str, Sample]()
    for row in read_rows(folder):
        name, best = f"{row['image']}:{row.get('member')}", max((box["score"] for box in row["boxes"]), default=0.0)
        if best >= min(lowest or (_CONFIDENT,)) and name not in samples:
            with SkipCounter().catch("image"):  # whose file is not to be found is not drawn
                sample = sample_of_row(row, tuple(row.get("names", ())), folders, SkipCounter())
                samples.update((name, one) for one in [confident(sample, lowest)] if len(one.boxes))
        if len(samples) == _SHOWN:
            break
    bins = (np.arange(_BINS) + 0.5) / _BINS
    panels = [
        (f"scores of {report['boxes']:,} {what}", dict(zip(bins, report["scores"], strict=True)), "score", what),
        (f"boxes per phrase, {report['phrases']:,} phrases", counts, "boxes", "phrases"),
        (f"skipped; {report['kept']:,} of {report['pairs']:,} are labelled", reasons, "skipped", ""),
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
