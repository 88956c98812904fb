"""A model exported to ONNX (``integrations/export.py``), run by onnxruntime instead of torch.

Three graphs do what GLIP's three steps do, so the same prompts, processor and postprocessing work, and tasks of
``glip tune`` too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glip.errors import CheckpointError, needs
from glip.geometry.anchors import grid_anchors
from glip.model.glip import GLIP, Hidden, Map, Mask
from glip.shapes import Float, Int, Tensor
from glip.structures import Outputs

GRAPHS = IMAGE, TEXT, HEAD = "image_encoder", "text_encoder", "head"  # the stems of the files, ending in .onnx
LEVELS = ("p3", "p4", "p5", "p6", "p7")
MIN_RUNTIME = (1, 25)  # earlier ones cannot run DeformConv on a CPU


class ExportedGLIP(GLIP):
    """A GLIP whose steps are graphs of onnxruntime; it computes in float32 and cannot be trained.

    Raises:
        CheckpointError: onnxruntime is missing, a file that it cannot load, or files of different models.
    """

    def __init__(self, folder: Path) -> None:
        nn.Module.__init__(self)  # no weights of its own
        self.folder = folder
        self._load(["CPUExecutionProvider"])
        self.language = _TextEncoder(self._graphs[TEXT])  # type: ignore[assignment]

    def _load(self, providers: Sequence[str]) -> None:
        self._graphs = {name: _open_graph(self.folder / f"{name}.onnx", providers) for name in GRAPHS}
        made = {graph.get_modelmeta().custom_metadata_map.get("fingerprint", "") for graph in self._graphs.values()}
        if len(made) > 1 or not all(made):
            raise CheckpointError(
                f"{str(self.folder)!r}: its graphs are not of one glip export: export the model again"
            )
        [self.fingerprint] = made

    def to(self, device: Any, *_: Any, **__: Any) -> "ExportedGLIP":  # type: ignore[override]
        """Run on a GPU, where this onnxruntime can, or on the CPU; images and results stay in main memory.

        Raises:
            CheckpointError: this onnxruntime has no CUDA.
        """
        if torch.device(device).type == "cuda":
            if "CUDAExecutionProvider" not in _runtime().get_available_providers():
                raise CheckpointError("this onnxruntime has no CUDA: pip install onnxruntime-gpu, or give --device cpu")
            self._load(["CUDAExecutionProvider", "CPUExecutionProvider"])
        return self

    @property
    def device(self) -> torch.device:
        """Where images and words are expected."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return torch.float32

    def cast(self, dtype: torch.dtype) -> None:
        """An exported model computes in float32 only."""
        raise CheckpointError(f"{str(self.folder)!r} is an exported model, which computes in float32: give that dtype")

    def encode_image(self, pixels: Float[Tensor, "batch 3 height width"]) -> tuple[Map, ...]:
        """See ``GLIP.encode_image``."""
        return tuple(_compute(self._graphs[IMAGE], pixels=pixels))

    def fuse_and_predict(self, levels: Sequence[Map], hidden: Hidden, attention_mask: Mask) -> Outputs:
        """See ``GLIP.fuse_and_predict``."""
        named = dict(zip(LEVELS, levels, strict=True))
        logits, deltas, centerness = _compute(self._graphs[HEAD], **named, hidden=hidden, attention_mask=attention_mask)
        sizes = tuple((x.shape[2], x.shape[3]) for x in levels)
        return Outputs(logits, deltas, centerness, grid_anchors(sizes), sizes)


class _TextEncoder(nn.Module):
    def __init__(self, graph: Any) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, input_ids: Int[Tensor, "batch tok"], attention_mask: Mask) -> Hidden:
        [hidden] = _compute(self.graph, input_ids=input_ids, attention_mask=attention_mask)
        return hidden


def _compute(graph: Any, **inputs: Tensor) -> list[Tensor]:
    found = graph.run(None, {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()})
    return [torch.from_numpy(value) for value in found]


def _open_graph(path: Path, providers: Sequence[str]) -> Any:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        return runtime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # its classes are many, and have no parent of their own
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{str(path)!r} cannot be loaded ({why}): export the model again") from None


def _runtime() -> Any:
    with needs("onnx"):
        import onnxruntime
    version = onnxruntime.__version__
    if tuple(map(int, version.split(".")[:2])) < MIN_RUNTIME:
        raise CheckpointError(f"onnxruntime {version} has no deformable convolution on a CPU: install 1.25 or later")
    return onnxruntime
