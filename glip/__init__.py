"""Open-vocabulary object detection and phrase grounding (GLIP, Li et al., CVPR 2022, arXiv 2112.03857).

Names load on first use (PEP 562), so ``import glip`` costs nothing and touches neither torch nor the network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glip.config import ModelConfig
    from glip.detector import Detector
    from glip.loss import Criterion
    from glip.model.glip import GLIP
    from glip.model.weights import list_pretrained
    from glip.processor import Processor
    from glip.structures import Detections
    from glip.text.prompt import Prompt
    from glip.train.start import load_config

__version__ = "0.1.0"

_HOMES = {
    "Criterion": "glip.loss",
    "Detections": "glip.structures",
    "Detector": "glip.detector",
    "GLIP": "glip.model.glip",
    "ModelConfig": "glip.config",
    "Processor": "glip.processor",
    "Prompt": "glip.text.prompt",
    "list_pretrained": "glip.model.weights",
    "load_config": "glip.train.start",
}

__all__ = [
    "GLIP",
    "Criterion",
    "Detections",
    "Detector",
    "ModelConfig",
    "Processor",
    "Prompt",
    "__version__",
    "list_pretrained",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glip' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
