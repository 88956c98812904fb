"""The study "fusion" of claims.py: does a fusion that a gate adds to a trained model help where one expects it?

Arms: A trained on without fusion; A with a gated fusion (``glip convert --add-fusion``), trained as long; B, fusion
from the start, with and without a gate, and B trained on. Measured apart: novel combinations, novel phrases, phrases
that compare things ("the left star"), and relations, where a phrase is true of one of two alike things.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawn_world.icons import COLOURS, KINDS, Thing
from drawn_world.scenes import World, draw_sample, draw_scene
from measuring import Row

import glip
from glip.evaluate.coco import average_precision
from glip.evaluate.phrases import phrase_recall
from glip.evaluate.run import detect_all
from glip.structures import Phrase, Prompt, Sample

COMPARING = {"left", "right", "far", "upper", "lower", "topmost", "bottommost"}
COMPARING |= {"smaller", "bigger", "smallest", "biggest"}
SIDES, IMAGES = (112, 176), 300  # as in claims.py
LONG = 6000
FIGURES = ("novel AP50", "novel recall@1", "comparison recall@1", "relation recall@1")
FUSION: list[tuple[int, tuple[Any, ...]]] = [
    (seed, (arm, captions, 1200))
    for seed in (0, 1, 2)
    for captions in (False, True)
    for arm in ("A, trained on", "A, gated fusion", "B", "B, gate", "B, trained on")
]
FUSION += [(0, (arm, True, LONG)) for arm in ("A, trained on", "A, gated fusion", "B, trained on")]


def overrides_of(arm: str, captions: bool, steps: int, start: Path | None) -> list[str]:
    """What differs from claims/a or b: the data, the steps, the gate and the starting model.

    What is trained on has 1,200 steps behind it, which count as steps of the long runs.
    """
    words = [f"train.steps={steps - 1200 if steps == LONG else steps}"]
    if captions:
        mixed = [vars(entry) for entry in glip.load_config("claims/c").data.train]
        words.append(f"data.train={json.dumps([{k: row[k] for k in ('name', 'weight')} for row in mixed])}")
    if start:
        words.append(f"train.start={start}")
    if "gate" in arm:
        words += ["model.head.fusion=true", "model.head.fusion_gate=tanh"]
    return words


def measure_fusion(detector: glip.Detector) -> Row:
    """The four figures; recall@1 by kind of phrase."""
    named = [draw_sample(seed, World("novel", 0.0, SIDES, plain=True)) for seed in range(IMAGES)]
    spoken = [draw_sample(seed, World("novel", 1.0, SIDES, plain=True)) for seed in range(IMAGES)]
    kinds = [replace(sample, kinds=tuple(map(_kinds, sample.prompt.texts))) for sample in spoken if sample.prompt]
    found = phrase_recall(detect_all(detector, kinds))
    related = phrase_recall(detect_all(detector, [related_scene(seed) for seed in range(IMAGES)]))
    values = (
        average_precision(detect_all(detector, named)).ap50,
        found.at[1],
        found.kinds["comparison"].at[1],
        related.at[1],
    )
    return {name: round(value, 4) for name, value in zip(FIGURES, values, strict=True)}


def _kinds(phrase: str) -> tuple[str, ...]:
    return ("comparison",) if COMPARING & set(phrase.split()) else ("other",)


def related_scene(seed: int) -> Sample:
    """Two alike things and a third one: "the car left of the house" is true of one car. Half is right by chance."""
    rng = np.random.default_rng([20261128, seed])
    kinds: list[str] = rng.choice(KINDS, 2, replace=False).tolist()
    colours: list[str] = rng.choice(list(COLOURS), 2, replace=False).tolist()
    relation = str(rng.choice(["left of", "right of", "above", "below"]))
    across, before = relation in ("left of", "right of"), relation in ("left of", "above")
    side = 160
    spots = [20, 66, 112] if rng.random() < 0.5 else [24, 70, 116]
    places = [(spot, int(rng.integers(20, 110))) for spot in spots]  # along the axis of the relation, and across it
    boxes = [(*(xy := place if across else place[::-1]), xy[0] + 32, xy[1] + 32) for place in places]
    alike = [Thing(kinds[0], colours[0], "plain", boxes[place]) for place in (0, 2)]
    anchor = Thing(kinds[1], colours[1], "plain", boxes[1])
    image = draw_scene([*alike, anchor], (side, side), seed)
    caption = f"the {kinds[0]} {relation} the {kinds[1]}"
    target = alike[0 if before else 1]
    end = len(f"the {kinds[0]}")
    prompt = Prompt(caption, (Phrase(caption[:end], ((0, end),)),))
    boxes_of = torch.tensor([target.box], dtype=torch.float32)
    return Sample(image, boxes_of, ((0,),), prompt=prompt, image_id=seed, size=image.size)


def draw_fusion(groups: Mapping[tuple[Any, ...], Sequence[Row]], path: Path) -> None:
    """A panel for each figure: a row for each arm, a dot for each seed."""
    from matplotlib.figure import Figure

    shown = {key: runs for key, runs in groups.items() if runs}
    labels = [f"{arm}{', captions' * captions}, {steps:,}" for arm, captions, steps in shown]
    canvas = Figure(figsize=(15, 1.5 + 0.3 * len(labels)), layout="tight")
    for panel, figure in zip(canvas.subplots(1, len(FIGURES), sharey=True), FIGURES, strict=True):
        for place, ((arm, captions, _), runs) in enumerate(shown.items()):
            values, colour = [row["figures"][figure] for row in runs], "C0" if arm.startswith("A") else "C1"
            panel.plot(values, [place] * len(values), "o" if captions else "s", color=colour, alpha=0.7)
        panel.set(
            title=figure, yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5), xlim=(0, 1)
        )
        panel.grid(axis="x", alpha=0.3)
    canvas.savefig(path, dpi=90)
