"""Images and prompts -> Batch: the one road into the network, for training, evaluation, the demo and the teacher."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from glip.config import ImageConfig, ModelConfig
from glip.errors import CheckpointError
from glip.shapes import Float, Tensor
from glip.structures import Batch, ImageBatch, Prompt, Sample, Size, Target, TextBatch
from glip.text.tokens import Tokenizer, encode_prompts, positive_map

T = TypeVar("T")
_LOOK_AHEAD = 4  # an image waits for others of its padded size while this many batches are read
SIZE_DIVISOR = 32  # padded sides are multiples of it (DATALOADER.SIZE_DIVISIBILITY)


class ImageProcessor:
    """Resizes, normalizes and pads images, as a model's config says."""

    def __init__(self, config: ImageConfig) -> None:
        self.min_size, self.max_size = config.min_size, config.max_size
        self.channels = config.channels
        self.mean, self.std = torch.tensor(config.mean), torch.tensor(config.std)

    def images(self, images: Sequence[Image.Image]) -> tuple[Float[Tensor, "batch 3 height width"], tuple[Size, ...]]:
        """Resize, normalize and pad RGB images; also gives their sizes without the padding."""
        sizes = tuple(self.resized_size(image) for image in images)
        pairs = zip(images, sizes, strict=True)
        return self._pixels([one.resize(size[::-1], Image.Resampling.BILINEAR) for one, size in pairs]), sizes

    def resized_size(self, image: Image.Image) -> Size:
        """The size of an image after the resize, before the padding."""
        return resized_size(image.height, image.width, self.min_size, self.max_size)

    def group_by_size(self, images: Iterable[Image.Image], batch_size: int) -> Iterator[list[tuple[int, Image.Image]]]:
        """Batches of images of one padded size, each with its number, so that no result depends on the others.

        Images are read as they are needed: a batch that is not full goes when its first image has waited for four
        batches of others.
        """
        groups: dict[Size, list[tuple[int, Image.Image]]] = {}
        for index, image in enumerate(images):
            size = padded_size([self.resized_size(image)])
            groups.setdefault(size, []).append((index, image))
            if len(groups[size]) == batch_size:
                yield groups.pop(size)
            oldest = next(iter(groups), None)  # the order of a dict is that of insertion
            if oldest and index - groups[oldest][0][0] >= _LOOK_AHEAD * batch_size:
                yield groups.pop(oldest)
        yield from groups.values()

    def _pixels(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch 3 height width"]:
        """Normalize images and pad them right and bottom to one size."""
        height, width = padded_size([(image.height, image.width) for image in images])
        padded = []
        for image in images:
            values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
            if self.channels == "bgr":
                values = values.flip(0)
            values = (values - self.mean[:, None, None]) / self.std[:, None, None]
            padded.append(F.pad(values, (0, width - image.width, 0, height - image.height)))
        return torch.stack(padded)


class Processor(ImageProcessor):
    """Also tokenizes, for inference and training.

    Raises:
        CheckpointError: the tokenizer has more tokens than the model.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config.image)
        rows = config.language.vocabulary
        if tokenizer.size > rows:
            raise CheckpointError(
                f"{tokenizer.folder}: its tokenizer has {tokenizer.size:,} tokens, the model {rows:,} "
                "(language.vocabulary): give the tokenizer of the model"
            )
        self.tokenizer, self.max_tokens = tokenizer, config.max_tokens

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Batch:
        """A batch for inference: images resized to the model's size, one prompt for each."""
        pixels, resized = self.images(images)
        original = tuple((image.height, image.width) for image in images)
        return Batch(ImageBatch(pixels, resized, original), self.text(prompts))

    def text(self, prompts: Sequence[Prompt]) -> TextBatch:
        """Tokenize prompts; a caption over the limit or a phrase that yields no token is a GlipError."""
        return encode_prompts(self.tokenizer, prompts, max_tokens=self.max_tokens)

    def count_tokens(self, caption: str) -> int:
        """Tokens of a caption, [CLS] and [SEP] included."""
        return len(self.tokenizer(caption).ids)

    def training(self, samples: Sequence[Sample]) -> Batch:
        """A batch with targets. Images come at the size the transforms gave them and are only normalized."""
        images, prompts = [], []
        for sample in samples:
            assert isinstance(sample.image, Image.Image) and sample.prompt is not None, "transform and phrase first"
            images.append(sample.image)
            prompts.append(sample.prompt)
        sizes = tuple((image.height, image.width) for image in images)
        batch = ImageBatch(self._pixels(images), sizes, sizes)
        text = self.text(prompts)
        targets = tuple(
            Target(
                sample.boxes.float(),
                positive_map(weights, sample.box_phrases),
                torch.tensor(sample.scores) if sample.scores else None,
                sample.box_loss,
            )
            for sample, weights in zip(samples, text.phrase_tokens, strict=True)
        )
        return Batch(batch, text, targets)


def in_order(numbered: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Results in the order of their numbers 0, 1, ..., as soon as each one's turn comes."""
    waiting: dict[int, T] = {}
    done = 0
    for number, found in numbered:
        waiting[number] = found
        while done in waiting:
            yield waiting.pop(done)
            done += 1


def padded_size(sizes: Sequence[Size]) -> Size:
    """The size that images of these sizes are padded to when they share a batch."""
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    return height + -height % SIZE_DIVISOR, width + -width % SIZE_DIVISOR


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) after the release's resize: short side ``min_size``, unless the long side passes ``max_size``."""
    short, long = min(height, width), max(height, width)
    target = min_size
    if long / short * target > max_size:
        target = max(1, int(round(max_size * short / long)))
    if short == target:
        return height, width
    other = int(target * long / short)
    return (target, other) if height <= width else (other, target)
