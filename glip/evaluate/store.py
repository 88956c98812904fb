"""Predictions on disk in numpy's format, written as they come: a killed evaluation resumes where it stopped.

Each process writes parts of its own, ``part-PROCESS-NUMBER.npz``, whole or not at all. A detection takes 24 bytes,
since LVIS's protocol keeps 186 million of its 20,000 images; parts are read one at a time.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glip.evaluate.run import Prediction, QueryOptions
from glip.files import atomic_write, begin_run
from glip.structures import Detections, Sample

_SECONDS = 10.0  # what a kill loses at most
_DETECTIONS = 1_000_000  # of a part, 24 MB


class PredictionStore:
    """The predictions of one evaluation.

    Args:
        folder: where they are kept; made if missing.
        settings: what they are predictions of: the model, the set, the options.
        process: number of this process; each writes parts of its own and reads those of all.

    Raises:
        DataError: the folder holds predictions made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, process: int = 0) -> None:
        if process == 0:
            begin_run(folder, settings)
        self.folder = folder
        self._own = f"part-{process}-"
        self._pending: list[Prediction] = []
        self._count, self._flushed = 0, time.monotonic()
        self.reload()

    def reload(self) -> None:
        """Look again for what is on disk, after other processes have written."""
        self._rows: dict[int, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("part-*.npz")):
            with np.load(path) as part:
                self._rows |= {sample: (path, row) for row, sample in enumerate(part["samples"].tolist())}

    @property
    def done(self) -> set[int]:
        """Indices of the samples that have a prediction on disk."""
        return set(self._rows)

    def add(self, prediction: Prediction) -> None:
        """Keep a prediction; it is on disk within seconds, or after ``flush``."""
        self._pending.append(prediction)
        self._count += len(prediction.found or ())
        if self._count >= _DETECTIONS or time.monotonic() - self._flushed > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self._pending:
            path = self.folder / f"{self._own}{len(list(self.folder.glob(f'{self._own}*.npz'))):06}.npz"
            with atomic_write(path, "wb") as file:
                np.savez(file, **_columns(self._pending))  # type: ignore[arg-type]
            self._rows |= {prediction.index: (path, row) for row, prediction in enumerate(self._pending)}
        self._pending, self._count, self._flushed = [], 0, time.monotonic()

    def read(self, samples: Sequence[Sample], options: QueryOptions) -> Iterator[tuple[Sample, Prediction]]:
        """Each sample that has a prediction on disk, and the prediction, in the order of the samples."""
        load, prompt_of = lru_cache(maxsize=4)(_load_part), lru_cache(maxsize=64)(options.prompt_of)
        for index in sorted(self._rows):
            path, row = self._rows[index]
            part, sample = load(path), samples[index]
            if part["reasons"][row]:
                yield sample, Prediction(index, None, str(part["reasons"][row]), str(part["places"][row]))
                continue
            own = slice(part["ends"][row], part["ends"][row + 1])
            boxes, scores, labels = (torch.from_numpy(part[name][own].copy()) for name in ("boxes", "scores", "labels"))
            prompt, (height, width) = sample.prompt or prompt_of(sample.vocabulary), part["sizes"][row].tolist()
            yield sample, Prediction(index, Detections(boxes, scores, labels.long(), prompt, (height, width)))


def _load_part(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as part:
        return dict(part)


def _columns(predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
    """Columns over the samples, and over all their detections; those of row ``i`` are ``ends[i]:ends[i + 1]``."""
    found = [prediction.found for prediction in predictions if prediction.found is not None]
    return {
        "samples": np.array([prediction.index for prediction in predictions]),
        "sizes": np.array([p.found.size if p.found is not None else (0, 0) for p in predictions]),
        "ends": np.cumsum([0, *(len(prediction.found or ()) for prediction in predictions)]),
        "reasons": np.array([prediction.reason for prediction in predictions]),
        "places": np.array([prediction.place for prediction in predictions]),
        "labels": np.concatenate([np.zeros(0, np.int32), *(part.labels.numpy().astype(np.int32) for part in found)]),
        "scores": np.concatenate([np.zeros(0, np.float32), *(part.scores.numpy() for part in found)]),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes.numpy() for part in found)]),
    }
