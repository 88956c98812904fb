"""GLIP as an auto-annotation function of CVAT, for ``cvat-cli --function-module glip.integrations.cvat``."""

from typing import Any

from PIL import Image

from glip.detector import Detector
from glip.errors import needs
from glip.text.prompt import Words, as_prompts

with needs("cvat"):
    import cvat_sdk.auto_annotation as cvataa


class DetectionFunction:
    """What CVAT's driver calls: a label for each class of the prompt, a rectangle for each detection.

    Args:
        detector: the model.
        names: what to find, in the task's own label names; default: the names of the detector's task.
    """

    def __init__(self, detector: Detector, names: Words | None = None) -> None:
        self.detector, self.prompt = detector, as_prompts(names)[0] if names else None
        asked = self.prompt or detector.encode_text().prompts[0]
        labels = [cvataa.label_spec(name, number, type="rectangle") for number, name in asked.class_names.items()]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The rectangles of an image; without a threshold of CVAT's the model's own applies."""
        found = self.detector(image, self.prompt, threshold=context.conf_threshold)
        rows = zip(found.classes.tolist(), found.boxes.tolist(), strict=True)
        return [cvataa.rectangle(number, box) for number, box in rows]


def create(names: str = "", model: str = "glip-nano", task: str | None = None, device: str | None = None) -> Any:
    """Make the function from the parameters of ``cvat-cli``; ``names`` may be empty with a ``task`` of glip tune."""
    return DetectionFunction(Detector.from_pretrained(model, task=task, device=device), names or None)
