"""``glip export``: a model as ONNX graphs, which run without torch's network, or as programs of torch.export.

Three parts, so that an image is encoded once for many prompts, a prompt once for many images, and what a task of
``glip tune`` learned can be added to its words. Batch, height, width (multiples of 32) and tokens are free.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from glip import __version__
from glip.errors import ConfigError, needs
from glip.experiment import to_dict
from glip.files import exclusive, write_json, writing
from glip.model.exported import GRAPHS, IMAGE, INPUTS, LEVELS, OUTPUTS, TEXT, describe
from glip.model.glip import GLIP
from glip.model.weights import CONFIG, WEIGHTS, copy_tokenizer, load_pretrained, model_fingerprint
from glip.processor import SIZE_DIVISOR
from glip.provenance import RECORD, record
from glip.shapes import Tensor

ExportFormat = Literal["onnx", "torch"]
OPSET = 20  # DeformConv is in 19; 20 is the first that torch's exporter writes without conversion


class _ImageEncoder(nn.Module):
    def __init__(self, model: GLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.model.encode_image(pixels)


class _Head(nn.Module):
    def __init__(self, model: GLIP) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, p3: Tensor, p4: Tensor, p5: Tensor, p6: Tensor, p7: Tensor, hidden: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The sides of all levels follow from those of P5: fewer unknowns for the exporter.
        batch, channels, height, width = p5.shape
        half, quarter = ((height + 1) // 2, (width + 1) // 2), ((height + 3) // 4, (width + 3) // 4)
        sides = (4 * height, 4 * width), (2 * height, 2 * width), (height, width), half, quarter
        levels = [x.reshape(batch, channels, *own) for x, own in zip((p3, p4, p5, p6, p7), sides, strict=True)]
        found = self.model.fuse_and_predict(levels, hidden, attention_mask)
        return found.token_logits, found.box_deltas, found.centerness


def export_model(name_or_path: str | Path, folder: str | Path, format: ExportFormat = "onnx") -> Path:
    """Write a model's three graphs with ``config.json`` and the tokenizer; gives the folder.

    A folder of ONNX graphs is a model for ``Detector.from_pretrained`` and every command but training. What the folder
    has of another export goes first, and the config is written last: where it is, the rest is complete.

    Raises:
        CheckpointError: a model that cannot be loaded.
        ConfigError: a package is missing, the model is exported already, or the folder is that of a model.
        LockedError: another run writes to the folder.
        WriteError: it cannot be written.
    """
    folder, loaded = Path(folder), load_pretrained(name_or_path)
    exported = loaded.model.fingerprint
    if exported or (folder / WEIGHTS).exists():
        what = f"{str(name_or_path)!r} is an exported model: give the one that it was made of"
        raise ConfigError(what if exported else f"{str(folder)!r} is the folder of a model: give another one")
    if format == "onnx":
        with needs("onnx"):
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    loaded.model.requires_grad_(False)
    about = {**describe(loaded.config), "glip": __version__, "fingerprint": model_fingerprint(loaded.model)}
    partial = folder / ".partial"  # a graph above 2 GB is two files, of which one names the other
    with exclusive(folder):
        for old in (folder / CONFIG, folder / RECORD, *(file for name in GRAPHS for file in folder.glob(f"{name}.*"))):
            old.unlink(missing_ok=True)
        for name in GRAPHS:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            program = trace(loaded.model, name)
            if format == "onnx":
                write_onnx(program, name, about, partial / f"{name}.onnx")
            else:
                _save_program(program, partial / f"{name}.pt2")
            for file in sorted(partial.iterdir(), reverse=True):  # the weights first
                file.replace(folder / file.name)
        partial.rmdir()
        words = copy_tokenizer(loaded.tokenizer, folder)
        write_json(folder / CONFIG, to_dict(loaded.config))
        graphs = [file for name in GRAPHS for file in folder.glob(f"{name}.*")]
        model = {"name": loaded.config.name, "weights": about["fingerprint"]}
        record(folder / RECORD, model=model, files=[*graphs, *words, folder / CONFIG])
    return folder


def trace(model: GLIP, name: str) -> ExportedProgram:
    """One of the three steps as a program of torch.export."""
    pixels, ids = torch.zeros(2, 3, 320, 448), torch.arange(5, 29).view(2, 12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    batch, tokens = Dim("batch", max=64), Dim("tokens", min=3, max=512)
    rows, columns = Dim("rows", min=2, max=256), Dim("columns", min=2, max=256)
    text = {0: batch, 1: tokens}
    with torch.no_grad(), _quiet_exporters():
        if name == IMAGE:
            sides = {0: batch, 2: SIZE_DIVISOR * rows, 3: SIZE_DIVISOR * columns}
            return torch.export.export(_ImageEncoder(model).eval(), (pixels,), dynamic_shapes=(sides,))
        if name == TEXT:
            return torch.export.export(model.language, (ids, mask), dynamic_shapes=(text, text))
        inputs = (*model.encode_image(pixels), model.language(ids, mask), mask)
        free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}  # sides of levels halve, rounded up
        words = {0: Dim.AUTO, 1: Dim.AUTO}
        return torch.export.export(_Head(model).eval(), inputs, dynamic_shapes=(*[free] * len(LEVELS), words, words))


def _save_program(program: ExportedProgram, file: Path) -> None:
    with writing(file):
        torch.export.save(program, file)


def write_onnx(program: ExportedProgram, name: str, about: dict[str, str], file: Path) -> None:
    """Write a step as an ONNX graph with metadata; above 2 GB its weights are a second file."""
    import torchvision  # noqa: F401  its operators must be known before torch's exporter looks for them

    inputs, outputs = INPUTS[name], OUTPUTS[name]
    with _quiet_exporters():
        made = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs, verbose=False
        )
    assert made is not None
    made.model.metadata_props.update(about)
    with writing(file):
        made.save(file)


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Without the exporters' notes on axis names and on what they skip."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
