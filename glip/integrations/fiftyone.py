"""GLIP in FiftyOne: a model for ``dataset.apply_model``, and the files of a remote source for its model zoo."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from glip.detector import Detector
from glip.errors import needs
from glip.files import atomic_write
from glip.model.weights import list_pretrained
from glip.structures import Detections
from glip.text.prompt import Words, as_prompts

with needs("fiftyone"):
    import fiftyone as fo
    from fiftyone.core.models import Model

_ZOO = "from glip.integrations.fiftyone import download_model, load_model\n"
_FOLDER = "glip_models"  # FiftyOne imports it by this name, which must not be that of the package


class GlipModel(Model):
    """A detector for ``dataset.apply_model(model, label_field="glip", batch_size=4)``.

    Args:
        detector: the model.
        prompt: what to find; default: the names of the detector's task. A label is the name of a class.
        threshold: lowest score; default: the model's.
    """

    media_type, transforms, preprocess, ragged_batches = "image", None, False, False

    def __init__(self, detector: Detector, prompt: Words | None = None, threshold: float | None = None) -> None:
        self.detector, self.threshold = detector, threshold
        self.prompt = None if prompt is None else as_prompts(prompt)[0]

    def predict(self, arg: np.ndarray) -> Any:
        """``fiftyone.Detections`` of an RGB image."""
        return self.predict_all([arg])[0]

    def predict_all(self, args: Iterable[np.ndarray]) -> list[Any]:
        """The same for several images."""
        images = list(args)
        found = self.detector(images, self.prompt, threshold=self.threshold, batch_size=len(images) or 1)
        return [to_fiftyone(one) for one in found]


def to_fiftyone(found: Detections) -> Any:
    """``fiftyone.Detections``: boxes as shares of the image's sides, the class names as labels."""
    names, (height, width) = found.prompt.class_names, found.size
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    return fo.Detections(
        detections=[
            fo.Detection(
                label=names[number],
                bounding_box=[left / width, top / height, (right - left) / width, (bottom - top) / height],
                confidence=score,
            )
            for (left, top, right, bottom), score, number in rows
        ]
    )


def write_zoo(folder: str | Path) -> None:
    """Write a source of FiftyOne's model zoo, FOLDER/glip_models: for ``fo.config.model_zoo_dir``, or a repository."""
    source = Path(folder, _FOLDER)
    source.mkdir(parents=True, exist_ok=True)
    with atomic_write(source / "__init__.py") as file:
        file.write(_ZOO)
    models = [
        {
            "base_name": name,
            "base_filename": name,
            "description": "GLIP: open-vocabulary object detection and phrase grounding",
            "requirements": {"packages": ["glip"], "cpu": {"support": True}, "gpu": {"support": True}},
            "tags": ["detection", "zero-shot", "torch"],
        }
        for name in list_pretrained()
    ]
    with atomic_write(source / "manifest.json") as file:
        json.dump({"name": _FOLDER, "models": models}, file, indent=2)


def download_model(model_name: str, model_path: str) -> None:
    """Fetch a model by its public name, for the zoo."""
    Detector.from_pretrained(model_name, device="cpu").save_pretrained(model_path)


def load_model(model_name: str, model_path: str, prompt: Words | None = None, **options: Any) -> GlipModel:
    """The model of the zoo; ``prompt``, ``threshold`` and ``device`` are given to ``load_zoo_model``."""
    threshold = options.pop("threshold", None)
    return GlipModel(Detector.from_pretrained(model_path, **options), prompt, threshold)
