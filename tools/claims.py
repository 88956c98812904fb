"""The paper's claims in miniature: one run at a time into a ledger, and the table and figure of docs/claims.md from it.

    python tools/claims.py run [--arm b] [--seed 0] [--size 500] [--runs 1] [--language MINILM_FOLDER]
    python tools/claims.py report

Arms are configs/claims/{a,b,c}.yaml, which say how their images are drawn. Size is the number of different images
that the same number of steps learns from, 0 for all of them, each once. Rows of docs/claims.jsonl with size 0 were
drawn on the fly. A run in the ledger is skipped; a stopped one goes on where it was.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from drawn_world.scenes import Split, World, draw_sample

import glip
from glip.config import DatasetConfig
from glip.evaluate.coco import average_precision
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.experiment import to_dict

ROOT = Path(__file__).resolve().parent.parent
LEDGER, PAGE, FIGURE = (ROOT / "docs" / name for name in ("claims.jsonl", "claims.md", "images/claims.png"))
ARMS = {"a": "A: no fusion", "b": "B: fusion", "c": "C: fusion and captions"}
SIZES, SEEDS, IMAGES, SIDES = (30, 120, 500), (0, 1, 2), 300, (112, 176)
PLAN = [(arm, 0, seed) for seed in SEEDS for arm in ARMS]
PLAN += [(arm, size, seed) for seed in SEEDS for size in SIZES for arm in "ab"]
FIGURES = ("novel AP50", "seen AP50", "novel recall@1", "seen recall@1")
BEGIN, END = "<!-- made by tools/claims.py report -->", "<!-- end of what tools/claims.py makes -->"
Row = dict[str, Any]


def main() -> None:
    """Run what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--seed", type=int, choices=SEEDS)
    parser.add_argument("--size", type=int, choices=(0, *SIZES))
    parser.add_argument("--runs", type=int, default=1, help="missing runs to make (default: the next one)")
    parser.add_argument("--language", help="folder of the text encoder, where its public name cannot be fetched")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    rows = [json.loads(line) for line in LEDGER.read_text().splitlines()] if LEDGER.is_file() else []
    if args.action == "report":
        return report(rows)
    done = {(row["arm"], row["size"], row["seed"]) for row in rows}
    wanted = (args.arm, args.size, args.seed)
    missing = [key for key in PLAN if key not in done and all(w in (None, k) for w, k in zip(wanted, key, strict=True))]
    for arm, size, seed in missing[: args.runs]:
        row = run(arm, size, seed, args.language, args.device)
        with LEDGER.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(f"{max(0, len(missing) - args.runs)} of these runs are still to make")


def run(arm: str, size: int, seed: int, language: str | None, device: str) -> Row:
    """Train one model with ``glip train`` and measure it on scenes of the other splits."""
    config = glip.load_config(f"claims/{arm}")
    sets, total = config.data.train, sum(entry.weight for entry in config.data.train)
    sets = tuple(dataclasses.replace(entry, first=round(size * entry.weight / total)) for entry in sets)
    usual = to_dict(DatasetConfig(name="")).items()
    data = [{key: value for key, value in to_dict(entry).items() if (key, value) not in usual} for entry in sets]
    overrides = [f"train.seed={seed}", f"data.train={json.dumps(data)}"]
    output = ROOT / "runs" / "claims" / f"{arm}-{size}-{seed}"
    extra = [f"train.output={output}"] + ([f"model.language.pretrained={language}"] if language else [])
    began, spent = time.monotonic(), output.with_suffix(".minutes")
    command = [sys.executable, "-m", "glip", "train", f"claims/{arm}", *overrides, *extra, "--device", device]
    try:
        if subprocess.run(command, cwd=ROOT).returncode:
            sys.exit("the training stopped (see above): the same command goes on where it was")
    finally:  # a stopped run goes on later: its minutes add up
        before = float(spent.read_text()) if spent.is_file() else 0.0
        spent.parent.mkdir(parents=True, exist_ok=True)
        spent.write_text(str(before + (time.monotonic() - began) / 60))
    figures = measure(glip.Detector.from_pretrained(output / "model", device=device))
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    images = min(size or 10**9, config.train.steps * config.train.batch_size)
    row = {"arm": arm, "size": size, "seed": seed, "images": images, "figures": figures, "overrides": overrides}
    return {**row, "minutes": round(float(spent.read_text()), 1), "commit": commit.stdout.strip()}


def measure(detector: "glip.Detector") -> dict[str, float]:
    """AP50 over class names and recall@1 over captions, of scenes like those of the training and of novel ones."""
    figures: dict[str, float] = {}
    splits: tuple[Split, ...] = ("novel", "seen")
    for split in splits:
        names, captions = (
            [draw_sample(seed, World(split, captioned, SIDES, plain=True)) for seed in range(IMAGES)]
            for captioned in (0.0, 1.0)
        )
        figures[f"{split} AP50"] = round(average_precision(detect_all(detector, names)).ap50, 4)
        figures[f"{split} recall@1"] = round(phrase_recall(detect_all(detector, captions)).at[1], 4)
    return figures


def report(rows: list[Row]) -> None:
    """Write the table into docs/claims.md, between its markers, and draw the figure."""
    header = "| arm | different images | runs | " + " | ".join(FIGURES) + " | minutes |"
    lines = [header, "|" + "---|" * header.count(" | ") + "---|"]
    for (arm, images), runs in sorted(by_arm(rows).items()):
        cells = " | ".join(spread([row["figures"][figure] for row in runs]) for figure in FIGURES)
        minutes = f"{mean(row['minutes'] for row in runs):.0f}"
        lines.append(f"| {ARMS[arm]} | {images:,} | {len(runs)} | {cells} | {minutes} |")
    write_between(PAGE, BEGIN, END, [*lines, "", "![figures](images/claims.png)"])
    draw(by_arm(rows))


def write_between(path: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Write lines into a page between two markers, which are added at its end if they are not there."""
    page = path.read_text() if path.is_file() else "# The claims in miniature\n"
    before, _, rest = page.partition(begin)
    table = "\n".join([begin, "", *lines, "", end])
    path.write_text(f"{before.rstrip()}\n\n{table}{rest.partition(end)[2] or chr(10)}")


def by_arm(rows: list[Row]) -> dict[tuple[str, int], list[Row]]:
    """The runs of each (arm, different images)."""
    keys = {(row["arm"], row["images"]) for row in rows}
    return {key: [row for row in rows if (row["arm"], row["images"]) == key] for key in keys}


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def draw(groups: dict[tuple[str, int], list[Row]]) -> None:
    """One panel for each figure: how it grows with the number of different images, a line for each arm."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(16, 4), layout="tight")
    panels = canvas.subplots(1, len(FIGURES), sharex=True)
    for panel, figure in zip(panels, FIGURES, strict=True):
        for arm, label in ARMS.items():
            values = {
                key[1]: [row["figures"][figure] for row in groups[key]] for key in sorted(groups) if key[0] == arm
            }
            [line] = panel.plot(list(values), [mean(column) for column in values.values()], label=label)
            for size, column in values.items():
                panel.scatter([size] * len(column), column, color=line.get_color())
        panel.set(title=figure, xlabel="different images", xscale="log")
    panels[0].legend()
    canvas.savefig(FIGURE, dpi=100)


if __name__ == "__main__":
    main()
