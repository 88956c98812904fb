"""What tuning a model for one task trains, by mode, and the task's images; everything frozen is computed only once.

Modes are the release's (``tuning_highlevel_override``): prompt is its language_prompt_v2, text its language_prompt_v1,
linear its linear_prob. Its v3 and v4 ask for a linear probe beside these, but freeze the head after it: they are v1
and v2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from glip.config import Mode, TuneConfig
from glip.console import ProgressBar
from glip.data.image import sample_image
from glip.data.sets import SkipCounter
from glip.data.transforms import augment
from glip.detector import Detector
from glip.encoded import EncodedImage, FeatureCache, image_key
from glip.errors import ConfigError, ImageError
from glip.model.adapt import Adaptation, changes_encoder, with_weights
from glip.model.glip import GLIP
from glip.shapes import Float, Tensor
from glip.structures import Batch, ImageBatch, Outputs, Prompt, Sample, TextBatch
from glip.train.lora import add_lora, lora_weights
from glip.train.step import frozen_to_eval

Levels = tuple[Float[Tensor, "batch chan _height _width"], ...]

_TRAINED = {
    "prompt": (),
    "linear": ("boxes.box.", "boxes.centerness.", "tokens."),
    "lora": (),
    "text": ("language.",),
    "full": ("",),
}
_RANDOM = {"prompt": (), "linear": ("tower", "boxes", "tokens"), "lora": (), "text": ("language",), "full": ("",)}


def trained_names(model: GLIP, mode: Mode) -> list[str]:
    """The weights of the model that a mode trains; none in modes prompt and lora, which add numbers of their own."""
    return [name for name, _ in model.named_parameters() if name.startswith(_TRAINED[mode])]


@dataclass(frozen=True)
class TaskBatch(Batch):
    """Images of one padded size with the task's prompt; where ``levels``, their pyramid, is cached, pixels are not."""

    levels: Levels | None = None

    def to(self, device: torch.device | str) -> "TaskBatch":
        """The same batch on another device."""
        images = self.images.to(device) if self.levels is None else self.images
        levels = None if self.levels is None else tuple(level.to(device) for level in self.levels)
        return TaskBatch(images, self.text.to(device), tuple(target.to(device) for target in self.targets), levels)


class Tuner(nn.Module):
    """A model in tuning for one task. The detector's own model stays as it is: what trains is a copy.

    ``prompt`` has a phrase for each of the task's classes, ``names``; of ``config`` the mode and the options of lora
    count. In mode full the image encoder's stem and first ``frozen_stages`` stages do not train. ``keeps_images`` says
    whether the features of an image stay the same, so that they need to be computed only once.

    Raises:
        GlipError: a prompt over the model's limit: a task is tuned with all its names in one caption; or what
            ``add_lora`` refuses.
    """

    def __init__(
        self, detector: Detector, names: Sequence[str], prompt: Prompt, config: TuneConfig, *, frozen_stages: int = 0
    ) -> None:
        super().__init__()
        self.detector, self.names, self.prompt, self.config = detector, tuple(names), prompt, config
        self.mode = mode = config.mode
        trained, own = trained_names(detector.model, mode), detector.model.state_dict()
        changing = own if mode == "full" else trained  # full: running statistics too
        self.model = with_weights(detector.model, {name: own[name].clone() for name in changing})
        self.text = detector.processor.text([prompt]).to(detector.device)
        with torch.no_grad():
            self.hidden = detector.model.encode_text(self.text)
        self.offsets = nn.Parameter(torch.zeros_like(self.hidden[0])) if mode == "prompt" else None
        for name in trained:
            self.model.get_parameter(name).requires_grad_(True)
        if mode == "full":
            self.model.freeze(stages=frozen_stages)
        if mode == "lora":
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                add_lora(self.model, config, int8=detector.config.language.bits == 8)
        changing = self.learned()
        self.keeps_images = not changes_encoder(changing)
        self.keeps_text = not any(name.startswith("language.") for name in changing)
        self.set_modes()

    def set_modes(self) -> None:
        """Each part in the mode in which the release trains it: frozen parts in eval mode, but not a probe's tower."""
        self.model.eval()
        for part in _RANDOM[self.mode]:
            self.model.get_submodule(part).train()
        if self.mode == "full":
            frozen_to_eval(self.model)

    def learned(self) -> dict[str, Tensor]:
        """All that changes, by name: what trains, and in mode full the running statistics."""
        if self.offsets is not None:
            return {"offsets": self.offsets}
        return {
            name: value
            for name, value in self.model.state_dict(keep_vars=True).items()
            if value.requires_grad or (self.mode == "full" and not isinstance(value, nn.Parameter))
        }

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Levels:
        """The pyramid of images; without gradients where it stays the same."""
        with torch.set_grad_enabled(not self.keeps_images):
            return self.model.encode_image(pixels.to(self.detector.device))

    def forward(self, batch: TaskBatch) -> Outputs:
        """Ground the task's prompt in images."""
        levels = self.encode(batch.images.pixels) if batch.levels is None else batch.levels
        hidden = self.hidden if self.keeps_text else self.model.encode_text(self.text)
        if self.offsets is not None:
            hidden = hidden + self.offsets
        count = len(levels[0])
        mask = self.text.attention_mask.expand(count, -1)
        return self.model.fuse_and_predict(levels, hidden.expand(count, -1, -1), mask)

    def adaptation(self, **more: object) -> Adaptation:
        """What has been learned so far, sharing its tensors; ``more`` are further fields."""
        detector, before = self.detector, self.detector.model.state_dict()
        if self.mode == "lora":
            changed = lora_weights(self.model, self.config)
        else:
            changed = {k: value for k, value in self.model.state_dict().items() if not torch.equal(value, before[k])}
        return Adaptation(
            mode=self.mode,
            model=detector.config.name,
            fingerprint=detector.fingerprint,
            names=self.names,
            prompt=self.prompt,
            offsets=None if self.offsets is None else self.offsets.detach(),
            weights=changed,
            **more,  # type: ignore[arg-type]
        )


@dataclass
class Images:
    """The training images of a task, ``usable`` by index; those whose features fit into the cache are encoded once.

    Raises:
        ConfigError: no image can be used.
    """

    samples: Sequence[Sample]  # their boxes have the task's names
    tuner: Tuner
    augment: bool  # flip and resize images at random each time; their features are then not cached
    cache: FeatureCache  # of this model's own encoder, also with features of earlier tunings
    skipped: SkipCounter  # counts boxes and images that cannot be used

    def __post_init__(self) -> None:
        self.cached: dict[int, TaskBatch] = {}
        self.usable: list[int] = []
        samples, skipped = self.samples, self.skipped
        for index in ProgressBar(range(len(samples)), desc="reading", unit="image"):
            try:
                batch = self._prepare(index, np.random.default_rng(0), skipped)
            except ImageError as error:
                skipped.add("unreadable image", str(error))
                continue
            self.usable.append(index)
            if self.tuner.keeps_images and not self.augment:
                self._cache(index, batch)
        if not self.usable:
            raise ConfigError(f"none of the {len(samples)} training images can be used: {skipped}")

    def get(self, index: int, rng: np.random.Generator) -> TaskBatch:
        """One image; ``rng`` augments it where images are augmented."""
        return self.cached.get(index) or self._prepare(index, rng, SkipCounter())

    def _prepare(self, index: int, rng: np.random.Generator, skipped: SkipCounter) -> TaskBatch:
        sample, processor = self.samples[index], self.tuner.detector.processor
        size = processor.min_size
        varied, lost = augment(
            replace(sample, image=sample_image(sample)),
            rng,
            short_side=(round(0.6 * size), size) if self.augment else (size,),
            max_size=processor.max_size,
            flip=0.5 if self.augment else 0.0,
        )
        skipped.merge(lost)
        batch = processor.training([replace(varied, prompt=self.tuner.prompt, vocabulary=())])
        return TaskBatch(batch.images, batch.text, batch.targets)

    def _cache(self, index: int, batch: TaskBatch) -> None:
        images, cache, key = batch.images, self.cache, ("training", image_key(self.samples[index].image))
        if cache.full and key not in cache:
            return
        encoded = cache.get(
            key, lambda: EncodedImage(self.tuner.encode(images.pixels), images.resized, images.original), often=True
        )
        if key in cache:
            bare = images.pixels.new_zeros(1).expand(images.pixels.shape)  # from here on only its shape is read
            self.cached[index] = replace(batch, images=replace(images, pixels=bare), levels=encoded.levels)


def by_size(batches: Sequence[TaskBatch], most: int = 0) -> Iterator[TaskBatch]:
    """Join images of one padded size, since the fusion sees the padding; at most ``most`` at once, 0 for no limit."""
    groups: dict[tuple[int | bool, ...], list[TaskBatch]] = {}
    for batch in batches:
        groups.setdefault((*batch.images.pixels.shape, batch.levels is None), []).append(batch)
    for group in groups.values():
        size = most or len(group)
        yield from (_joined(group[first : first + size]) for first in range(0, len(group), size))


def _joined(group: Sequence[TaskBatch]) -> TaskBatch:
    """One batch of several with one image each."""
    first, count = group[0], len(group)
    images, text, cached = first.images, first.text, first.levels is not None
    pixels = images.pixels.expand(count, -1, -1, -1) if cached else torch.cat([one.images.pixels for one in group])
    resized, original = (tuple(getattr(one.images, key)[0] for one in group) for key in ("resized", "original"))
    ids, mask = (values.expand(count, -1) for values in (text.input_ids, text.attention_mask))  # all the task's prompt
    return TaskBatch(
        ImageBatch(pixels, resized, original),
        TextBatch(ids, mask, text.phrase_tokens * count, text.prompts * count),
        tuple(one.targets[0] for one in group),
        tuple(torch.cat(level) for level in zip(*(one.levels or () for one in group), strict=True)) if cached else None,
    )
