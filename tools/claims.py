"""The paper's claims in miniature: one run at a time into a ledger; the tables and figures of docs/claims.md from them.

    python tools/claims.py run [--study arms | teacher | fusion] [--arm b] [--seed 0] [--runs 1] [--language MINILM]
    python tools/claims.py report

The study "arms" trains configs/claims/{a,b,c}.yaml; size is the number of different images that the same number of
steps learns from, 0 for all of them, each once. In the study "teacher" a model learns from class names that never say
some words (``held_out`` in configs/claims/teacher.yaml); captions say them. It labels captioned images, and a student
(configs/claims/student.yaml) starts with its weights and learns from these beside the annotated images. "gold only"
trains as long without captions. The study "fusion" (claims_fusion.py) adds a gated fusion to a trained model.
A run in a ledger is skipped; a stopped one is resumed by the same command. Rows with
size 0, and all of the teacher's study, were made with images drawn on the fly.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from claims_fusion import FIGURES, FUSION, draw_fusion, measure_fusion, overrides_of
from draw_world import write_world
from drawn_world.scenes import World, draw_sample
from measuring import Row, table

import glip
from glip.config import LabelConfig, SelectConfig, SelfTrainConfig, SetConfig, Share
from glip.errors import DataError
from glip.evaluate.coco import average_precision
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.files import append_jsonl, read_jsonl
from glip.recipes.self_training import SelfTraining, self_train, student_folder
from glip.schema import parse
from glip.structures import Sample

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SIDES, IMAGES = (112, 176), 300  # pixels of the images, and how many a measurement has
ARMS = {"a": "A: no fusion", "b": "B: fusion", "c": "C: fusion and captions"}
SIZES, SEEDS = (30, 120, 500), (0, 1, 2)
POOL, FIRST = 2000, 1_900_000_000  # captioned images, and the seed of the first
TEACHER, GOLD = ("teacher", 0, 0.0, 0), ("gold only", 0, 0.0, 1)
STUDENTS = [("student", POOL, threshold, 1) for threshold in (0.1, 0.5, 0.7)]  # from 0.8 on the teacher has no box
STUDENTS += [("student", size, 0.3, 1) for size in (125, 500)] + [("student", POOL, 0.3, 2)]
STUDENTS += [("student, soft", POOL, 0.3, 1), ("student, no box loss", POOL, 0.3, 1)]
Groups = dict[tuple[Any, ...], list[Row]]  # the runs that differ in the seed alone


@dataclass(frozen=True)
class LedgerRow:
    """What a row of every ledger has; the studies add keys of their own."""

    arm: str
    seed: int
    figures: dict[str, Share]
    minutes: float
    size: int = 0
    steps: int = 0
    captions: bool = False
    images: int = 0
    captioned: int = 0
    threshold: float = 0.0
    round: int = 0


@dataclass(frozen=True)
class Study:
    """A ledger and its table: ``key`` are the fields that tell runs apart, ``plan`` has (seed, key) of every run."""

    name: str
    key: tuple[str, ...]
    plan: list[tuple[int, tuple[Any, ...]]]
    figures: tuple[str, ...]

    def groups(self) -> Groups:
        """The finished runs by key."""
        ledger, found = DOCS / f"{self.name}.jsonl", Groups()
        for number, row in enumerate(read_jsonl(ledger) if ledger.is_file() else (), start=1):
            read = parse(LedgerRow, row, at=f"{ledger}, line {number}", error=DataError)
            if missing := [name for name in self.figures if name not in read.figures]:
                raise DataError(f"{ledger}, line {number}: no figure {missing[0]!r}: delete the line")
            found.setdefault(tuple(getattr(read, name) for name in self.key), []).append(row)
        return found


STUDIES = {
    "arms": Study(
        "claims",
        ("arm", "size"),
        [(seed, (arm, 0)) for seed in SEEDS for arm in ARMS]
        + [(seed, (arm, size)) for seed in SEEDS for size in SIZES for arm in "ab"],
        ("novel AP50", "seen AP50", "novel recall@1", "seen recall@1"),
    ),
    "teacher": Study(
        "claims_teach",
        ("arm", "captioned", "threshold", "round"),
        [(seed, key) for seed in SEEDS for key in (TEACHER, GOLD, ("student", POOL, 0.3, 1))]
        + [(0, key) for key in STUDENTS],
        ("unseen AP50", "seen AP50", "unseen recall@1", "seen recall@1"),
    ),
    "fusion": Study("claims_fusion", ("arm", "captions", "steps"), FUSION, FIGURES),
}


def main() -> None:
    """Run what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--study", choices=STUDIES, default="arms")
    parser.add_argument("--arm", help="only runs of this arm")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only runs with this seed")
    parser.add_argument("--size", type=int, help="only runs with this number of images")
    parser.add_argument("--runs", type=int, default=1, help="missing runs to make (default: the next one)")
    parser.add_argument("--language", help="folder of the text encoder, where its public name cannot be fetched")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.action == "report":
        return report()
    study, make = STUDIES[args.study], {"arms": run_arm, "teacher": run_teaching, "fusion": run_fusion}[args.study]
    done = {(row["seed"], key) for key, rows in study.groups().items() for row in rows}
    wanted = (args.seed, args.arm, args.size)
    missing = [
        (seed, key)
        for seed, key in study.plan
        if (seed, key) not in done
        and all(one in (None, own) for one, own in zip(wanted, (seed, *key[:2]), strict=True))
    ]
    for seed, key in missing[: args.runs]:
        row, began = {**dict(zip(study.key, key, strict=True)), "seed": seed}, time.monotonic()
        row |= make(seed, key, args.language, args.device)
        append_jsonl(DOCS / f"{study.name}.jsonl", {**row, "minutes": round((time.monotonic() - began) / 60, 1)})
    print(f"{max(0, len(missing) - args.runs)} of these runs are still to make")


# ---- runs


def glip_train(config: str, output: Path, device: str, overrides: Sequence[str]) -> Path:
    """The model of ``glip train``; one that is finished is not trained again."""
    if not (output / "model" / "model.safetensors").is_file():
        words = [f"train.output={output}", "--device", device]
        if subprocess.run([sys.executable, "-m", "glip", "train", config, *overrides, *words], cwd=ROOT).returncode:
            sys.exit("the training stopped (see above): the same command resumes it")
    return output / "model"


def pretrained(language: str | None) -> list[str]:
    """The override for a text encoder in a folder."""
    return [f"model.language.pretrained={language}"] if language else []


def run_arm(seed: int, key: tuple[Any, ...], language: str | None, device: str) -> Row:
    """Train a model on some of the images and measure it on scenes of the other splits."""
    arm, size = key
    config = glip.load_config(f"claims/{arm}")
    total = sum(entry.weight for entry in config.data.train)
    sets = [
        {"name": entry.name, "weight": entry.weight, "first": round(size * entry.weight / total)}
        for entry in config.data.train
    ]
    overrides = [f"train.seed={seed}", f"data.train={json.dumps(sets)}"]
    folder = ROOT / "runs" / "claims" / f"{arm}-{size}-{seed}"
    model = glip_train(f"claims/{arm}", folder, device, [*overrides, *pretrained(language)])
    detector = glip.Detector.from_pretrained(model, device=device)
    figures: dict[str, float] = {}
    for split in ("novel", "seen"):
        figures[f"{split} AP50"] = round(average_precision(detect_all(detector, scenes(split, 0.0))).ap50, 4)
        figures[f"{split} recall@1"] = round(phrase_recall(detect_all(detector, scenes(split, 1.0))).at[1], 4)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    images = min(size or 10**9, config.train.steps * config.train.batch_size)
    return {"images": images, "figures": figures, "overrides": overrides, "commit": commit.stdout.strip()}


def run_fusion(seed: int, key: tuple[Any, ...], language: str | None, device: str) -> Row:
    """Train a model of the study "fusion", after the one that it starts from, and measure it."""
    arm, captions, steps = key
    work = ROOT / "runs" / "claims_fusion"
    folder = work / f"{arm.replace(', ', '-').replace(' ', '-')}{'-captions' * captions}-{steps}-{seed}"
    start: Path | None = None
    if arm.startswith(("A,", "B,")) and arm != "B, gate":
        base = f"claims/{arm[0].lower()}"
        stage = [f"train.seed={seed}", *pretrained(language)]
        start = glip_train(base, work / f"{arm[0]}-1200-{seed}", device, stage)
    if arm == "A, gated fusion":
        start, plain = work / f"A-fusion-{seed}", start
        subprocess.run([sys.executable, "-m", "glip", "convert", str(plain), str(start), "--add-fusion"], check=True)
    overrides = [f"train.seed={seed}", *overrides_of(arm, captions, steps, start)]
    overrides += [] if start else pretrained(language)
    model = glip_train(f"claims/{arm[0].lower()}", folder, device, overrides)
    detector = glip.Detector.from_pretrained(model, device=device)
    gates = [value.item() for name, value in detector.model.named_parameters() if ".gate_" in name]
    stated = [word.replace(f"{ROOT}/", "") for word in overrides]
    return {"figures": measure_fusion(detector), "overrides": stated, "gates": [round(g, 3) for g in gates]}


def run_teaching(seed: int, key: tuple[Any, ...], language: str | None, device: str) -> Row:
    """Train the model of a row and measure it on what has a held-out word and on what has none."""
    arm, size, threshold, rounds = key
    work, overrides = ROOT / "runs" / "claims_teach", [f"train.seed={seed}"]
    model = glip_train("claims/teacher", work / f"teacher-{seed}", device, [*overrides, *pretrained(language)])
    if arm == "gold only":
        start = [*overrides, f"train.start={model}"]
        model = glip_train("claims/student", work / f"gold-{seed}", device, start)
    elif arm != "teacher":
        pool = work / f"pool-{size}"
        if not (pool / "captions.jsonl").is_file():
            write_world(pool, World("train", 1.0, SIDES, most=2), size, first=FIRST, both=False)
        plan = SelfTraining(
            glip.load_config("claims/student", overrides),
            SetConfig(format="captions", annotations=str(pool / "captions.jsonl"), images=(str(pool / "images"),)),
            str(model),
            LabelConfig(min_bytes=0, same_image=-1, max_repeats=0, threads=1),
            SelectConfig(min_score=threshold, min_best_score=threshold, max_per_phrase=2),
            SelfTrainConfig(rounds=rounds, share=0.5, soft="soft" in arm, box_loss="no box loss" not in arm),
        )
        folder = work / f"{arm.replace(',', '').replace(' ', '-')}-{size}-{threshold:g}-{seed}"
        self_train(plan, folder, sets={"seen": scenes("seen", 0.0)[:50]}, device=device)
        model = student_folder(folder, rounds) / "model"
    return {"figures": measure_held_out(glip.Detector.from_pretrained(model, device=device))}


def measure_held_out(detector: glip.Detector) -> dict[str, float]:
    """AP50 over names and recall@1 over phrases, of those with a held-out word ("unseen") and of the others."""
    words = set(glip.load_config("claims/teacher").data.train[0].held_out)

    def kind(text: str) -> str:
        return "unseen" if words & set(text.lower().split()) else "seen"

    figures: dict[str, float] = {}
    categories = average_precision(detect_all(detector, scenes("seen", 0.0))).categories
    captions = [
        replace(sample, kinds=tuple((kind(text),) for text in sample.prompt.texts))
        for sample in scenes("seen", 1.0)
        if sample.prompt is not None
    ]
    recall = phrase_recall(detect_all(detector, captions)).kinds
    for one in ("unseen", "seen"):
        figures[f"{one} AP50"] = round(mean(c["AP50"] for c in categories if c["boxes"] and kind(c["name"]) == one), 4)
        figures[f"{one} recall@1"] = round(recall[one].at[1], 4)
    return figures


def scenes(split: Any, captioned: float) -> list[Sample]:
    """The drawn scenes of a measurement, with class names or with captions."""
    return [draw_sample(seed, World(split, captioned, SIDES, plain=True)) for seed in range(IMAGES)]


# ---- the report


def report() -> None:
    """Write the tables into docs/claims.md, between their markers, and draw the figures."""
    arms, teacher, rows = STUDIES["arms"], STUDIES["teacher"], list[Row]()
    for (arm, _), runs in sorted(arms.groups().items(), key=lambda item: (item[0][0], item[1][0]["images"])):
        row = {"arm": ARMS[arm], "different images": f"{runs[0]['images']:,}", **cells(arms, runs)}
        rows.append({**row, "minutes": f"{mean(row['minutes'] for row in runs):.0f}"})
    write_table(arms, rows)
    draw_arms(arms)
    rows = []
    for (arm, size, threshold, number), runs in sorted(teacher.groups().items(), key=_place):
        row = {"": f"{arm}, round {number}" if number > 1 else arm}
        row |= {"captioned images": f"{size:,}" if size else "–", "threshold": f"{threshold:g}" if size else "–"}
        rows.append({**row, **cells(teacher, runs)})
    write_table(teacher, rows)
    draw_teaching(teacher)
    fusion = STUDIES["fusion"]
    groups = {key: fusion.groups().get(key, []) for _, key in fusion.plan}
    rows = [
        {"arm": arm, "captions": "yes" if captions else "no", "steps": f"{steps:,}", **cells(fusion, runs)}
        for (arm, captions, steps), runs in groups.items()
        if runs
    ]
    write_table(fusion, rows)
    draw_fusion(groups, DOCS / "images" / f"{fusion.name}.png")


def _place(group: tuple[tuple[Any, ...], list[Row]]) -> tuple[Any, ...]:
    """The line of a group: the teacher, what trained on without captions, then the students."""
    arm, size, threshold, number = group[0]
    return arm != "teacher", arm != "gold only", arm, number, -size, threshold


def cells(study: Study, runs: list[Row]) -> Row:
    """The number of runs; mean and standard deviation of each figure over the seeds."""
    columns = {figure: [row["figures"][figure] for row in runs] for figure in study.figures}
    spread = {figure: f" ± {stdev(values):.3f}" if len(values) > 1 else "" for figure, values in columns.items()}
    return {"runs": len(runs), **{figure: f"{mean(v):.3f}{spread[figure]}" for figure, v in columns.items()}}


def write_table(study: Study, rows: list[Row]) -> None:
    """Write a table into the page between the study's markers, which are added at its end if they are missing."""
    begin = f"<!-- made by tools/{study.name}.py report -->"
    end = f"<!-- end of what tools/{study.name}.py makes -->"
    path = DOCS / "claims.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    lines = "\n".join(table(rows)).replace("|  |", "| |", 1)
    text = f"{begin}\n\n{lines}\n\n![figures](images/{study.name}.png)\n\n{end}"
    path.write_text(f"{before.rstrip()}\n\n{text}{rest.partition(end)[2] or chr(10)}", encoding="utf-8")


def draw_arms(study: Study) -> None:
    """One panel for each figure: how it grows with the number of different images, a line for each arm."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(16, 4), layout="tight")
    groups = sorted(study.groups().items(), key=lambda item: item[1][0]["images"])
    panels = canvas.subplots(1, len(study.figures), sharex=True)
    for panel, figure in zip(panels, study.figures, strict=True):
        for arm, label in ARMS.items():
            points = {runs[0]["images"]: [r["figures"][figure] for r in runs] for key, runs in groups if key[0] == arm}
            [line] = panel.plot(list(points), [mean(values) for values in points.values()], label=label)
            for images, values in points.items():
                panel.scatter([images] * len(values), values, color=line.get_color())
        panel.set(title=figure, xlabel="different images", xscale="log")
    panels[0].legend()
    canvas.savefig(DOCS / "images" / f"{study.name}.png", dpi=100)


def draw_teaching(study: Study) -> None:
    """Over the threshold, captioned images (0: gold only) and rounds, seed 0; dashed: the teacher."""
    from matplotlib.figure import Figure

    runs = {key: row for key, rows in study.groups().items() for row in rows if row["seed"] == 0}
    students = [(key[1:], row) for key, row in runs.items() if key[0] == "student"]
    teacher, gold = ([row for key, row in runs.items() if key[0] == arm] for arm in ("teacher", "gold only"))
    whole = [row for (size, _, number), row in students if (size, number) == (POOL, 1)]
    sizes = [row for (_, threshold, number), row in students if (threshold, number) == (0.3, 1)]
    rounds = [row for (size, threshold, _), row in students if (size, threshold) == (POOL, 0.3)]
    panels = Figure(figsize=(13, 4.2), layout="tight").subplots(1, 3)
    for panel, label, field, own in (
        (panels[0], "score threshold of the pseudo-labels", "threshold", whole),
        (panels[1], "captioned images", "captioned", gold + sizes),
        (panels[2], "round", "round", teacher + rounds),
    ):
        own = sorted(own, key=lambda row: row[field])
        for number, figure in enumerate(study.figures):
            values = [row["figures"][figure] for row in own]
            panel.plot([row[field] for row in own], values, "o-", color=f"C{number}", label=figure)
            for row in teacher if field != "round" else ():
                panel.axhline(row["figures"][figure], color=f"C{number}", linestyle="--", linewidth=0.8)
        panel.set(xlabel=label, ylim=(0, 1))
    panels[2].set_xticks(range(1 + max((row["round"] for row in runs.values()), default=0)))
    panels[0].legend(fontsize="small")
    panels[0].figure.savefig(DOCS / "images" / f"{study.name}.png", dpi=90)


if __name__ == "__main__":
    main()
