"""What tuning a model for one task trains, by mode, and the forward pass with all that is frozen computed once.

Modes are the release's (``tuning_highlevel_override``): prompt is its language_prompt_v2, text its language_prompt_v1,
linear its linear_prob. Its v3 and v4 ask for a linear probe beside these, but freeze the head after it: they are v1
and v2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from glip.adaptation import Adaptation, Mode
from glip.data.image import open_any
from glip.data.sets import SkipCounter
from glip.data.transforms import augment
from glip.detector import Detector
from glip.encoded import EncodedImage, FeatureCache, image_key
from glip.errors import ConfigError, ImageError
from glip.model.adapt import with_weights
from glip.model.glip import GLIP
from glip.shapes import Float, Tensor
from glip.structures import Batch, Outputs, Prompt, Sample, TextFeatures
from glip.train.loop import keep_frozen_still

Levels = tuple[Float[Tensor, "batch chan _height _width"], ...]

_TRAINED = {
    "prompt": (),
    "linear": ("boxes.box.", "boxes.centerness.", "tokens."),
    "text": ("language.",),
    "full": ("",),
}
_RANDOM = {"prompt": (), "linear": ("tower", "boxes", "tokens"), "text": ("language",), "full": ("",)}


def trained_names(model: GLIP, mode: Mode) -> list[str]:
    """The weights of the model that a mode trains; of mode prompt none, its offsets are no part of the model."""
    return [name for name, _ in model.named_parameters() if name.startswith(_TRAINED[mode])] if _TRAINED[mode] else []


class Tuner:
    """A model in tuning for one task. The detector's own model is left as it is: what trains is a copy.

    Args:
        detector: whose model is tuned.
        names: the task's classes.
        prompt: how they are asked for, a phrase for each.
        mode: what trains.
        frozen_stages: of the image encoder, from the bottom, in mode full; with the first goes the stem.

    Raises:
        ValueError: a prompt over the model's limit.
    """

    def __init__(
        self, detector: Detector, names: Sequence[str], prompt: Prompt, *, mode: Mode, frozen_stages: int = 0
    ) -> None:
        self.detector, self.names, self.prompt, self.mode = detector, tuple(names), prompt, mode
        needed, room = detector.processor.count_tokens(prompt.caption), detector.processor.max_tokens
        if needed > room:
            raise ConfigError(
                f"the {len(names)} names need {needed} tokens, the model reads {room}: a task is tuned with all its "
                "names in one caption; tune on parts of them, a task each"
            )
        own = dict(detector.model.named_parameters())
        copied = {name: own[name].detach().clone() for name in trained_names(detector.model, mode)}
        if mode == "full":  # running statistics change too
            stored = detector.model.state_dict()
            copied |= {name: value.clone() for name, value in stored.items() if name not in own}
        self.model, self._copied = with_weights(detector.model, copied), tuple(copied)
        self.text = detector.processor.text([prompt]).to(detector.device)
        with torch.no_grad():
            self.features = detector.model.encode_text(self.text)
        self.offsets = nn.Parameter(torch.zeros_like(self.features.hidden[0])) if mode == "prompt" else None
        for name in trained_names(self.model, mode):
            self.model.get_parameter(name).requires_grad_(True)
        if mode == "full":
            self.model.freeze(stages=frozen_stages)
        self.set_modes()

    def set_modes(self) -> None:
        """Each part in the mode in which the release trains it: what is frozen in eval mode, but a probe's tower."""
        self.model.eval()
        for part in _RANDOM[self.mode]:
            self.model.get_submodule(part).train()
        if self.mode == "full":
            keep_frozen_still(self.model)

    @property
    def keeps_images(self) -> bool:
        """Whether the features of an image stay the same, so that they need to be computed only once."""
        return self.mode != "full"

    def trained(self) -> dict[str, nn.Parameter]:
        """What is stepped, by name."""
        if self.offsets is not None:
            return {"offsets": self.offsets}
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def encode(self, batch: Batch) -> Levels:
        """The pyramid of a batch's images; without gradients where they stay the same."""
        with torch.set_grad_enabled(not self.keeps_images):
            return self.model.encode_image(batch.images.pixels.to(self.detector.device))

    def __call__(self, levels: Levels) -> Outputs:
        """Ground the task's words in encoded images."""
        text = self.model.encode_text(self.text) if self.mode in ("text", "full") else self.features
        if self.offsets is not None:
            text = replace(text, hidden=text.hidden + self.offsets)
        count = len(levels[0])
        mask = text.attention_mask.expand(count, -1)
        return self.model.fuse_and_predict(levels, TextFeatures(text.hidden.expand(count, -1, -1), mask))

    def adaptation(self, **more: object) -> Adaptation:
        """What has been learned so far, sharing its tensors; ``more`` are further fields."""
        own = self.detector
        before, now = own.model.state_dict(), self.model.state_dict()
        weights = {name: now[name] for name in self._copied if not torch.equal(now[name], before[name])}
        return Adaptation(
            mode=self.mode,
            model=own.config.name,
            fingerprint=own.fingerprint,
            names=self.names,
            prompt=self.prompt,
            offsets=None if self.offsets is None else self.offsets.detach(),
            weights=weights,
            **more,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Prepared:
    """A training image as the network reads it, and its pyramid where that is kept."""

    batch: Batch
    levels: Levels | None


class Images:
    """The training images of a task; those whose features fit into ``kept`` are encoded once.

    Args:
        samples: boxes point at the task's names.
        tuner: what encodes them.
        vary: mirror and resize images anew every time; nothing of them is kept then.
        kept: features of images of this model's own encoder, of earlier tunings too; those of this one are added.
        skipped: counts boxes and images that cannot be used.

    Raises:
        ValueError: no image can be used.
    """

    def __init__(
        self, samples: Sequence[Sample], tuner: Tuner, *, vary: bool, kept: FeatureCache, skipped: SkipCounter
    ) -> None:
        self._samples, self._tuner, self._vary = samples, tuner, vary
        self._features, self._kept = kept, dict[int, Prepared]()
        self.usable: list[int] = []
        for index in tqdm(range(len(samples)), desc="reading", unit="image", disable=None, leave=False):
            try:
                prepared = self._prepare(index, np.random.default_rng(0), skipped)
            except ImageError as error:
                skipped.add("unreadable image", str(error))
                continue
            self.usable.append(index)
            self._keep(index, prepared)
        if not self.usable:
            raise ConfigError(f"none of the {len(samples)} training images can be used: {skipped}")

    def __len__(self) -> int:
        return len(self.usable)

    @property
    def kept(self) -> int:
        """How many images' features are kept."""
        return len(self._kept)

    def get(self, index: int, rng: np.random.Generator) -> Prepared:
        """One image; ``rng`` varies it where images are varied."""
        return self._kept.get(index) or self._prepare(index, rng, SkipCounter())

    def _prepare(self, index: int, rng: np.random.Generator, skipped: SkipCounter) -> Prepared:
        sample, processor = self._samples[index], self._tuner.detector.processor
        size = processor.min_size
        varied, lost = augment(
            replace(sample, image=open_any(sample.image)),
            rng,
            short_side=(round(0.6 * size), size) if self._vary else (size,),
            max_size=processor.max_size,
            flip=0.5 if self._vary else 0.0,
        )
        skipped.merge(lost)
        batch = processor.training([replace(varied, prompt=self._tuner.prompt, vocabulary=())])
        return Prepared(batch, None)

    def _keep(self, index: int, prepared: Prepared) -> None:
        images, key = prepared.batch.images, ("training", image_key(self._samples[index].image))
        if self._vary or not self._tuner.keeps_images or (self._features.full and key not in self._features):
            return

        def encode() -> EncodedImage:
            return EncodedImage(self._tuner.encode(prepared.batch), images.resized, images.original)

        encoded = self._features.get(key, encode, often=True)
        if key in self._features:
            bare = images.pixels.new_zeros(1).expand(images.pixels.shape)  # from here on only its shape is read
            batch = replace(prepared.batch, images=replace(images, pixels=bare))
            self._kept[index] = Prepared(batch, encoded.levels)


def by_size(prepared: Sequence[Prepared]) -> Iterator[Prepared]:
    """Images of one padded size together, since the fusion sees the padding; each group is one forward pass."""
    groups: dict[tuple[int, ...], list[Prepared]] = {}
    for item in prepared:
        shape = tuple(item.batch.images.pixels.shape)
        groups.setdefault((*shape, item.levels is not None), []).append(item)
    for group in groups.values():
        yield _joined(group)


def _joined(group: Sequence[Prepared]) -> Prepared:
    first = group[0]
    if len(group) == 1:
        return first
    batches = [item.batch for item in group]
    pixels = [batch.images.pixels for batch in batches]
    whole = torch.cat(pixels) if first.levels is None else pixels[0].expand(len(group), *pixels[0].shape[1:])
    images = replace(
        first.batch.images,
        pixels=whole,
        resized=tuple(size for batch in batches for size in batch.images.resized),
        original=tuple(size for batch in batches for size in batch.images.original),
    )
    batch = Batch(images, first.batch.text, tuple(target for batch in batches for target in batch.targets))
    if first.levels is None:
        return Prepared(batch, None)
    parts = [item.levels for item in group if item.levels is not None]
    return Prepared(batch, tuple(torch.cat(level) for level in zip(*parts, strict=True)))
