"""Detector: images and words in, Detections out; what most people need of glip.

An image is encoded once for many prompts and a vocabulary once for many images: ``encode_image``, ``encode_text``
and ``ground`` are the steps of a call.
"""

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import torch
from PIL import Image

from glip.adaptation import Adaptation
from glip.config import ModelConfig
from glip.data.image import ImageInput, open_any
from glip.encoded import EncodedImage, EncodedText
from glip.errors import CheckpointError, GlipError
from glip.model.adapt import load_adaptation, with_weights
from glip.model.glip import GLIP
from glip.model.weights import fingerprint, load_pretrained, save_pretrained
from glip.postprocess import Decoding, merge_chunks, postprocess
from glip.processor import SIZE_DIVISOR, Processor, resized_size
from glip.shapes import Float, Tensor
from glip.structures import Detections, ImageBatch, Outputs, Prompt, TextFeatures
from glip.text.prompt import split_prompt
from glip.text.tokens import Tokenizer

Words = str | Sequence[str] | Prompt


class Detector:
    """A model with its processor and its defaults.

    Example:
        >>> detector = Detector.from_pretrained("glip-nano")
        >>> for box, score, label, phrase in detector("street.jpg", "a red bus. a cyclist"): ...
    """

    def __init__(self, model: GLIP, config: ModelConfig, tokenizer: Tokenizer, device: str | None = None) -> None:
        self.device = choose_device(device)
        self.model = self._base = model.to(self.device).eval()
        self.config = config
        self.adaptation: Adaptation | None = None
        self.processor = build_processor(config, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "glip-nano",
        *,
        task: str | Path | Adaptation | None = None,
        device: str | None = None,
    ) -> "Detector":
        """Load a model by name ("glip-nano" is bundled, "glip-t", "glip-l", ... are the 2022 release) or from a path.

        With ``task``, what ``glip tune`` made for it, the detector is adapted to that task (see ``adapted``).

        Raises:
            CheckpointError: unknown, not there, broken, or of another model.
            ValueError: a device that is not there.
        """
        choose_device(device)
        loaded = load_pretrained(name_or_path)
        detector = cls(loaded.model, loaded.config, Tokenizer(loaded.tokenizer), device)
        return detector if task is None else detector.adapted(task)

    def adapted(self, task: str | Path | Adaptation) -> "Detector":
        """A second detector with what was learned for a task; called without a prompt it finds the task's names.

        All weights but those that the task changed are shared: many tasks take the memory of one model and switching
        is calling another of these detectors. What is asked in other words than the task's is answered by the model as
        it is, bit for bit, after prompt tuning.

        Raises:
            CheckpointError: not there, broken, or tuned on other weights than these.
        """
        adaptation = task if isinstance(task, Adaptation) else load_adaptation(task)
        if adaptation.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"task {' '.join(adaptation.names)[:40]!r} was tuned on other weights (of {adaptation.model!r}) than "
                f"those of this {self.config.name!r}: load the model it belongs to, or tune again"
            )
        twin = copy.copy(self)
        twin.adaptation = adaptation
        twin.model = with_weights(self._base, adaptation.weights) if adaptation.weights else self._base
        twin.__dict__.pop("_own_text", None)
        return twin

    @cached_property
    def fingerprint(self) -> str:
        """Tells the weights of the model from those of others; adaptations do not count."""
        return fingerprint(self._base.state_dict())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and vocab.txt; ``from_pretrained(folder)`` gives the same outputs."""
        save_pretrained(folder, self.model, self.config, self.processor.tokenizer.folder)

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        images: ImageInput,
        prompt: Words | None = None,
        *,
        threshold: float | Sequence[float] | None = None,
        nms: float | None = None,
        max_detections: int | None = None,
        max_names: int | None = None,
        batch_size: int = 4,
        token_scores: bool = False,
    ) -> Detections: ...
    @overload
    def __call__(
        self,
        images: Sequence[ImageInput],
        prompt: Words | Sequence[Words] | None = None,
        *,
        threshold: float | Sequence[float] | None = None,
        nms: float | None = None,
        max_detections: int | None = None,
        max_names: int | None = None,
        batch_size: int = 4,
        token_scores: bool = False,
    ) -> list[Detections]: ...

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        prompt: Words | Sequence[Words] | None = None,
        *,
        threshold: float | Sequence[float] | None = None,
        nms: float | None = None,
        max_detections: int | None = None,
        max_names: int | None = None,
        batch_size: int = 4,
        token_scores: bool = False,
    ) -> Detections | list[Detections]:
        """Find what the prompt names.

        Args:
            images: a path, a PIL image, an array (height, width[, 3], RGB, uint8) or a tensor (3, height, width,
                uint8 or 0..1), or a list of them.
            prompt: "a red bus. a cyclist", a list of names, or a Prompt; for a list of images also a list of
                Prompts (or of lists of names), one for each. Of an adapted detector by default its task's words.
            threshold: lowest score returned, 0..1, or one for each phrase; default: the task's, else the model's.
            nms: overlap above which the lower-scored of two boxes of a class goes; 1 keeps all.
            max_detections: boxes of an image at most, 0 for no cap.
            max_names: names in a chunk of a long list at most; default: as many as fit.
            batch_size: images (or chunks) computed at once; results do not depend on it.
            token_scores: also give each box's alignment with every token of its caption.

        Returns:
            Detections for one image, a list of them for a list.

        Raises:
            ImageError: an image that cannot be read.
            ValueError: a bad prompt, a caption over the limit, a threshold outside [0, 1].
        """
        _check_batch_size(batch_size)
        single = not isinstance(images, list | tuple)
        opened = [open_any(image) for image in ([images] if single else images)]  # type: ignore[arg-type, list-item, union-attr]
        prompts = None if prompt is None else as_prompts(prompt, len(opened))
        text = self.encode_text(prompts, max_names=max_names)
        found: dict[int, Detections] = {}
        for group in self.group_by_size(opened, batch_size):
            encoded = self.encode_image([opened[index] for index in group])
            own = text if len(text.prompts) == 1 else text.of_prompts(group)
            results = self.ground(
                encoded,
                own,
                threshold=threshold,
                nms=nms,
                max_detections=max_detections,
                batch_size=batch_size,
                token_scores=token_scores,
            )
            found.update(zip(group, results, strict=True))
        return found[0] if single else [found[index] for index in range(len(opened))]

    @torch.no_grad()
    def encode_image(self, images: ImageInput | Sequence[ImageInput]) -> EncodedImage:
        """Encode one or more images; those of different size are padded to the largest, which the fusion sees."""
        listed = list(images) if isinstance(images, list | tuple) else [images]
        batch = self.processor.images([open_any(image) for image in listed])  # type: ignore[arg-type]
        levels = self.model.encode_image(batch.pixels.to(self.device))
        return EncodedImage(levels, batch.resized, batch.original)

    @torch.no_grad()
    def encode_text(
        self, prompts: Words | Sequence[Prompt] | None = None, *, max_names: int | None = None
    ) -> EncodedText:
        """Encode one prompt for all images, or a list of Prompts, one for each; long lists of names in chunks.

        Without a prompt an adapted detector gives its task's words, with what was learned for them.

        Raises:
            ValueError: no prompt, an empty one, an empty phrase, a caption over the limit, a phrase without a token.
        """
        if prompts is None:
            return self._own_text
        listed = as_prompts(prompts, None)
        rows = [
            (owner, chunk)
            for owner, prompt in enumerate(listed)
            for chunk in split_prompt(
                prompt, self.processor.count_tokens, max_tokens=self.processor.max_tokens, max_names=max_names
            )
        ]
        batch = self.processor.text([chunk.prompt for _, chunk in rows]).to(self.device)
        owners, label_offsets = tuple(owner for owner, _ in rows), tuple(chunk.first for _, chunk in rows)
        return EncodedText(tuple(listed), owners, label_offsets, batch, self.model.encode_text(batch))

    @cached_property
    def _own_text(self) -> EncodedText:
        adaptation = self.adaptation
        if adaptation is None:
            raise GlipError("no prompt: say what to look for, or load a task of glip tune, which knows its names")
        text = dataclasses.replace(self.encode_text(adaptation.prompt), tuned=True)
        if adaptation.offsets is None:
            return text
        hidden = text.features.hidden
        if adaptation.offsets.shape != hidden.shape[1:]:
            raise CheckpointError(
                f"offsets of shape {tuple(adaptation.offsets.shape)} for a caption of {tuple(hidden.shape[1:])}: the "
                "task is broken or of another model"
            )
        tuned = TextFeatures(hidden + adaptation.offsets.to(hidden.device), text.features.attention_mask)
        return dataclasses.replace(text, features=tuned)

    @torch.no_grad()
    def ground(
        self,
        image: EncodedImage,
        text: EncodedText,
        *,
        threshold: float | Sequence[float] | None = None,
        nms: float | None = None,
        max_detections: int | None = None,
        chunk_detections: int = 0,
        batch_size: int = 4,
        token_scores: bool = False,
    ) -> list[Detections]:
        """Ground encoded prompts in encoded images: one prompt in all of them, or one in each.

        As the call does; ``chunk_detections`` also caps each chunk of a long list, 0 for no cap (LVIS's protocol).

        Raises:
            ValueError: as many prompts as images are needed, or one; a threshold outside [0, 1].
        """
        count = len(image.original)
        _check_batch_size(batch_size)
        if len(text.prompts) not in (1, count):
            raise GlipError(f"got {len(text.prompts)} prompts for {count} images: give one, or one for each")
        prompts = [text.prompts[0 if len(text.prompts) == 1 else index] for index in range(count)]
        if threshold is None and text.tuned and self.adaptation and self.adaptation.thresholds:
            threshold = self.adaptation.thresholds
        thresholds = [self._thresholds(threshold, len(prompt.phrases)) for prompt in prompts]
        owners = range(count) if len(text.prompts) == count else [0] * count
        pairs = [(i, row) for i, own in enumerate(owners) for row, owner in enumerate(text.owners) if owner == own]
        if token_scores and len(pairs) > count:
            raise GlipError("token_scores need a prompt in one piece: this list of names was split into chunks")
        decoding = self._decoding(nms, max_detections)
        limit = chunk_detections or (0 if len(pairs) > count else decoding.max_detections)
        chunked = dataclasses.replace(decoding, max_detections=limit)
        parts: dict[int, list[tuple[int, Detections]]] = defaultdict(list)
        for start in range(0, len(pairs), batch_size):
            piece = pairs[start : start + batch_size]
            for (index, row), found in zip(piece, self._pass(image, text, piece, chunked, token_scores), strict=True):
                parts[index].append((text.label_offsets[row], found))
        merged = [
            merge_chunks([part for _, part in parts[i]], [first for first, _ in parts[i]], prompts[i], decoding)
            for i in range(count)
        ]
        return [
            found.select(found.scores >= limits.to(found.scores.device)[found.labels]).to("cpu")
            for found, limits in zip(merged, thresholds, strict=True)
        ]

    def _pass(
        self,
        image: EncodedImage,
        text: EncodedText,
        pairs: Sequence[tuple[int, int]],
        decoding: Decoding,
        token_scores: bool,
    ) -> list[Detections]:
        """One pass of the head over (image, text row) pairs."""
        images, rows = [index for index, _ in pairs], [row for _, row in pairs]
        batch, features = text.rows(rows)
        outputs: Outputs = self.model.fuse_and_predict([level[images] for level in image.levels], features)
        sizes = ImageBatch(
            image.levels[0].new_zeros(len(pairs), 3, 0, 0),
            tuple(image.resized[index] for index in images),
            tuple(image.original[index] for index in images),
        )
        found = postprocess(outputs, sizes, batch, decoding, token_scores=token_scores)
        if not token_scores:
            return found
        captions = zip(batch.input_ids, batch.attention_mask, strict=True)
        words = [self.processor.tokenizer.words(ids[mask].tolist()) for ids, mask in captions]
        return [dataclasses.replace(part, tokens=word) for part, word in zip(found, words, strict=True)]

    def group_by_size(self, images: Sequence[Image.Image], batch_size: int) -> list[list[int]]:
        """Batches of images of one padded size, so that no result depends on what an image is batched with."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            size = resized_size(image.height, image.width, self.processor.min_size, self.processor.max_size)
            groups[tuple(-(-side // SIZE_DIVISOR) for side in size)].append(index)  # type: ignore[index]
        return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]

    def _thresholds(self, threshold: float | Sequence[float] | None, count: int) -> Float[Tensor, " phrase"]:
        if threshold is None:
            threshold = self.config.inference.threshold
        values = [float(threshold)] * count if isinstance(threshold, int | float) else [float(t) for t in threshold]
        if len(values) != count:
            raise GlipError(f"threshold: got {len(values)} for {count} phrases: give one number, or one per phrase")
        for value in values:
            if not 0 <= value <= 1:
                raise GlipError(f"threshold {value} is outside [0, 1]: scores are probabilities, such as 0.5")
        return torch.tensor(values)

    def _decoding(self, nms: float | None, max_detections: int | None) -> Decoding:
        defaults = self.config.inference
        if nms is not None and not 0 <= nms <= 1:
            raise GlipError(f"nms {nms} is outside [0, 1]: it is an overlap, 1 keeps all boxes")
        if max_detections is not None and max_detections < 0:
            raise GlipError(f"max_detections {max_detections} is negative: give a number of boxes, or 0 for no cap")
        return Decoding(
            candidate_threshold=defaults.candidate_threshold,
            candidates_per_level=defaults.candidates_per_level,
            nms=defaults.nms if nms is None else nms,
            max_detections=defaults.max_detections if max_detections is None else max_detections,
            aggregate=defaults.aggregate,
        )


def build_processor(config: ModelConfig, tokenizer: Tokenizer) -> Processor:
    """The processor a model's config asks for."""
    image = config.image
    return Processor(
        tokenizer,
        min_size=image.min_size,
        max_size=image.max_size,
        channels=image.channels,
        mean=image.mean,
        std=image.std,
        max_tokens=config.max_tokens,
    )


def choose_device(name: str | None) -> torch.device:
    """The device of a name, or CUDA where there is one.

    Raises:
        ValueError: a device that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        there = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise GlipError(f"device {name!r} is not there: give one of {', '.join(there)}") from None
    return device


def as_prompts(words: Words | Sequence[Words], images: int | None) -> list[Prompt]:
    """One prompt for all images, or one for each; a plain list of strings is one list of names.

    Raises:
        ValueError: an empty prompt, or a number of prompts that is not the number of images.
    """
    if isinstance(words, Prompt):
        return [words]
    if isinstance(words, str):
        return [Prompt.parse(words)]
    items = list(words)
    if all(isinstance(item, str) for item in items):
        return [Prompt.from_names(items)]  # type: ignore[arg-type]
    if images is not None and len(items) != images:
        raise GlipError(f"got {len(items)} prompts for {images} images: give one, or one for each")
    return [as_prompts(item, None)[0] for item in items]


def _check_batch_size(size: int) -> None:
    if size < 1:
        raise GlipError(f"batch_size {size} is less than 1: give the images computed at once, such as 4")
