"""Rounds of teaching: a teacher labels captions, a student learns from them beside gold data and becomes the teacher.

GLIP section 3.3 (data scaling by self-training); each step is what its own command does, so each can be resumed.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from glip.config import DatasetConfig, SetConfig
from glip.data.sets import SkipCounter
from glip.detector import Detector, choose_device
from glip.errors import DataError
from glip.evaluate.report import markdown_table
from glip.evaluate.validate import Validator
from glip.experiment import Experiment, to_dict
from glip.files import atomic_write
from glip.pseudo.engine import Say
from glip.pseudo.label import LabelConfig
from glip.pseudo.run import Workers, run_labelling
from glip.pseudo.select import SelectRules, select
from glip.pseudo.store import Store, read_manifest
from glip.structures import Sample
from glip.train.loop import check_experiment
from glip.train.run import run as train

PSEUDO = "pseudo-labels"  # the set's name in the student's mixture
LEDGER, TABLE = "rounds.jsonl", "table.md"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SelfTrainConfig:
    """What a round does with the labels.

    Args:
        rounds: how many; the student of one is the teacher of the next.
        share: of the student's images that are pseudo-labelled; the others are of the config's own sets.
        from_teacher: the student starts with the teacher's weights, else as the config says.
        rules: which boxes are believed.
        soft: scores weigh the losses of pseudo-labels.
        box_loss: pseudo-labels also teach where boxes end (YOLO-World does without).

    Raises:
        ValueError: a value that makes no sense.
    """

    rounds: int = 1
    share: float = 0.5
    from_teacher: bool = True
    rules: SelectRules = field(default_factory=SelectRules)
    soft: bool = False
    box_loss: bool = True

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise DataError(f"rounds: got {self.rounds}: give 1 or more")
        if not 0 < self.share < 1:
            raise DataError(f"share: got {self.share}: give the pseudo-labelled share of the images, in (0, 1)")


class SelfTraining:
    """Rounds of one experiment in one folder; ``rounds.jsonl`` there has a row for each that is done.

    Args:
        experiment: how a student is trained, with its gold sets.
        captions: what is labelled.
        label: how, but for the teacher.
        how: what a round does.
        folder: where everything goes.
        sets: samples that teacher and students are evaluated on, by name.
        workers: what labels.
        say: is told what goes on.

    Raises:
        ValueError: the folder holds another teaching, or the experiment's numbers make no sense.
    """

    def __init__(
        self,
        experiment: Experiment,
        captions: SetConfig,
        label: LabelConfig,
        how: SelfTrainConfig,
        folder: str | Path,
        *,
        sets: Mapping[str, Sequence[Sample]],
        workers: Workers,
        say: Say = print,
    ) -> None:
        start = label.model if how.from_teacher else experiment.train.start
        check_experiment(replace(experiment, train=replace(experiment.train, start=start)))  # before hours
        self.experiment, self.captions, self.label, self.how = experiment, captions, label, how
        self.folder, self.sets, self.workers, self.say = Path(folder), sets, workers, say
        rounds = asdict(replace(how, rounds=1))  # more may be asked for later
        Store(folder).begin(
            {"teacher": label.model, "captions": captions.annotations, **rounds, "student": to_dict(experiment)}
        )

    def __call__(self) -> list[Row]:
        """Run the rounds that are missing; gives a row for the teacher and one for each student.

        Raises:
            ValueError: another run writes there, a shard or a model cannot be read, or no box is believed.
            TrainingError: a student's losses stayed non-finite.
            OSError: the disk is full, or may not be written.
        """
        with Store(self.folder).locked():
            return self._rounds()

    def _rounds(self) -> list[Row]:
        path = self.folder / LEDGER
        rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        teacher = self.label.model
        for number in range(self.how.rounds + 1):
            if number >= len(rows):
                rows.append(self._round(number, teacher) if number else {"round": 0, "figures": self._figures(teacher)})
                with atomic_write(path) as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
                self._write_table(rows)
            teacher = str(self._part(number) / "student" / "model") if number else teacher
        return rows

    def _part(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _round(self, number: int, teacher: str) -> Row:
        began, part = time.monotonic(), self._part(number)
        self.say(f"round {number} of {self.how.rounds}: {teacher} labels {self.captions.annotations}")
        done = run_labelling(self.captions, replace(self.label, model=teacher), part / "labels", self.workers, self.say)
        if done.failed:
            raise DataError(
                f"{len(done.failed)} shards could not be labelled, such as {done.failed[0].shard} "
                f"({done.failed[0].reason}): mend or remove them, and run the same again"
            )
        chosen = select(part / "labels", part / "selected.jsonl", self.how.rules)
        self.say(f"{chosen.kept_boxes} of {chosen.boxes} boxes selected; a student is trained in {part / 'student'}")
        student = train(self._student(part, teacher), device=choose_device(self.label.device), report=self.say)
        minutes = round((time.monotonic() - began) / 60, 1)
        labels = {"pairs": chosen.kept_pairs, "boxes": chosen.kept_boxes}
        return {"round": number, "figures": self._figures(str(student)), "labels": labels, "minutes": minutes}

    def _student(self, part: Path, teacher: str) -> Experiment:
        data, how = self.experiment.data, self.how
        gold = sum(row.weight for row in data.train)
        pseudo = DatasetConfig(
            name=PSEUDO,
            format="labels",
            annotations=str((part / "selected.jsonl").absolute()),
            images=tuple(read_manifest(part / "labels")["images"]),
            weight=gold * how.share / (1 - how.share),
            soft=how.soft,
            box_loss=how.box_loss,
        )
        settings = replace(self.experiment.train, output=str(part / "student"))
        if how.from_teacher:
            settings = replace(settings, start=teacher)
        return replace(self.experiment, data=replace(data, train=(*data.train, pseudo)), train=settings)

    def _figures(self, model: str) -> dict[str, float]:
        """The figures of a model on all sets, every image of them."""
        if not self.sets:
            return {}
        detector = Detector.from_pretrained(model, device=self.label.device)
        found = Validator(self.sets, images=0, shown=0)(detector)
        _say_left_out(found.skipped, self.say)
        return {name: round(value, 4) for name, value in found.figures.items()}

    def _write_table(self, rows: Sequence[Row]) -> None:
        table = [
            {
                "round": "teacher" if not row["round"] else f"student {row['round']}",
                **row.get("labels", {}),
                **row["figures"],
            }
            for row in rows
        ]
        columns = list(dict.fromkeys(key for row in table for key in row))
        lines = markdown_table([{key: row.get(key, "") for key in columns} for row in table])
        with atomic_write(self.folder / TABLE) as file:
            file.write("\n".join(lines) + "\n")
        self.say("\n".join(lines))


def _say_left_out(skipped: SkipCounter, say: Say) -> None:
    if skipped:
        say(f"left out of the evaluation: {skipped}")
