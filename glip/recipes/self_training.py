"""Self-training in rounds: a teacher labels captions, and a student trains on the labels beside annotated datasets.

The student of one round is the teacher of the next (GLIP, section 3.3). Each step can be resumed by itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glip.config import DatasetConfig, LabelConfig, SelectConfig, SelfTrainConfig, SetConfig
from glip.console import counted
from glip.detector import Detector
from glip.device import choose_device
from glip.errors import DataError
from glip.evaluate.report import for_terminal, markdown_table
from glip.evaluate.validate import Validator
from glip.experiment import Experiment, to_dict
from glip.files import MANIFEST, atomic_write, begin_run, exclusive, read_jsonl, write_jsonl
from glip.provenance import RECORD, record
from glip.pseudo.run import run_labelling
from glip.pseudo.select import select
from glip.pseudo.store import image_folders
from glip.structures import Sample
from glip.train.distributed import Group
from glip.train.loop import check_experiment
from glip.train.run import run as train

PSEUDO = "pseudo-labels"  # the dataset's name in the student's mixture
LEDGER, TABLE = "rounds.jsonl", "table.md"
Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class SelfTraining:
    """What self-training depends on."""

    experiment: Experiment  # how a student is trained, with the annotated datasets
    captions: SetConfig  # the dataset to label
    teacher: str  # the first one: a name or a folder
    label: LabelConfig
    select: SelectConfig
    options: SelfTrainConfig


def student_folder(folder: str | Path, number: int) -> Path:
    """Where the student of a round is trained; its model is in ``model``."""
    return Path(folder) / f"round-{number}" / "student"


def self_train(
    plan: SelfTraining,
    folder: str | Path,
    *,
    sets: Mapping[str, Sequence[Sample]],
    device: str | None = None,
    say: Say = print,
) -> list[Row]:
    """Run the rounds that are missing; ``rounds.jsonl`` in the folder has a row for each that is finished.

    Gives a row for the teacher and one for each student, with their figures on ``sets`` (samples by name). Models run
    on ``device``, by default on CUDA where available.

    Raises:
        GlipError: the folder is in use or holds other results, a shard or a model cannot be read, or no box is kept.
        TrainingError: a student's losses stayed non-finite.
        OSError: a file cannot be written.
    """
    check_experiment(plan.experiment, Group())  # before hours of labelling
    with exclusive(folder):
        options = to_dict(replace(plan.options, rounds=1))  # more rounds may be added later
        sources = {"teacher": plan.teacher, "captions": plan.captions.annotations}
        plain = {**sources, **options, **to_dict(plan.select), "student": to_dict(plan.experiment)}
        begin_run(folder, plain)
        record(Path(folder) / RECORD, config={**plain, "label": to_dict(plan.label)}, files=[Path(folder) / MANIFEST])
        ledger, teacher = Path(folder) / LEDGER, plan.teacher
        rows: list[Row] = list(read_jsonl(ledger)) if ledger.is_file() else []
        for number in range(plan.options.rounds + 1):
            student = student_folder(folder, number)
            model = str(student / "model") if number else teacher
            if number >= len(rows):
                row = _run_round(plan, student, number, teacher, device, say) if number else {}
                rows.append({"round": number, **row, "figures": _validate(model, sets, device, say)})
                _write_table(Path(folder) / TABLE, rows, say)  # first: after the ledger's row it is not written again
                write_jsonl(ledger, rows)
            teacher = model
        record(Path(folder) / RECORD, files=[ledger, Path(folder) / TABLE])
    return rows


def _run_round(plan: SelfTraining, student: Path, number: int, teacher: str, device: str | None, say: Say) -> Row:
    """Label, select and train; returns what the labels are and how long it took."""
    began, labels, selected = time.monotonic(), student.parent / "labels", student.parent / "selected.jsonl"
    options, experiment = plan.options, plan.experiment
    say(f"round {number} of {options.rounds}: {teacher} labels {plan.captions.annotations}")
    failed = run_labelling(plan.captions, teacher, plan.label, labels, device=device, say=say)["failed"]
    if failed:
        shard, reason = next(iter(failed.items()))
        many = counted(len(failed), "shard")
        raise DataError(f"{many} cannot be read, such as {shard} ({reason}): repair and run the same command again")
    chosen = select(labels, selected, plan.select)
    say(f"{chosen.kept_boxes} of {counted(chosen.boxes, 'box')} selected; a student is trained in {student}")
    pseudo = DatasetConfig(
        name=PSEUDO,
        format="labels",
        annotations=str(selected.absolute()),
        images=image_folders(labels),
        weight=sum(entry.weight for entry in experiment.data.train) * options.share / (1 - options.share),
        soft=options.soft,
        box_loss=options.box_loss,
    )
    data = replace(experiment.data, train=(*experiment.data.train, pseudo))
    start = teacher if options.from_teacher else experiment.train.start
    settings = replace(experiment.train, output=str(student), start=start)
    train(replace(experiment, data=data, train=settings), device=choose_device(device), report=say)
    minutes = round((time.monotonic() - began) / 60, 1)
    return {"labels": {"pairs": chosen.kept_pairs, "boxes": chosen.kept_boxes}, "minutes": minutes}


def _validate(model: str, sets: Mapping[str, Sequence[Sample]], device: str | None, say: Say) -> dict[str, float]:
    """The figures of a model on every image of each dataset."""
    if not sets:
        return {}
    found = Validator(sets, images=0, shown=0)(Detector.from_pretrained(model, device=device))
    if found.skipped:
        say(f"skipped in the evaluation: {found.skipped}")
    return {name: round(value, 4) for name, value in found.figures.items()}


def _write_table(path: Path, rows: Sequence[Row], say: Say) -> None:
    table = []
    for row in rows:
        name = f"student {row['round']}" if row["round"] else "teacher"
        table.append({"round": name, **row.get("labels", {}), **row["figures"]})
    columns = dict.fromkeys(key for row in table for key in row)
    text = "\n".join(markdown_table([{key: row.get(key, "") for key in columns} for row in table]))
    with atomic_write(path) as file:
        file.write(text + "\n")
    say(for_terminal(text))
