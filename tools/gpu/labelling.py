"""How fast captioned images are labelled, and what part of the time each stage takes."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from benchmark_label import label_times

from glip.model.weights import save_pretrained
from glip.pseudo.filters import PairRules
from glip.pseudo.label import HowToLabel
from gpu.measure import VOCABULARY, Measurement, Row, Setup, precision, random_model

_TABLE = "Labelling images of 640 x 480, JPEG, one process"
_ROUNDS = 2  # of which the faster counts


def measurements(setup: Setup) -> Iterator[Measurement]:
    """The bundled model, then a teacher of the size of GLIP-T with random weights."""
    for model in ("tiny",) if setup.tiny else ("glip-nano", "glip_t_c"):
        for kind in ("float32", "bfloat16"):
            yield Measurement(f"labelling with {model}, {kind}", _TABLE, partial(label_rows, model, kind, setup))


def label_rows(model: str, kind: str, setup: Setup) -> list[Row]:
    """One and five captions an image."""
    with tempfile.TemporaryDirectory() as scratch:
        teacher = model if model == "glip-nano" else str(stored_teacher(model, Path(scratch), setup))
        how = HowToLabel(
            model=teacher,
            batch_size=setup.batch_sizes[-1],
            device=setup.device,
            threads=torch.get_num_threads(),
            pairs=PairRules(repeated_captions=0),
        )
        images = 4 if setup.tiny else 64
        with precision(kind, setup.device):
            best = label_times(Path(scratch), how, images, 1 if setup.tiny else _ROUNDS)
    rows: list[Row] = []
    for count, spent in best.items():
        wall = spent.pop("wall")
        shares = {stage: f"{seconds / wall:.0%}" for stage, seconds in spent.items()}
        rows.append({"teacher": model, "precision": kind, "captions": count, "images/s": images / wall, **shares})
    return rows


def stored_teacher(name: str, folder: Path, setup: Setup) -> Path:
    """A folder with random weights of a config's sizes."""
    model, config = random_model(name, setup)
    target = folder / "teacher"
    save_pretrained(target, model, config, VOCABULARY, half=True)
    return target
