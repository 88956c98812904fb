"""Encoded images and prompts: each is encoded once and can be grounded in the other many times."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from glip.shapes import Float, Tensor
from glip.structures import Size, TextBatch
from glip.text.prompt import Prompt


@dataclass(frozen=True)
class EncodedImage:
    """The pyramid of one or more images of one padded size, and their (height, width) before and after the resize."""

    levels: tuple[Float[Tensor, "batch chan _height _width"], ...]
    resized: tuple[Size, ...]
    original: tuple[Size, ...]

    def select(self, chosen: Sequence[int]) -> "EncodedImage":
        """Some of the images, by index; one may come more than once, for several prompts."""
        resized, original = (tuple(sizes[index] for index in chosen) for sizes in (self.resized, self.original))
        return EncodedImage(tuple(level[list(chosen)] for level in self.levels), resized, original)

    def to(self, device: str | torch.device) -> "EncodedImage":
        """The same images on another device."""
        return replace(self, levels=tuple(level.to(device) for level in self.levels))


@dataclass(frozen=True)
class EncodedText:
    """Token features of one or more prompts; a long list of names has several rows, its chunks.

    ``chunks[i]`` lists the rows of prompt ``i``, each after the label that its first phrase has in the prompt.
    ``lengths`` are the tokens of each row, known here so that no GPU is waited for. ``tuned`` text is an adaptation's
    own prompt with what was learned for it; the adaptation's thresholds apply.
    """

    prompts: tuple[Prompt, ...]
    chunks: tuple[tuple[tuple[int, int], ...], ...]
    batch: TextBatch
    hidden: Float[Tensor, "row tok chan"]
    lengths: tuple[int, ...]
    tuned: bool = False

    def rows(self, chosen: list[int]) -> tuple[TextBatch, Float[Tensor, "chosen token chan"]]:
        """Some rows, cut to the longest of them."""
        batch = self.batch
        mask = batch.attention_mask[chosen]
        width = max(self.lengths[row] for row in chosen)
        tokens = tuple(batch.phrase_tokens[row][:, :width] for row in chosen)
        prompts = tuple(batch.prompts[row] for row in chosen)
        cut = TextBatch(batch.input_ids[chosen][:, :width], mask[:, :width], tokens, prompts)
        return cut, self.hidden[chosen][:, :width]


class FeatureCache:
    """Encoded images that are used again and again while the image encoder stays as it is.

    Args:
        gigabytes: main memory for them at most; an image that does not fit is encoded each time.

    ``full`` says that an image that is used often did not fit.
    """

    def __init__(self, gigabytes: float) -> None:
        self._room = int(gigabytes * 1e9)
        self._kept: dict[Hashable, EncodedImage] = {}
        self._often: set[Hashable] = set()
        self.full = False

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, encode: Callable[[], EncodedImage], *, often: bool = False) -> EncodedImage:
        """The images cached under a key, in main memory; or, where they do not fit, what ``encode`` returns.

        Images that are used ``often``, such as in every step, take the room of others.
        """
        if key in self._kept:
            return self._kept[key]
        image = encode()
        others = [other for other in self._kept if other not in self._often] if often else []
        size, room = _bytes_of(image), self._room + sum(_bytes_of(self._kept[other]) for other in others)
        if size > room:
            self.full |= often
            return image
        while size > self._room:
            self._room += _bytes_of(self._kept.pop(others.pop()))
        self._room -= size
        self._often |= {key} if often else set()
        self._kept[key] = image.to("cpu")
        return self._kept[key]


def _bytes_of(image: EncodedImage) -> int:
    return sum(level.nbytes for level in image.levels)


def image_key(image: Hashable | Image.Image) -> Hashable:
    """A key that tells an image from others: its place in the files, or for a loaded one its identity."""
    return _Loaded(image) if isinstance(image, Image.Image) else image


class _Loaded:
    """A loaded image as a key: equal to itself alone, and held, so that no other image gets its id."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Loaded) and other.image is self.image

    def __hash__(self) -> int:
        return id(self.image)
