"""Masks for boxes, by SAM or SAM 2 of Hugging Face transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from glip.data.image import ImageInput, open_any
from glip.device import choose_device
from glip.errors import CheckpointError, needs
from glip.structures import Detections

_FILES = ["*.safetensors", "*.json"]
_AT_ONCE = 8  # masks that are scaled to the image's size at once: scores are floats, masks are bits


class Segmenter:
    """Gives detections their masks.

    Args:
        model: SamModel, SamHQModel or Sam2Model.
        processor: the model's.

    Examples:
        >>> sam = Segmenter.from_pretrained("facebook/sam-vit-base")
        >>> found = sam("street.jpg", detector("street.jpg", "a car"))
        >>> found.masks  # bool, (detections, height, width)
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, device: str | None = None) -> "Segmenter":
        """Load a model from a folder, or by its name on the hub.

        Raises:
            CheckpointError: no such model, or one that makes no masks from boxes.
        """
        with needs("sam"):
            from huggingface_hub import snapshot_download
            from transformers import AutoModelForMaskGeneration, AutoProcessor
        problem = "is no folder, and cannot be downloaded from the hub"
        try:
            # The user chooses the repository, and nothing in it is run: safetensors and JSON only.
            local = Path(name_or_path).is_dir()
            folder = name_or_path if local else snapshot_download(str(name_or_path), allow_patterns=_FILES)  # nosec B615
            problem = "is no SAM or SAM 2 model"
            model = AutoModelForMaskGeneration.from_pretrained(folder, use_safetensors=True)  # nosec B615
            processor = AutoProcessor.from_pretrained(folder)  # nosec B615
            return cls(model.to(choose_device(device)), processor)
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split()).partition(". ")[0]
            raise CheckpointError(
                f"masks: {str(name_or_path)!r} {problem} ({why}): give a folder of a SAM or SAM 2 "
                "model of transformers, or its name on the hub, such as facebook/sam-vit-base"
            ) from None

    @torch.no_grad()
    def __call__(self, image: ImageInput, found: Detections) -> Detections:
        """The detections of an image with ``masks``, one for each box in the image's pixels."""
        if not len(found):
            return replace(found, masks=torch.zeros(0, *found.size, dtype=torch.bool))
        inputs = self.processor(images=open_any(image), input_boxes=[found.boxes.tolist()], return_tensors="pt")
        inputs["input_boxes"] = inputs["input_boxes"].float()
        sizes = {name: inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
        given = {name: inputs[name].to(self.model.device) for name in ("pixel_values", "input_boxes")}
        scores = self.model(**given, multimask_output=False).pred_masks.cpu()
        parts = [self.processor.post_process_masks(part, **sizes)[0] for part in scores.split(_AT_ONCE, dim=1)]
        return replace(found, masks=torch.cat(parts)[:, 0])
