"""GLIP for Hugging Face transformers: config, model and processor, known to its Auto classes by importing this module.

    import glip.integrations.transformers as glip_hf

    model, processor = glip_hf.from_glip("glip-nano")

What ``post_process_grounded_object_detection`` gives is exactly what the Detector gives.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glip.config import ModelConfig
from glip.data.image import is_batch, open_any
from glip.detector import Detector
from glip.errors import GlipError, needs
from glip.experiment import to_dict
from glip.model.glip import build
from glip.model.vision import WindowAttention
from glip.options import read_thresholds
from glip.postprocess import postprocess
from glip.processor import ImageProcessor
from glip.schema import parse
from glip.structures import Detections, Outputs, Size, TextBatch
from glip.text.prompt import Prompt, as_prompts
from glip.text.tokens import encode_prompts

with needs("transformers"):
    import transformers
    from huggingface_hub import ModelCard, ModelCardData
    from transformers.pipelines.zero_shot_object_detection import ZeroShotObjectDetectionPipeline, load_image
    from transformers.utils import ModelOutput

_CARD = """
# {name}

A GLIP model (Li et al., CVPR 2022) for open-vocabulary object detection. Trained on: {trained_on}.

It needs the package glip beside transformers: `pip install 'glip[transformers]'`.

```python
import glip.integrations.transformers  # registers the classes
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

model = AutoModelForZeroShotObjectDetection.from_pretrained("THIS REPOSITORY")
processor = AutoProcessor.from_pretrained("THIS REPOSITORY")
```
"""


class GlipConfig(transformers.PretrainedConfig):
    """The config of a model; ``model`` is our ModelConfig as a map."""

    model_type = "glip"

    def __init__(self, model: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.model = to_dict(parse(ModelConfig, model or {}))
        super().__init__(**kwargs)


class GlipForObjectDetection(transformers.PreTrainedModel):
    """The network. ``save_pretrained`` also writes a model card, with the licence and the hub's ``pipeline_tag``."""

    config_class, base_model_prefix, main_input_name = GlipConfig, "glip", "pixel_values"

    def __init__(self, config: GlipConfig) -> None:
        super().__init__(config)
        self.glip = build(parse(ModelConfig, config.model))
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> "GlipForObjectDetection":
        """As the library's; in another ``dtype`` than float32, what needs it stays in float32 (``GLIP.cast``)."""
        model: GlipForObjectDetection = super().from_pretrained(*args, dtype=torch.float32, **kwargs)
        if isinstance(dtype, torch.dtype):
            model.glip.cast(dtype)
        return model

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Weights keep the initial values of ``build``; a buffer that is not in the file is computed again."""
        if isinstance(module, WindowAttention):
            module.number_places()

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> ModelOutput:
        """Predict from what the processor gives; ``pixel_mask`` is 1 where an image is, 0 in the padding.

        The output has what ``glip.structures.Outputs`` has, for each image, and the images' ``sizes`` (height, width)
        without padding.
        """
        mask = input_ids != 0 if attention_mask is None else attention_mask.bool()
        real = torch.ones_like(pixel_values[:, 0]) if pixel_mask is None else pixel_mask
        levels, hidden = self.glip.encode_image(pixel_values), self.glip.language(input_ids, mask)
        found = self.glip.fuse_and_predict(levels, hidden, mask)
        count = len(pixel_values)
        return ModelOutput(
            logits=found.token_logits,
            box_deltas=found.box_deltas,
            centerness=found.centerness,
            anchors=found.anchors.expand(count, -1, -1),
            level_sizes=torch.tensor(found.level_sizes).expand(count, -1, -1),
            sizes=torch.stack([real[:, :, 0].sum(1), real[:, 0].sum(1)], 1).long(),
            input_ids=input_ids,
            attention_mask=mask,
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write config, safetensors and, where there is none, a model card."""
        super().save_pretrained(save_directory, **kwargs)
        self._write_card(Path(save_directory, "README.md"))

    def _write_card(self, file: Path) -> None:
        """A card with what the hub needs, unless a person wrote one: the library's own has no ``pipeline_tag``."""
        if file.exists() and ModelCard.load(file).data.pipeline_tag:
            return
        config = parse(ModelConfig, self.config.model)
        data = ModelCardData(
            library_name="transformers",
            pipeline_tag="zero-shot-object-detection",
            license=config.license.lower() or None,
            tags=["glip", "open-vocabulary-object-detection", "phrase-grounding"],
        )
        text = _CARD.format(name=config.name, trained_on=", ".join(config.trained_on) or "not stated")
        ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(file)

    def _upload_modified_files(self, working_dir: str, *args: Any, **kwargs: Any) -> Any:  # of push_to_hub
        self._write_card(Path(working_dir, "README.md"))
        return super()._upload_modified_files(working_dir, *args, **kwargs)


class GlipImageProcessor(transformers.BaseImageProcessor):
    """Resizes, normalizes and pads images; ``model`` is our ModelConfig as a map."""

    model_input_names = ["pixel_values", "pixel_mask"]

    def __init__(self, model: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = to_dict(parse(ModelConfig, model or {}))

    def __call__(self, images: Any, return_tensors: str | None = None, **_: Any) -> transformers.BatchFeature:
        """``pixel_values`` and ``pixel_mask`` of one image or several, in any form that a Detector takes."""
        opened = [open_any(image) for image in (images if is_batch(images) else [images])]
        pixels, sizes = ImageProcessor(parse(ModelConfig, self.model).image).images(opened)
        mask = torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.long)
        for row, (height, width) in zip(mask, sizes, strict=True):
            row[:height, :width] = 1
        return transformers.BatchFeature({"pixel_values": pixels, "pixel_mask": mask}, tensor_type=return_tensors)

    def post_process_object_detection(
        self, outputs: ModelOutput, threshold: float = 0.1, target_sizes: Any = None
    ) -> list[dict[str, Any]]:
        """For the library's pipeline, which asks one label at a time: the whole text is the phrase."""
        ids, mask = outputs.input_ids, outputs.attention_mask
        rows = [[list(range(1, int(own.sum()) - 1))] for own in mask]
        found = self.detections(outputs, _text_batch(ids, mask, rows, [["?"]] * len(ids)), threshold, target_sizes)
        return [_parts(one) for one in found]

    @torch.no_grad()
    def detections(
        self, outputs: ModelOutput, text: TextBatch, threshold: float | None, target_sizes: Any = None
    ) -> list[Detections]:
        """What was found in each image, best first."""
        config = parse(ModelConfig, self.model)
        sizes: list[Size] = [(height, width) for height, width in outputs.sizes.tolist()]
        original = sizes if target_sizes is None else [(int(height), int(width)) for height, width in target_sizes]
        if len(original) != len(sizes):
            raise GlipError(f"target_sizes: got {len(original)} for {len(sizes)} images: give (height, width) of each")
        levels = tuple((height, width) for height, width in outputs.level_sizes[0].tolist())
        read = Outputs(outputs.logits, outputs.box_deltas, outputs.centerness, outputs.anchors[0], levels)
        found = postprocess(read, text.to(outputs.logits.device), sizes, original, config.inference)
        limits = (
            read_thresholds(threshold, one.prompt, config.inference.threshold, config.thresholds) for one in found
        )
        return [one.select(one.scores >= limit[one.labels]) for one, limit in zip(found, limits, strict=True)]


class GlipProcessor(transformers.ProcessorMixin):
    """Images and text for the model, and its outputs as boxes."""

    def __init__(self, image_processor: GlipImageProcessor, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(
        self, images: Any = None, text: Any = None, return_tensors: str | None = None, **_: Any
    ) -> transformers.BatchFeature:
        """The model's inputs.

        Args:
            images: one image or several, in any form that a Detector takes.
            text: "a cat. a dog." or ["a cat", "a dog"] for all images; [["a cat"], ["a dog", "a car"]] or
                ["a cat.", "a dog. a car."] for each; also ``glip.Prompt``.
            return_tensors: "pt".
        """
        inputs = dict(self.image_processor(images)) if images is not None else {}
        if text is not None:
            prompts = _prompts_of(text)
            count = len(inputs["pixel_values"]) if inputs else len(prompts)
            batch = self._read(prompts * (count if len(prompts) == 1 else 1))
            inputs |= {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
        return transformers.BatchFeature(inputs, tensor_type=return_tensors)

    def _read(self, prompts: Sequence[Prompt]) -> TextBatch:
        config = parse(ModelConfig, self.image_processor.model)
        return encode_prompts(self.tokenizer.backend_tokenizer.encode, prompts, max_tokens=config.max_tokens)

    def post_process_grounded_object_detection(
        self,
        outputs: ModelOutput,
        input_ids: torch.Tensor | None = None,
        threshold: float | None = None,
        text_threshold: float | None = None,
        target_sizes: Any = None,
        text_labels: Any = None,
    ) -> list[dict[str, Any]]:
        """Boxes of each image, best first: ``scores``, ``boxes`` (xyxy), ``labels`` (indices), ``text_labels``.

        Args:
            outputs: of the model.
            input_ids: default: those of the outputs.
            threshold: lowest score; default: the model's.
            text_threshold: not used: a box has one phrase.
            target_sizes: (height, width) of each original image; default: boxes are in pixels of the resized ones.
            text_labels: what the processor got as ``text``; default: the names between the dots of ``input_ids``,
                which are in lower case.
        """
        ids = (outputs.input_ids if input_ids is None else torch.as_tensor(input_ids)).cpu()
        if text_labels is None:
            text = self._read_back(ids, outputs.attention_mask.cpu())
        else:
            prompts = _prompts_of(text_labels)
            text = self._read(prompts * (len(ids) if len(prompts) == 1 else 1))
            if text.input_ids.tolist() != ids.tolist():
                raise GlipError("text_labels are not the text of input_ids: give what the processor was given as text")
        found = self.image_processor.detections(outputs, text, threshold, target_sizes)
        return [{**_parts(one), "text_labels": [phrase.text for phrase in one.phrases]} for one in found]

    def _read_back(self, ids: torch.Tensor, mask: torch.Tensor) -> TextBatch:
        """The names that a caption lists, with dots between them."""
        dot, rows = self.tokenizer.convert_tokens_to_ids("."), list[list[list[int]]]()
        for own, real in zip(ids, mask, strict=True):
            rows.append([[]])
            for place in range(1, int(real.sum()) - 1):
                if own[place] == dot:
                    rows[-1].append([])
                else:
                    rows[-1][-1].append(place)
            rows[-1] = [row for row in rows[-1] if row]
        texts = [[self.tokenizer.decode(own[row]) for row in part] for own, part in zip(ids, rows, strict=True)]
        return _text_batch(ids, mask, rows, texts)


class GlipPipeline(ZeroShotObjectDetectionPipeline):  # type: ignore[misc]
    """``pipeline("zero-shot-object-detection")`` that asks all labels of an image in one pass.

    Make it with ``GlipPipeline(model=model, processor=processor)``; calls and results are the library's.
    """

    _load_processor, _load_image_processor, _load_tokenizer = True, False, False

    def preprocess(self, inputs: dict[str, Any], timeout: float | None = None) -> Any:
        """One input with all labels."""
        image, labels = load_image(inputs["image"], timeout=timeout), inputs["candidate_labels"]
        labels = labels.split(",") if isinstance(labels, str) else list(labels)
        read = self.processor(image, [labels], return_tensors="pt")
        sizes = torch.tensor([[image.height, image.width]])
        yield {"is_last": True, "target_size": sizes, "candidate_label": labels, **read}

    def postprocess(
        self, model_outputs: list[dict[str, Any]], threshold: float = 0.1, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        """``score``, ``label`` and ``box`` in whole pixels, best first."""
        [given] = model_outputs
        [found] = self.processor.post_process_grounded_object_detection(
            ModelOutput(given),
            threshold=threshold,
            target_sizes=given["target_size"],
            text_labels=[given["candidate_label"]],
        )
        rows = zip(found["scores"].tolist(), found["text_labels"], found["boxes"], strict=True)
        dicts = [{"score": score, "label": name, "box": self._get_bounding_box(box)} for score, name, box in rows]
        return dicts[:top_k]


def from_glip(name_or_path: str | Path) -> tuple[GlipForObjectDetection, GlipProcessor]:
    """Model and processor of a public name, a model folder of ours, or a ``.pth``, as ``Detector.from_pretrained``."""
    detector = Detector.from_pretrained(name_or_path, device="cpu")
    tree = to_dict(detector.config)
    with torch.device("meta"):
        model = GlipForObjectDetection(GlipConfig(tree))
    model.glip = detector.model
    folder = detector.processor.tokenizer.folder
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)  # on this disk  # nosec B615
    return model.eval(), GlipProcessor(GlipImageProcessor(tree), tokenizer)


def _parts(found: Detections) -> dict[str, Any]:
    return {"scores": found.scores, "labels": found.labels, "boxes": found.boxes}


def _prompts_of(text: Any) -> list[Prompt]:
    """As the library reads it: of texts with dots in a list each is for an image, without dots they are names."""
    if isinstance(text, list | tuple) and any(isinstance(item, str) and "." in item for item in text):
        return [as_prompts(item)[0] for item in text]
    return as_prompts(text)


def _text_batch(
    ids: Any, mask: Any, rows: Sequence[Sequence[Sequence[int]]], texts: Sequence[Sequence[str]]
) -> TextBatch:
    """Captions whose phrases are given by their tokens."""
    weights = []
    for phrases in rows:
        weights.append(torch.zeros(len(phrases), ids.shape[1]))
        for row, places in zip(weights[-1], phrases, strict=True):
            row[list(places)] = 1.0 / len(places)
    return TextBatch(ids, mask, tuple(weights), tuple(Prompt.from_names(own) for own in texts))


transformers.AutoConfig.register("glip", GlipConfig)
transformers.AutoImageProcessor.register(GlipConfig, GlipImageProcessor, GlipImageProcessor)
transformers.AutoProcessor.register(GlipConfig, GlipProcessor)
transformers.AutoModelForZeroShotObjectDetection.register(GlipConfig, GlipForObjectDetection)
