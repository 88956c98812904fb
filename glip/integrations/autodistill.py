"""GLIP as a base model of autodistill: it labels a folder of images to train another model on."""

from pathlib import Path
from typing import Any

import numpy as np

from glip.detector import Detector
from glip.errors import needs
from glip.structures import Prompt

with needs("autodistill"):
    from autodistill.detection import CaptionOntology, DetectionBaseModel


class GlipBaseModel(DetectionBaseModel):
    """Finds what an ontology maps to classes; of several prompts of one class the best box stays.

    Args:
        ontology: autodistill's, such as ``CaptionOntology({"a red car": "car", "a van": "car"})``.
        model: a ``Detector``, or the name or path of one.
        threshold: lowest score; default: the model's.
    """

    def __init__(
        self, ontology: CaptionOntology, model: Detector | str | Path = "glip-nano", threshold: float | None = None
    ) -> None:
        super().__init__(ontology)
        self.detector = model if isinstance(model, Detector) else Detector.from_pretrained(model)
        self.threshold, self.classes = threshold, ontology.classes()  # autodistill repeats a class for each prompt
        numbers = [self.classes.index(name) for name in self.classes]
        self.prompt = Prompt.from_names(ontology.prompts(), classes=numbers)

    def predict(self, input: Any) -> Any:
        """``supervision.Detections`` of a path, a PIL image, or an array, which autodistill gives in BGR."""
        image = input[..., ::-1] if isinstance(input, np.ndarray) else input
        found = self.detector(image, self.prompt, threshold=self.threshold)
        given, numbers = found.to_supervision(), found.classes.numpy()
        given.class_id, given.data["class_name"] = numbers, np.array([self.classes[n] for n in numbers], dtype=str)
        return given
