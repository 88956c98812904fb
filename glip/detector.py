"""Detector: images and words in, Detections out; what most people need of glip.

An image is encoded once for many prompts and a vocabulary once for many images: ``encode_image``, ``encode_text``
and ``ground`` are the steps of a call.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex, Unpack, cast, overload

import torch
from PIL import Image

from glip.config import InferenceConfig, ModelConfig, Side
from glip.data.image import ImageInput, is_batch, open_all, open_any
from glip.device import choose_device, choose_dtype, out_of_memory_explained
from glip.encoded import EncodedImage, EncodedText
from glip.errors import CheckpointError, GlipError, ImageError
from glip.model.adapt import Adaptation, load_adaptation, refuse_mode, trained_with, with_weights
from glip.model.glip import GLIP
from glip.model.weights import load_pretrained, model_fingerprint, save_pretrained
from glip.options import DetectOptions, Thresholds, read_thresholds, with_options
from glip.postprocess import merge_chunks, postprocess, tempered
from glip.processor import Processor, in_order
from glip.schema import parse
from glip.structures import Detections
from glip.text.prompt import Prompt, Words, as_prompts, split_prompt
from glip.text.tokens import Tokenizer, warn_of_unknown_words

_TEXT_ROWS = 32  # captions that the language model reads at once


class Detector:
    """A model with its processor and its defaults.

    Examples:
        >>> detector = Detector.from_pretrained("glip-nano")
        >>> for box, score, label, phrase in detector("street.jpg", "a red bus. a cyclist"): ...
    """

    def __init__(
        self,
        model: GLIP,
        config: ModelConfig,
        tokenizer: Tokenizer,
        device: str | None = None,
        dtype: str = "float32",
        compile: bool = False,
    ) -> None:
        self._base, self._compile = model.eval(), compile
        self.config = config
        self.processor = Processor(config, tokenizer)
        self.adaptation: Adaptation | None = None
        self._tuned_text: EncodedText | None = None
        self.to(str(choose_device(device)), dtype)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "glip-nano",
        *,
        task: str | Path | Adaptation | None = None,
        device: str | None = None,
        dtype: str = "float32",
        compile: bool = False,
    ) -> "Detector":
        """Load a model by name ("glip-nano" is bundled, "glip-t", "glip-l", ... are the 2022 release) or from a path.

        With ``task``, a file that ``glip tune`` wrote, the detector is adapted to that task (see ``adapted``).
        ``device`` and ``dtype`` are those of ``to``. With ``compile`` torch compiles the image encoder and the head
        when they are first used, which takes minutes, for all image sizes and prompts.

        Raises:
            CheckpointError: unknown, missing, broken, or of another model.
            GlipError: an unknown device or dtype.
        """
        choose_dtype(dtype, choose_device(device))  # before the weights are loaded
        loaded = load_pretrained(name_or_path)
        detector = cls(loaded.model, loaded.config, Tokenizer(loaded.tokenizer), device, dtype, compile)
        return detector if task is None else detector.adapted(task)

    def to(self, device: str | None = None, dtype: str | None = None) -> "Detector":
        """Move this detector to a device, and change what it computes in; detectors for tasks are adapted afterwards.

        Args:
            device: cpu, cuda, cuda:1.
            dtype: float32 gives the exact results of the 2022 release. bfloat16 and, on a GPU, float16 are faster
                where the hardware has products in them; scores then differ in the third digit. auto is bfloat16 where
                it is faster, else float32. Boxes, centerness and scores are computed in float32 always.

        Raises:
            GlipError: no such device or dtype, float16 on a CPU, or another dtype than that weights were rounded to.
        """
        place = self.device if device is None else choose_device(device)
        chosen = self.dtype if dtype is None else choose_dtype(dtype, place)
        if chosen != self.dtype:
            if self.dtype != torch.float32:
                raise GlipError(f"dtype {dtype}: the weights are rounded to {self.dtype} already: load the model again")
            _ = self.fingerprint  # of the exact weights
            self._base.cast(chosen)
        self._base.to(place)
        self._tuned_text = None
        self._use(self.adaptation)
        return self

    def _use(self, adaptation: Adaptation | None) -> None:
        """Compute with the weights of the model, or with those that a task changed."""
        self.adaptation = adaptation
        self.model = with_weights(self._base, adaptation.weights) if adaptation and adaptation.weights else self._base
        self._encode_image, self._fuse = self.model.encode_image, self.model.fuse_and_predict
        if self._compile:
            self._encode_image = torch.compile(self._encode_image, dynamic=True)
            self._fuse = torch.compile(self._fuse, dynamic=True)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._base.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._base.dtype

    def adapted(self, task: str | Path | Adaptation) -> "Detector":
        """A second detector with what was learned for a task; called without a prompt it finds the task's names.

        All weights but those that the task changed are shared: many tasks take the memory of one model and switching
        is calling another of these detectors. After prompt tuning, other prompts than the task's are answered by the
        model as it is, bit for bit.

        Raises:
            CheckpointError: missing, broken, or tuned on other weights than these.
        """
        adaptation = task if isinstance(task, Adaptation) else load_adaptation(task)
        if adaptation.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"task {' '.join(adaptation.names)[:40]!r} was tuned on other weights (of {adaptation.model!r}) than "
                f"those of this {self.config.name!r}: load the model it belongs to, or tune again"
            )
        twin = copy.copy(self)
        twin._tuned_text = None
        twin._use(adaptation)
        return twin

    def __repr__(self) -> str:
        task = f", task {', '.join(self.adaptation.names)[:40]!r}" if self.adaptation else ""
        return f"Detector({self.config.name!r}, {self.device}, {str(self.dtype).removeprefix('torch.')}{task})"

    def resized(self, short_side: int) -> "Detector":
        """A second detector of the same weights; images are resized to another short side, and longest in proportion.

        Raises:
            GlipError: a side below 32 or above 8192 pixels.
        """
        twin, image = copy.copy(self), self.config.image
        side = parse(Side, short_side, at="short_side")
        resized = replace(image, min_size=side, max_size=round(image.max_size * side / image.min_size))
        twin.config = replace(self.config, image=resized)
        twin.processor = Processor(twin.config, self.processor.tokenizer)
        return twin

    def with_inference(self, **changes: Any) -> "Detector":
        """A second detector of the same weights with other defaults, such as ``compete=1`` (``InferenceConfig``)."""
        twin = copy.copy(self)
        twin.config = replace(self.config, inference=with_options(self.config.inference, **changes))
        return twin

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights of the model, without adaptations."""
        return model_fingerprint(self._base)

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write model.safetensors, config.json and vocab.txt; ``from_pretrained(folder)`` gives the same outputs.

        Of an adapted detector, weights and thresholds of its task become the model's own; a text encoder that it
        changed is no longer stored as int8. With ``half`` weights are stored as float16.

        Raises:
            GlipError: prompt tuning, which changes no weights.
        """
        config, task = self.config, self.adaptation
        if task:
            refuse_mode(task, ("linear", "lora", "text", "full"), "be merged, since it changes no weights")
            own = dict(zip(task.prompt.texts, task.thresholds, strict=False))  # of a task without thresholds none
            bits = 32 if any(name.startswith("language.") for name in task.weights) else config.language.bits
            language, thresholds = replace(config.language, bits=bits), config.thresholds | own
            config = trained_with(replace(config, language=language, thresholds=thresholds), task)
        save_pretrained(folder, self.model, config, self.processor.tokenizer.folder, half=half)

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        images: ImageInput,
        prompt: Words | None = None,
        *,
        max_names: int | None = None,
        **options: Unpack[DetectOptions],
    ) -> Detections: ...
    @overload
    def __call__(
        self,
        images: Iterable[ImageInput],
        prompt: Words | Sequence[Words] | None = None,
        *,
        max_names: int | None = None,
        **options: Unpack[DetectOptions],
    ) -> list[Detections]: ...
    def __call__(
        self,
        images: ImageInput | Iterable[ImageInput],
        prompt: Words | Sequence[Words] | None = None,
        *,
        max_names: int | None = None,
        **options: Unpack[DetectOptions],
    ) -> Detections | list[Detections]:
        """Find what the prompt names.

        Args:
            images: a path, the bytes of a file, a PIL image, an array (height, width[, 3], RGB) or a tensor (3, height,
                width) of any number type (docs/data.md says how its range is read); or several, as a list, a
                generator, or an array of four axes.
            prompt: "a red bus. a cyclist", a list of names, or a Prompt; for a list of images also a list of
                Prompts (or of lists of names), one for each. Default: the names of the adapted detector's task.
            max_names: maximum names in a chunk of a long list; default: as many as fit.
            **options: see ``DetectOptions``.

        Returns:
            Detections for one image, a list of them for a list.

        Raises:
            GlipError: an unreadable image, a bad prompt, a caption over the limit, an option out of range.
        """
        if is_batch(images):
            return list(self.stream(cast(Iterable[ImageInput], images), prompt, max_names=max_names, **options))
        [found] = self.stream([images], prompt, max_names=max_names, **options)  # type: ignore[list-item]
        return found

    def stream(
        self,
        images: Iterable[ImageInput],
        prompt: Words | Sequence[Words] | None = None,
        *,
        max_names: int | None = None,
        on_error: Callable[[int, ImageError], None] | None = None,
        **options: Unpack[DetectOptions],
    ) -> Iterator[Detections]:
        """Find what the prompt names in any number of images; yields one result per image, in their order.

        Images are loaded and encoded batch by batch (``Processor.group_by_size``), so memory stays bounded.

        Args:
            images: images as for a call, also from a generator.
            prompt: one for all images, or a list of Prompts, one for each.
            max_names: as for a call.
            on_error: called with the number and the error of each image that cannot be read; it is left out of the
                results. Default: the error is raised.
            **options: see ``DetectOptions``.
        """
        batch_size = options.get("batch_size", 4)
        if not isinstance(batch_size, SupportsIndex) or batch_size < 1:
            raise GlipError(f"batch_size: got {batch_size!r}: give a whole number, 1 or more")
        given = {name: options.get(name) for name in ("nms", "max_detections")}
        with_options(self.config.inference, **given)  # refused now, not with the first image
        prompts = [] if prompt is None else as_prompts(prompt)
        if len(prompts) > 1 and isinstance(images, Sized) and len(images) != len(prompts):
            raise GlipError(f"got {len(prompts)} prompts for {len(images)} images: give one, or one for each")
        warn_of_unknown_words(self.processor.tokenizer.unknown_words, prompts)
        shared = None if len(prompts) > 1 else self.encode_text(prompts or None, max_names=max_names)

        numbers = list[int]()  # of the images that can be read

        def readable() -> Iterator[Image.Image]:
            for number, image in open_all(images, on_error):
                if shared is None and number >= len(prompts):
                    raise GlipError(f"got {len(prompts)} prompts for more images: give one, or one for each")
                numbers.append(number)
                yield image

        def detected() -> Iterator[tuple[int, Detections]]:
            for group in self.processor.group_by_size(readable(), batch_size):
                indices, opened = zip(*group, strict=True)
                own = [prompts[numbers[index]] for index in indices] if len(prompts) > 1 else []
                text = shared or self.encode_text(own, max_names=max_names)
                yield from zip(indices, self.ground(self.encode_image(opened), text, **options), strict=True)

        return in_order(detected())

    @torch.no_grad()
    @out_of_memory_explained("batch_size or the image size")
    def encode_image(self, images: ImageInput | Sequence[ImageInput]) -> EncodedImage:
        """Encode one or more images; those of different size are padded to the largest, which the fusion sees."""
        opened = [open_any(image) for image in (images if is_batch(images) else [images])]  # type: ignore[arg-type, list-item, union-attr]
        pixels, resized = self.processor.images(opened)
        levels = self._encode_image(pixels.to(self.device))
        return EncodedImage(levels, resized, tuple((image.height, image.width) for image in opened))

    @torch.no_grad()
    def encode_text(
        self, prompts: Words | Sequence[Words] | None = None, *, max_names: int | None = None
    ) -> EncodedText:
        """Encode one prompt for all images, or a list of Prompts, one for each; long lists of names in chunks.

        Without a prompt an adapted detector gives its task's words, with what was learned for them.
        """
        if prompts is None:
            if self.adaptation is None:
                raise GlipError("no prompt: say what to look for, or load a task of glip tune, which has its own names")
            self._tuned_text = self._tuned_text or self._encode_task(self.adaptation)
            return self._tuned_text
        listed, rows, chunks = as_prompts(prompts), list[Prompt](), []
        count_tokens, max_tokens = self.processor.count_tokens, self.processor.max_tokens
        for prompt in listed:
            parts = split_prompt(prompt, count_tokens, max_tokens=max_tokens, max_names=max_names)
            chunks.append(tuple((first, len(rows) + number) for number, (first, _) in enumerate(parts)))
            rows += [part for _, part in parts]
        tokens = self.processor.text(rows)
        batch, lengths = tokens.to(self.device), tuple(tokens.attention_mask.sum(1).tolist())
        pieces = zip(batch.input_ids.split(_TEXT_ROWS), batch.attention_mask.split(_TEXT_ROWS), strict=True)
        hidden = torch.cat([self.model.language(ids, mask) for ids, mask in pieces])
        return EncodedText(tuple(listed), tuple(chunks), batch, hidden, lengths)

    def _encode_task(self, adaptation: Adaptation) -> EncodedText:
        text, offsets = self.encode_text(adaptation.prompt), adaptation.offsets
        if offsets is None:
            return replace(text, tuned=True)
        if offsets.shape != text.hidden.shape[1:]:
            raise CheckpointError(
                f"offsets of shape {tuple(offsets.shape)} for a caption of {tuple(text.hidden.shape[1:])}: the task is "
                "broken or of another model"
            )
        return replace(text, hidden=text.hidden + offsets.to(text.hidden), tuned=True)

    @torch.no_grad()
    @out_of_memory_explained("batch_size, max_names or the image size")
    def ground(
        self,
        image: EncodedImage,
        text: EncodedText,
        *,
        threshold: Thresholds | None = None,
        nms: float | None = None,
        max_detections: int | None = None,
        chunk_detections: int = 0,
        batch_size: int = 4,
        token_scores: bool = False,
    ) -> list[Detections]:
        """Ground encoded prompts in encoded images: one prompt in all of them, or one in each.

        Options are those of ``stream``; ``chunk_detections`` is the maximum per chunk of a long list, 0 for no limit
        (LVIS's protocol).
        """
        count = len(image.original)
        if len(text.prompts) not in (1, count):
            raise GlipError(f"got {len(text.prompts)} prompts for {count} images: give one, or one for each")
        owners = list(range(count)) if len(text.prompts) == count else [0] * count
        tuned = self.adaptation.thresholds if text.tuned and self.adaptation else ()
        usual, stored = tuned or self.config.inference.threshold, {} if tuned else self.config.thresholds
        limits = [read_thresholds(threshold, text.prompts[owner], usual, stored) for owner in owners]
        config = with_options(self.config.inference, nms=nms, max_detections=max_detections)
        passes = [(index, first, row) for index, owner in enumerate(owners) for first, row in text.chunks[owner]]
        if token_scores and len(passes) > count:
            raise GlipError("token_scores need a prompt in one piece: this list of names was split into chunks")
        limit = chunk_detections or (0 if len(passes) > count else config.max_detections)
        per_pass = replace(config, max_detections=limit)
        parts: list[list[Detections]] = [[] for _ in range(count)]
        for start in range(0, len(passes), batch_size):
            piece = passes[start : start + batch_size]
            rows = [(index, row) for index, _, row in piece]
            results = self._predict(image, text, rows, per_pass, token_scores)
            for (index, first, _), found in zip(piece, results, strict=True):
                parts[index].append(replace(found, labels=found.labels + first, prompt=text.prompts[owners[index]]))
        temperature = 1.0 if text.tuned else config.temperature  # which is of the untuned scores
        merged = [merge_chunks(own, config) for own in parts]
        merged = [replace(found, scores=tempered(found.scores, temperature)) for found in merged]
        return [found.select(found.scores >= own[found.labels]) for found, own in zip(merged, limits, strict=True)]

    def _predict(
        self,
        image: EncodedImage,
        text: EncodedText,
        pairs: Sequence[tuple[int, int]],
        config: InferenceConfig,
        token_scores: bool,
    ) -> list[Detections]:
        """One pass of the head over pairs of image and text row."""
        images, (batch, hidden) = image.select([index for index, _ in pairs]), text.rows([row for _, row in pairs])
        outputs = self._fuse(images.levels, hidden, batch.attention_mask)
        found = postprocess(outputs, batch, images.resized, images.original, config, token_scores=token_scores)
        if not token_scores:
            return found
        captions = zip(batch.input_ids, batch.attention_mask, strict=True)
        words = [self.processor.tokenizer.words(ids[mask].tolist()) for ids, mask in captions]
        return [replace(part, tokens=own) for part, own in zip(found, words, strict=True)]
