"""The images of docs/model_card.md: how the losses fell, and what the model finds in drawings it never saw.

    python tools/draw_card.py curve runs/nano_base runs/nano --out docs/images/nano_curve.png
    python tools/draw_card.py sheet --model glip-nano --out docs/images/nano_sheet.png

The runs of a curve are in the order in which each began with the weights of the one before. The sheet needs the sets
world_novel and world_novel_captions under GLIP_DATA (tools/draw_world.py; docs/data.md has the command).
"""

import argparse
import json
from pathlib import Path

import glip
from glip.data.catalog import find_set, read_set
from glip.evaluate.figures import found_sample
from glip.evaluate.run import detect_all
from glip.structures import Sample
from glip.train.step import TERMS
from glip.visualize import contact_sheet, save_image

SHEET = (("world_novel", range(8)), ("world_novel_captions", range(8, 16)))
SMOOTH = 5  # rows of metrics.jsonl, each a mean over 20 steps


def main() -> None:
    """Draw one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="what", required=True)
    curve = verbs.add_parser("curve", help="losses over the steps of one or more runs")
    curve.add_argument("runs", nargs="+", type=Path, help="folders with a metrics.jsonl")
    sheet = verbs.add_parser("sheet", help="what a model finds, above its default threshold")
    sheet.add_argument("--model", default="glip-nano")
    for verb in (curve, sheet):
        verb.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "curve":
        draw_curve(args.runs, args.out)
    else:
        draw_sheet(args.model, args.out)


def draw_curve(runs: list[Path], out: Path) -> None:
    """A panel for each loss term, one line for each run, one run behind the other."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(12, 3.2), layout="tight")
    panels = canvas.subplots(1, len(TERMS) + 1)
    begin = 0
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "lr" in row]
        steps = [begin + row["step"] for row in rows]
        for panel, term in zip(panels, TERMS, strict=False):
            panel.plot(steps, running_mean([row[term] for row in rows]), label=run.name)
            panel.set(title=f"{term} loss", xlabel="step")
        panels[-1].plot(steps, [row["lr"] for row in rows], label=run.name)
        begin = steps[-1]
    panels[-1].set(title="learning rate", xlabel="step")
    panels[0].legend()
    canvas.savefig(out, dpi=100)


def running_mean(values: list[float]) -> list[float]:
    """Each value averaged with the ones shortly before."""
    return [sum(values[max(0, end - SMOOTH) : end]) / min(end, SMOOTH) for end in range(1, len(values) + 1)]


def draw_sheet(model: str, out: Path) -> None:
    """Drawings of novel combinations with what the model finds in them."""
    detector = glip.Detector.from_pretrained(model)
    shown: list[Sample] = []
    for name, chosen in SHEET:
        samples = read_set(find_set(name)).samples
        pairs = detect_all(detector, [samples[index] for index in chosen])
        shown += [found_sample(sample, found.above(detector.config.inference.threshold)) for sample, found in pairs]
    save_image(contact_sheet(shown), out)


if __name__ == "__main__":
    main()
