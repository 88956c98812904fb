"""A model exported to ONNX (``integrations/export.py``), run by onnxruntime instead of torch.

Three graphs do what GLIP's three steps do, so the same prompts, processor and postprocessing work, and tasks of
``glip tune`` too.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glip.config import ModelConfig
from glip.errors import CheckpointError, needs
from glip.geometry.anchors import STRIDES, grid_anchors, level_sizes
from glip.model.dyhead import Map
from glip.model.glip import GLIP
from glip.model.language import Hidden, Mask
from glip.shapes import Float, Int, Tensor
from glip.structures import Outputs

GRAPHS = IMAGE, TEXT, HEAD = "image_encoder", "text_encoder", "head"  # the stems of the files, ending in .onnx
LEVELS = ("p3", "p4", "p5", "p6", "p7")
INPUTS = {IMAGE: ("pixels",), TEXT: ("input_ids", "attention_mask"), HEAD: (*LEVELS, "hidden", "attention_mask")}
OUTPUTS = {IMAGE: LEVELS, TEXT: ("hidden",), HEAD: ("token_logits", "box_deltas", "centerness")}
_DIVISOR = STRIDES[LEVELS.index("p5")]  # of the sides of an image


def describe(config: ModelConfig) -> dict[str, str]:
    """What each graph states of its model's config."""
    image = {f"image.{key}": json.dumps(value) for key, value in asdict(config.image).items()}  # type: ignore[call-overload]
    return {"name": config.name, "max_tokens": str(config.max_tokens), "size_divisor": str(_DIVISOR), **image}


class ExportedGLIP(GLIP):
    """A GLIP whose steps are graphs of onnxruntime; it computes in float32 and cannot be trained.

    The files may be of strangers: no code in them runs, onnxruntime opens no file outside their folder, and what they
    compute is checked for its shape.

    Raises:
        CheckpointError: onnxruntime is missing, a file that it cannot load, other graphs than GLIP's, or files of
            different models.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        nn.Module.__init__(self)  # no weights of its own
        self.folder, self.config = folder, config
        self._load(["CPUExecutionProvider"])

    def _load(self, providers: Sequence[str]) -> None:
        self._graphs = {name: _open_graph(self.folder, name, providers) for name in GRAPHS}
        try:
            about, *others = [graph.get_modelmeta().custom_metadata_map for graph in self._graphs.values()]
        except UnicodeDecodeError:
            about, others = {}, []
        self.fingerprint = about.get("fingerprint", "")
        is_one = self.fingerprint and all(one == about for one in others)
        if not is_one or not describe(self.config).items() <= about.items():
            raise CheckpointError(
                f"{str(self.folder)!r}: its graphs and config are not of one glip export: export the model again"
            )

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
        batch, _, height, width = pixels.shape
        shapes = [(batch, self.config.head.channels, *size) for size in level_sizes(height, width)]
        return tuple(self._compute(IMAGE, shapes, pixels))

    def language(self, input_ids: Int[Tensor, "batch tok"], attention_mask: Mask) -> Hidden:  # type: ignore[override]
        """See ``TextEncoder``."""
        [hidden] = self._compute(TEXT, [(*input_ids.shape, self.config.language.hidden)], input_ids, attention_mask)
        return hidden

    def fuse_and_predict(self, levels: Sequence[Map], hidden: Hidden, attention_mask: Mask) -> Outputs:
        """See ``GLIP.fuse_and_predict``."""
        sizes = tuple((x.shape[2], x.shape[3]) for x in levels)
        anchors = grid_anchors(sizes)
        rows = (len(hidden), len(anchors))
        shapes = [(*rows, hidden.shape[1]), (*rows, 4), rows]
        logits, deltas, centerness = self._compute(HEAD, shapes, *levels, hidden, attention_mask)
        return Outputs(logits, deltas, centerness, anchors, sizes)

    def _compute(self, name: str, shapes: Sequence[tuple[int, ...]], *inputs: Tensor) -> list[Tensor]:
        """Run a graph, whose outputs have these shapes."""
        values = {key: np.ascontiguousarray(value.numpy()) for key, value in zip(INPUTS[name], inputs, strict=True)}
        found, why = list[np.ndarray](), ""
        try:
            found = self._graphs[name].run(None, values)
            if [x.shape for x in found] != shapes:
                why = str([x.shape for x in found])
            elif not all(np.isfinite(x).all() for x in found):
                why = "numbers that are not finite"
        except Exception as error:  # its classes are many, and have no parent of their own
            why = " ".join(str(error).split())[:200]
        if why:
            file = str(self.folder / f"{name}.onnx")
            raise CheckpointError(f"{file!r} does not compute what GLIP does ({why}): export the model again")
        return [torch.from_numpy(value) for value in found]


def _open_graph(folder: Path, name: str, providers: Sequence[str]) -> Any:
    runtime, path = _runtime(), folder / f"{name}.onnx"
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    graph, why = None, "no such file"  # nor one without end, as a device
    try:
        if path.is_file():
            graph = runtime.InferenceSession(path, options, providers=list(providers))
            own = [tuple(one.name for one in part) for part in (graph.get_inputs(), graph.get_outputs())]
            kinds = {one.type for one in graph.get_outputs()}
            why = "" if own == [INPUTS[name], OUTPUTS[name]] and kinds == {"tensor(float)"} else "no graph of GLIP"
    except Exception as error:
        why = " ".join(str(error).split())[:200]
    if why:
        raise CheckpointError(f"{str(path)!r} cannot be loaded ({why}): export the model again")
    return graph


def _runtime() -> Any:
    with needs("onnx"):
        import onnxruntime
    return onnxruntime
