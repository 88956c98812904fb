"""Teacher and student in the drawn world: one run at a time into a ledger, and the table and figure of docs/claims.md.

    python tools/claims_teach.py run [--runs 1] [--work runs/claims_teach] [--language MINILM_FOLDER]
    python tools/claims_teach.py report

The teacher learns from class names that never say some words (``held_out`` in configs/claims/teacher.yaml, which
says how its images are drawn); captions say them. It labels captioned images, and a student
(configs/claims/student.yaml) starts with its weights and learns from these beside the teacher's gold lists. "gold only"
trains as long without captions. Rows that exist are skipped; those of docs/claims_teach.jsonl had gold lists drawn on
the fly.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from draw_world import write_world
from drawn_world.scenes import World, draw_sample

import glip
from glip.config import DatasetConfig, LabelConfig, SelectConfig, SetConfig
from glip.evaluate.coco import average_precision
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.pseudo.run import run_labelling
from glip.pseudo.select import select
from glip.structures import Sample
from glip.text.prompt import says_one_of
from glip.train.run import run as train

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "docs" / "claims_teach.jsonl"
POOL, FIRST, IMAGES = 2000, 1_900_000_000, 300  # captioned images, the first one's seed, images of a measurement
SIDES, SHARE = (112, 176), 0.5
MOST, PER_PHRASE = 2, 2  # things in a captioned image, and boxes that are believed of a phrase, at most
# (arm, captioned images, threshold, round); of all seeds the first three, then of seed 0 the curves
MAIN = [("teacher", 0, 0.0, 0), ("gold only", 0, 0.0, 1), ("student", POOL, 0.3, 1)]
CURVES = [("student", POOL, threshold, 1) for threshold in (0.1, 0.5, 0.7)]  # from 0.8 on the teacher has no box
CURVES += [("student", size, 0.3, 1) for size in (125, 500)] + [("student", POOL, 0.3, 2)]
CURVES += [("student, soft", POOL, 0.3, 1), ("student, no box loss", POOL, 0.3, 1)]
PLAN = [(0, key) for key in MAIN] + [(seed, key) for seed in (1, 2) for key in MAIN] + [(0, key) for key in CURVES]
Key = tuple[str, int, float, int]
Row = dict[str, Any]


def main() -> None:
    """Run what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--runs", type=int, default=1, help="missing rows to make (default: the next one)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "claims_teach", help="for models and images")
    parser.add_argument("--language", help="folder of the text encoder, where its public name cannot be fetched")
    args = parser.parse_args()
    rows = [json.loads(line) for line in LEDGER.read_text().splitlines()] if LEDGER.is_file() else []
    if args.action == "report":
        from claims_teach_report import write_report

        return write_report(rows)
    done = {(row["seed"], row["arm"], row["captioned"], row["threshold"], row["round"]) for row in rows}
    missing = [(seed, key) for seed, key in PLAN if (seed, *key) not in done]
    for seed, key in missing[: args.runs]:
        began = time.monotonic()
        model = make(args.work, seed, key, args.language)
        figures = measure(glip.Detector.from_pretrained(model, device="cpu"))
        arm, size, threshold, number = key
        row = {"seed": seed, "arm": arm, "captioned": size, "threshold": threshold, "round": number, "figures": figures}
        with LEDGER.open("a") as file:
            file.write(json.dumps({**row, "minutes": round((time.monotonic() - began) / 60, 1)}) + "\n")
        print(row)
    print(f"{max(0, len(missing) - args.runs)} rows are still to make")


def make(work: Path, seed: int, key: Key, language: str | None) -> Path:
    """Train the model of a row, unless it is there; gives its folder."""
    arm, size, threshold, number = key
    folder = work / f"{arm.replace(',', '').replace(' ', '-')}-{size}-{threshold:g}-{number}-{seed}"
    if (folder / "model" / "model.safetensors").is_file():
        return folder / "model"
    overrides = [f"train.seed={seed}", f"train.output={folder}"]
    if arm == "teacher":
        pretrained = [f"model.language.pretrained={language}"] if language else []
        return train(glip.load_config("claims/teacher", overrides + pretrained))
    before: Key = ("student", POOL, threshold, number - 1) if number > 1 else MAIN[0]
    teacher = make(work, seed, before, language)
    experiment = glip.load_config("claims/student", [*overrides, f"train.start={teacher}"])
    if arm.startswith("student"):
        gold = experiment.data.train[0]
        labels = replace(
            labelled(work, teacher, threshold),
            first=size,
            weight=gold.weight * SHARE / (1 - SHARE),
            soft="soft" in arm,
            box_loss="no box loss" not in arm,
        )
        experiment = replace(experiment, data=replace(experiment.data, train=(gold, labels)))
    return train(experiment)


def labelled(work: Path, teacher: Path, threshold: float) -> DatasetConfig:
    """The pool as the teacher sees it, boxes from a threshold on."""
    pool = work / "pool"
    if not (pool / "captions.jsonl").is_file():
        write_world(pool, World("train", 1.0, SIDES, most=MOST), POOL, first=FIRST, both=False)
    images = str((pool / "images").absolute())
    entry = SetConfig(format="captions", annotations=str((pool / "captions.jsonl").absolute()), images=(images,))
    config = LabelConfig(min_bytes=0, same_image=-1, max_repeats=0, threads=1)
    folder = teacher.parent / "labels"
    run_labelling(entry, teacher, config, folder, device="cpu")
    out = folder / f"selected-{threshold:g}.jsonl"
    select(folder, out, SelectConfig(min_score=threshold, min_best_score=threshold, max_per_phrase=PER_PHRASE))
    return DatasetConfig(name="pseudo-labels", format="labels", annotations=str(out.absolute()), images=(images,))


def measure(detector: "glip.Detector") -> dict[str, float]:
    """AP50 over lists and recall@1 over captions of scenes, of what has a withheld word and of what has none."""
    words = glip.load_config("claims/teacher").data.train[0].held_out
    names, captioned = (
        [draw_sample(seed, World("seen", share, SIDES, plain=True)) for seed in range(IMAGES)] for share in (0.0, 1.0)
    )
    figures: dict[str, float] = {}
    score = average_precision(detect_all(detector, names))
    for kind, unseen in (("unseen", True), ("seen", False)):
        own = [one.ap50 for one in score.categories if one.boxes and says_one_of(one.name, words) == unseen]
        figures[f"{kind} AP50"] = round(sum(own) / len(own), 4)
    recall = phrase_recall(detect_all(detector, [kinded(sample, words) for sample in captioned])).kinds
    return {**figures, **{f"{kind} recall@1": round(recall[kind].at[1], 4) for kind in ("unseen", "seen")}}


def kinded(sample: Sample, words: Sequence[str]) -> Sample:
    """A captioned sample that says of each phrase whether it has a withheld word."""
    assert sample.prompt is not None
    kinds = tuple(("unseen",) if says_one_of(text, words) else ("seen",) for text in sample.prompt.texts)
    return replace(sample, kinds=kinds)


if __name__ == "__main__":
    main()
