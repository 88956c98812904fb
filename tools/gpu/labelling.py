"""How fast captioned images are labelled, and what part of the time each stage takes."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
from benchmark_label import CAPTIONS, label_times

from glip.config import LabelConfig
from glip.model.weights import save_pretrained
from glip.pseudo import label
from gpu.measure import VOCABULARY, Measurement, Row, Setup, precision, random_model

_TABLE = "Labelling images of 640 x 480, JPEG, one process"
_PHRASES = dict(
    zip(
        CAPTIONS,
        (
            ("a man", "a red shirt", "a brown horse"),
            ("two dogs", "the green grass", "a fence"),
            ("a woman", "a bench", "a blue umbrella"),
            ("a cat", "a small table", "a lamp"),
            ("several people", "a large white bus"),
        ),
        strict=True,
    )
)
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
        config = LabelConfig(batch_size=setup.batch_sizes[-1], threads=torch.get_num_threads(), max_repeats=0)
        images = 4 if setup.tiny else 64
        with precision(kind, setup.device), phrases_given():
            best = label_times(Path(scratch), teacher, config, images, 1 if setup.tiny else _ROUNDS, setup.device)
    rows: list[Row] = []
    for count, spent in best.items():
        wall = spent.pop("wall")
        shares = {stage: f"{seconds / wall:.0%}" for stage, seconds in spent.items()}
        shares |= {} if find_spec("spacy") else {"parse": "not measured, package spacy is missing"}
        rows.append({"teacher": model, "precision": kind, "captions": count, "images/s": images / wall, **shares})
    return rows


class GivenPhrases:
    """The noun phrases of the benchmark's captions, for machines without spacy."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def many(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Character ranges in each caption."""
        return [[(text.index(phrase), text.index(phrase) + len(phrase)) for phrase in _PHRASES[text]] for text in texts]


@contextmanager
def phrases_given() -> Iterator[None]:
    """Without spacy, label with known phrases: detection is timed, parsing is not."""
    with patch.object(label, "PhraseFinder", GivenPhrases) if not find_spec("spacy") else nullcontext():
        yield


def stored_teacher(name: str, folder: Path, setup: Setup) -> Path:
    """A folder with random weights of a config's sizes."""
    model, config = random_model(name, setup)
    target = folder / "teacher"
    save_pretrained(target, model, config, VOCABULARY, half=True)
    return target
