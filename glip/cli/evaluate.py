"""``glip evaluate MODEL [SET ...]``: the official figures of a model on sets; run again to resume."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from glip.errors import ConfigError

if TYPE_CHECKING:
    from glip.detector import Detector
    from glip.evaluate.benchmark import Benchmark
    from glip.evaluate.report import Report
    from glip.evaluate.run import QueryOptions
    from glip.train.distributed import Group

PROTOCOLS = ("coco", "lvis", "any-box", "merged-boxes")
HEADLINES = ("AP", "AP50", "Fixed AP", "Fixed APr", "AP at false positive rate 0.05", "R@1", "R@5", "R@10")
ODINW: "dict[str, Literal[13, 35]]" = {"odinw13": 13, "odinw35": 35}
_OUT = "runs/evaluate"
_EXAMINED = re.compile(r"_(val|test|minival|val2017|seen|novel)(_|$)")  # in the names of sets that are not to train on
_DAYS = 7 * 24 * 60.0  # minutes that processes wait for the slowest of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "names",
        nargs="+",
        metavar="MODEL [SET ...]",
        help="a model, then names of sets, annotation files, odinw13 or odinw35 (default: every set for validation "
        "or tests that is there); with --predictions only a set",
    )
    parser.add_argument("--images", action="append", default=[], metavar="DIR", help="where the images of files lie")
    parser.add_argument("--root", default=None, metavar="DIR", help="the data root (default: GLIP_DATA, else here)")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=None, help="what is counted (default: by the format)")
    parser.add_argument("--predictions", metavar="FILE", help="score results in the standard format, without a model")
    parser.add_argument("--task", metavar="FILE", help="a task.safetensors of glip tune: the model as tuned for it")
    parser.add_argument(
        "--prompts",
        action="append",
        metavar="FILE",
        help="a YAML of words to write for a name; 'none': plain names; may be repeated to compare them",
    )
    parser.add_argument("--max-names", type=int, default=None, metavar="N", help="names in a chunk; 0: as many as fit")
    parser.add_argument("--max-detections", type=int, default=None, metavar="N", help="of an image (LVIS: of a chunk)")
    parser.add_argument("--batch-size", type=int, default=1, help="images or chunks computed at once (default: 1)")
    parser.add_argument(
        "--out", metavar="DIR", help=f"where results go (default: {_OUT}; with --predictions beside that file)"
    )
    parser.add_argument("--draw", action="store_true", help="also draw curves, scores and the worst images")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Evaluate set by set; the tables are printed as they come."""
    _check_numbers(args)
    if args.predictions:
        return _score_file(args)
    from glip.data.catalog import folders_of
    from glip.detector import Detector, choose_device
    from glip.model.adapt import digest_of
    from glip.train.distributed import process_group

    with process_group(choose_device(args.device), minutes=_DAYS) as group:
        with _together(group):
            model, listed = args.names[0], args.names[1:] or _sets_there(args.root)
            folders = folders_of([name for name in listed if name not in ODINW], args.images, args.root)
            exams = {
                name: _tasks(name, args) if name in ODINW else [_exam(name, args, folders[name])] for name in listed
            }
            _refuse_twins([exam.name for own in exams.values() for exam in own])
            detector = Detector.from_pretrained(model, task=args.task, device=str(group.device))
            weights = detector.fingerprint[:16]
            task = digest_of(detector.adaptation)[:16] if detector.adaptation else ""
        # two trainings of one config are told apart by their weights
        label = f"{detector.config.name}-{weights[:6]}" if Path(model).exists() else detector.config.name
        label += f"-task-{task[:6]}" if task else ""
        folder = Path(args.out or _OUT) / label
        of = {"weights": weights, **({"task": task} if task else {})}
        wordings = args.prompts or [None]
        told: dict[str, list[Report]] = {str(words): [] for words in wordings}
        parts = _parts(wordings)
        for name, words in product(exams, wordings):
            part = folder / parts[words]
            found = [_evaluate(exam, detector, of, part / exam.name, args, words, group) for exam in exams[name]]
            told[str(words)] += [report for report in found if report is not None]
            if name in ODINW and group.main:
                _tell_odinw(name, found, part)
        if group.main:
            _tell([report for own in told.values() for report in own], folder)
            if len(wordings) > 1:
                _tell_gain(told)
    return 0


@contextmanager
def _together(group: "Group") -> Iterator[None]:
    """What fails in one process ends all of them, with its message."""
    error: Exception | None = None
    try:
        yield
    except (ValueError, OSError, ImportError) as caught:
        error = caught
    told = group.gather(str(error) if error else "")
    if error:
        raise error
    number = next((number for number, line in enumerate(told) if line), None)
    if number is not None:
        raise ConfigError(f"process {number} failed: {told[number]}")


def _refuse_twins(names: Sequence[str]) -> None:
    again = [name for name in names if names.count(name) > 1]
    if again:
        raise ConfigError(
            f"two sets are called {again[0]!r}: their results would go to one folder; evaluate them one by one with "
            "an --out each, or name them in datasets.yaml"
        )


def _check_numbers(args: argparse.Namespace) -> None:
    if args.task and args.prompts:
        raise ConfigError("--prompts and --task: a task's words are those it was tuned with: give one of the two")
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size {args.batch_size}: give the images computed at once, such as 4")
    for option in ("max_names", "max_detections"):
        value = getattr(args, option)
        if value is not None and value < 0:
            raise ConfigError(f"--{option.replace('_', '-')} {value}: give a number from 0 on")
    if args.out and Path(args.out).is_file():
        raise ConfigError(f"--out {args.out!r} is a file: give a folder, which is made if missing")


def _sets_there(root: str | None) -> list[str]:
    """Every known set with boxes for validation or tests whose files are under the root, and ODinW."""
    from glip.data.catalog import data_root, known_sets, missing_part
    from glip.evaluate.odinw import tasks

    known = known_sets(root)
    bounded = {name: config for name, config in known.items() if config.format != "world" or config.count}
    found = [
        name
        for name, config in bounded.items()
        if config.format != "captions" and _EXAMINED.search(name) and not missing_part(config, root)
    ]
    if any(not missing_part(task.files(), root) for task in tasks(13)):
        found.append("odinw13")
    if not found:
        raise ConfigError(
            f"no known set for evaluation is under {str(data_root(root))!r}: give --root, GLIP_DATA, or the sets"
        )
    return found


def _parts(wordings: "Sequence[str | None]") -> "dict[str | None, str]":
    """The folder of each wording inside that of the model: none for a single one."""
    if len(wordings) == 1:
        return {wordings[0]: ""}
    found: dict[str | None, str] = {}
    stems = {words: f"prompts-{Path(words or 'none').stem}" for words in wordings}
    for words, stem in stems.items():
        numbered = (f"{stem}-{number}" for number in range(2, len(stems) + 2))
        taken = {*found.values(), *(other for other in stems.values() if other != stem)}
        found[words] = next(name for name in (stem, *numbered) if name not in taken)
    return found


def _exam(name: str, args: argparse.Namespace, images: Sequence[str]) -> "Benchmark":
    from glip.data.catalog import data_root, find_set, guess_format, known_sets, read_set
    from glip.evaluate.benchmark import load_benchmark

    config = find_set(name, images=images, root=args.root)
    read = read_set(config, args.root, to_score=True)
    if config.format != "world":
        annotations = data_root(args.root) / config.annotations
        config = replace(config, annotations=str(annotations), format=config.format or guess_format(annotations))
    return load_benchmark(name if name in known_sets(args.root) else Path(name).stem, config, read, args.protocol)


def _tasks(name: str, args: argparse.Namespace) -> "list[Benchmark]":
    """The tasks of ODinW that are there; the others are named in the table."""
    from glip.data.catalog import data_root, missing_part
    from glip.evaluate.benchmark import examine_task
    from glip.evaluate.odinw import tasks

    there = [task for task in tasks(ODINW[name]) if not missing_part(task.files(), args.root)]
    if not there:
        raise ConfigError(
            f"{name}: none of its tasks is under {str(data_root(args.root))!r}: they lie in odinw/ there, such as "
            f"{tasks(ODINW[name])[0].files().annotations}; give --root or GLIP_DATA"
        )
    return [examine_task(task, args.root) for task in there]


def _tell_odinw(name: str, reports: "Sequence[Report | None]", folder: Path) -> None:
    """Mean and median over the tasks."""
    from glip.data.writers import whole_file
    from glip.evaluate.odinw import TaskScore, summarize, tasks
    from glip.evaluate.report import markdown_table

    named = {task.name: task for task in tasks(ODINW[name])}
    scores = [
        TaskScore(named[r.dataset], r.samples, r.figures["AP"], r.figures["AP50"], trained_on=r.trained_on)
        for r in reports
        if r is not None
    ]
    table = summarize(scores, ODINW[name]).table
    lines = [f"# {table.title}", "", *markdown_table(table.rows)]
    with whole_file(folder / f"{name}.md") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


def _evaluate(
    exam: "Benchmark",
    detector: "Detector",
    weights: dict[str, str],
    folder: Path,
    args: argparse.Namespace,
    words: str | None,
    group: "Group",
) -> "Report | None":
    """Collect in all processes, score in the main one."""
    from glip.evaluate.benchmark import collect
    from glip.evaluate.journal import Journal
    from glip.evaluate.run import same_vocabulary
    from glip.evaluate.scoring import score

    config = detector.config
    with _together(group):
        options = _asking(exam, args, words)
        if detector.adaptation and not same_vocabulary(detector.adaptation.names, exam.read.vocabulary) and group.main:
            print(f"{exam.name} asks for other names than the task's: in plain words, of the changed weights if any")
        of = {
            "model": config.name,
            **weights,
            "inference": repr((config.inference, config.image, config.max_tokens)),
            "set": exam.config.annotations or exam.name,
            "words and images": exam.digest,
            "names in a chunk": str(options.max_names),
            "detections": f"{options.max_detections}, {options.chunk_detections} of a chunk",
            "prompts": str(dict(options.prompts)),
        }
        journal = Journal(folder / "answers", of, process=group.rank)
    with _together(group):
        try:
            collect(detector, exam.read.samples, journal, options, share=(group.rank, group.size))
        finally:
            journal.close()
    report = None
    with _together(group):
        if group.main:
            report = score(exam, Journal(folder / "answers", of), config, options, folder, draw=args.draw)
            print(report.markdown())
    return report


def _asking(exam: "Benchmark", args: argparse.Namespace, words: str | None) -> "QueryOptions":
    from glip.data.catalog import data_root
    from glip.evaluate.benchmark import asking_for
    from glip.evaluate.run import QueryOptions
    from glip.experiment import read_yaml
    from glip.text.class_prompts import read_prompts

    file = words or (exam.config.prompts and data_root(args.root) / exam.config.prompts)
    prompts = dict(exam.prompts)
    if file:
        prompts = {} if str(file) == "none" else read_prompts(read_yaml(Path(file)), exam.read.vocabulary)
    return asking_for(
        exam.protocol, QueryOptions(args.batch_size, args.max_names, args.max_detections, prompts=prompts)
    )


def _score_file(args: argparse.Namespace) -> int:
    from glip.data.catalog import folders_of
    from glip.evaluate.scoring import score_file

    if len(args.names) != 1:
        raise ConfigError("--predictions scores one set without a model: give the set alone, glip evaluate SET")
    exam = _exam(args.names[0], args, folders_of(args.names, args.images, args.root)[args.names[0]])
    file = Path(args.predictions)
    folder = Path(args.out) / exam.name if args.out else file.with_name(f"{file.stem}-{exam.name}")
    print(score_file(exam, file, folder, draw=args.draw).markdown())
    print(f"report in {folder}")
    return 0


def _tell_gain(told: "dict[str, list[Report]]") -> None:
    """What each wording gains over the first one, set by set."""
    from glip.evaluate.report import Row, markdown_table

    rows: list[Row] = []
    first = next(iter(told.values()))
    for place, before in enumerate(first):
        name = next((name for name in HEADLINES if name in before.figures), "")
        for words, reports in told.items():
            value = reports[place].figures[name]
            gain = "" if reports is first else f"{value - before.figures[name]:+.3f}"
            rows.append({"set": before.dataset, "prompts": words, "figure": name, "value": value, "gain": gain})
    print("\n".join(markdown_table(rows)))


def _tell(reports: "Sequence[Report]", folder: Path) -> None:
    from glip.evaluate.report import summary

    if len(reports) > 1:
        shown = [name for name in HEADLINES if any(name in report.figures for report in reports)]
        print("\n".join(summary(reports, shown)))
    print(f"reports and results in {folder}", file=sys.stderr)
