"""Images and prompts -> Batch: the one road into the network, for training, evaluation, the demo and the teacher."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from glip.shapes import Float, Tensor
from glip.structures import Batch, ImageBatch, Prompt, Sample, Target, TextBatch
from glip.text.tokens import Tokenizer, encode_prompts, positive_map

SIZE_DIVISOR = 32  # padded sides are multiples of it (DATALOADER.SIZE_DIVISIBILITY)


class Processor:
    """Resizes, normalizes, pads and tokenizes.

    Args:
        tokenizer: the model's tokenizer.
        min_size: short side of the resized image, pixels.
        max_size: the long side is at most this.
        channels: "bgr" or "rgb", the channel order the model was trained with.
        mean: per channel, in that order, on 0..255 values.
        std: likewise.
        max_tokens: longest caption the model reads, [CLS] and [SEP] included.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        min_size: int,
        max_size: int,
        channels: str,
        mean: Sequence[float],
        std: Sequence[float],
        max_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.min_size, self.max_size = min_size, max_size
        self.channels = channels
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.max_tokens = max_tokens

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Batch:
        """A batch for inference: images resized to the model's size, one prompt for each."""
        return Batch(self.images(images), self.text(prompts))

    def images(self, images: Sequence[Image.Image]) -> ImageBatch:
        """Resize, normalize and pad RGB images."""
        resized = []
        for image in images:
            height, width = resized_size(image.height, image.width, self.min_size, self.max_size)
            same = (width, height) == image.size
            resized.append(image if same else image.resize((width, height), Image.Resampling.BILINEAR))
        original = tuple((image.height, image.width) for image in images)
        sizes = tuple((image.height, image.width) for image in resized)
        return ImageBatch(self._pad([self._normalize(image) for image in resized]), sizes, original)

    def text(self, prompts: Sequence[Prompt]) -> TextBatch:
        """Tokenize prompts.

        Raises:
            ValueError: a caption over the limit, or a phrase that yields no token.
        """
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
        batch = ImageBatch(self._pad([self._normalize(image) for image in images]), sizes, sizes)
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

    def _normalize(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        if self.channels == "bgr":
            values = values.flip(0)
        return (values - self.mean[:, None, None]) / self.std[:, None, None]

    def _pad(self, images: Sequence[Tensor]) -> Float[Tensor, "batch 3 height width"]:
        height, width = (max(p.shape[axis] for p in images) for axis in (1, 2))
        height, width = height + -height % SIZE_DIVISOR, width + -width % SIZE_DIVISOR
        padded = [F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in images]
        return torch.stack(padded)


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
