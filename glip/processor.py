"""Pictures and prompts -> Batch: the one road into the network, for training, evaluation, the demo and the teacher."""

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
        min_size: short side of the resized picture, pixels.
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

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> Batch:
        """A batch for inference: pictures resized to the model's size, one prompt for each."""
        return Batch(self.images(pictures), self.text(prompts))

    def images(self, pictures: Sequence[Image.Image]) -> ImageBatch:
        """Resize, normalize and pad RGB pictures."""
        resized = []
        for picture in pictures:
            height, width = resized_size(picture.height, picture.width, self.min_size, self.max_size)
            same = (width, height) == picture.size
            resized.append(picture if same else picture.resize((width, height), Image.Resampling.BILINEAR))
        original = tuple((picture.height, picture.width) for picture in pictures)
        sizes = tuple((picture.height, picture.width) for picture in resized)
        return ImageBatch(self._pad([self._normalize(picture) for picture in resized]), sizes, original)

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
        """A batch with targets. Pictures come at the size the transforms gave them and are only normalized."""
        pictures, prompts = [], []
        for sample in samples:
            assert isinstance(sample.picture, Image.Image) and sample.prompt is not None, "transform and phrase first"
            pictures.append(sample.picture)
            prompts.append(sample.prompt)
        sizes = tuple((picture.height, picture.width) for picture in pictures)
        images = ImageBatch(self._pad([self._normalize(picture) for picture in pictures]), sizes, sizes)
        text = self.text(prompts)
        targets = tuple(
            Target(
                sample.boxes.float(),
                positive_map(weights, sample.box_phrases),
                torch.tensor(sample.scores) if sample.scores else None,
                sample.located,
            )
            for sample, weights in zip(samples, text.phrase_tokens, strict=True)
        )
        return Batch(images, text, targets)

    def _normalize(self, picture: Image.Image) -> Float[Tensor, "3 height width"]:
        values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
        if self.channels == "bgr":
            values = values.flip(0)
        return (values - self.mean[:, None, None]) / self.std[:, None, None]

    def _pad(self, pictures: Sequence[Tensor]) -> Float[Tensor, "batch 3 height width"]:
        height, width = (max(p.shape[axis] for p in pictures) for axis in (1, 2))
        height, width = height + -height % SIZE_DIVISOR, width + -width % SIZE_DIVISOR
        padded = [F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in pictures]
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
