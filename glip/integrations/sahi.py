"""GLIP in SAHI: give a ``GlipDetectionModel`` to ``get_sliced_prediction``, which detects in slices of large images."""

from typing import Any

import numpy as np

from glip.detector import Detector
from glip.errors import needs
from glip.structures import Detections, Prompt
from glip.text.prompt import Words, as_prompts

with needs("sahi"):
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list


class GlipDetectionModel(DetectionModel):
    """A detector for SAHI: images in its slices are batched, and a category is a class of the prompt.

    Args:
        model: a ``Detector``; or give its name or path as ``model_path``.
        prompt: what to find; default: the names of the detector's task.
        **options: of SAHI's ``DetectionModel``, such as ``confidence_threshold`` (its default is 0.3) and ``device``.
    """

    def __init__(self, *, prompt: Words | None = None, model: Detector | None = None, **options: Any) -> None:
        self.prompt: Prompt | None = None if prompt is None else as_prompts(prompt)[0]
        super().__init__(model=model, **options)

    def load_model(self) -> None:
        """Load the model of ``model_path``."""
        self.set_model(Detector.from_pretrained(self.model_path or "glip-nano", device=str(self.device)))

    def set_model(self, model: Detector, **_: Any) -> None:
        """Use a detector, with the names of its task where there is no prompt."""
        self.model = model.resized(self.image_size) if self.image_size else model
        self.category_mapping = (self.prompt or model.encode_text().prompts[0]).class_names

    def perform_inference(self, image: np.ndarray) -> None:
        """Detect in one RGB image."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        """Detect in RGB images of any sizes."""
        self._original_predictions: list[Detections] = self.model(
            images, self.prompt, threshold=self.confidence_threshold, batch_size=len(images)
        )

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        shifts = fix_shift_amount_list(shift_amount_list or [[0, 0]])
        shapes = fix_full_shape_list(full_shape_list) or [None] * len(shifts)
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=list(one.box),
                    category_id=category,
                    category_name=self.category_mapping[category],
                    score=one.score,
                    shift_amount=shift,
                    full_shape=shape,
                )
                for one, category in zip(found, found.classes.tolist(), strict=True)
            ]
            for found, shift, shape in zip(self._original_predictions, shifts, shapes, strict=True)
        ]
