"""Images and prompts that are encoded: each once, to be grounded in one another many times."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from glip.shapes import Float, Tensor
from glip.structures import Prompt, TextBatch, TextFeatures


@dataclass(frozen=True)
class EncodedImage:
    """The pyramid of one or more images of one padded size, and their (height, width) before and after the resize."""

    levels: tuple[Float[Tensor, "batch chan _height _width"], ...]
    resized: tuple[tuple[int, int], ...]
    original: tuple[tuple[int, int], ...]

    def select(self, chosen: Sequence[int]) -> "EncodedImage":
        """Some of the images, by index; one may come more than once, for several prompts."""
        index = list(chosen)
        resized, original = (tuple(sizes[i] for i in index) for sizes in (self.resized, self.original))
        return EncodedImage(tuple(level[index] for level in self.levels), resized, original)

    def to(self, device: str | torch.device) -> "EncodedImage":
        """The same on a device."""
        return replace(self, levels=tuple(level.to(device) for level in self.levels))


class FeatureCache:
    """Encoded images for those who look at them again and again, while the image encoder stays as it is.

    Args:
        gigabytes: main memory for them at most; what does not fit is encoded anew each time.

    ``full`` says that one that is asked for often did not fit by now.
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
        """What is kept under a key, in main memory; or, where it does not fit, what ``encode`` gives, on its device.

        Those that are asked for ``often``, such as in every step, take the room of others.
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
    return sum(level.numel() * level.element_size() for level in image.levels)


def image_key(image: Hashable | Image.Image) -> Hashable:
    """What tells an image from others: its place in the files, or for a loaded one that it is this very one."""
    return _Loaded(image) if isinstance(image, Image.Image) else image


class _Loaded:
    """A loaded image as a key: equal to itself alone, and held, so that its id becomes no other's."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Loaded) and other.image is self.image

    def __hash__(self) -> int:
        return id(self.image)


@dataclass(frozen=True)
class EncodedText:
    """Token features of one or more prompts. A long list of names has several rows, its chunks.

    ``owners[row]`` is the prompt that a row belongs to, ``label_offsets[row]`` the label of its first phrase there.
    ``tuned`` text is a task's own, with what was learned for it: its thresholds hold by default.
    """

    prompts: tuple[Prompt, ...]
    owners: tuple[int, ...]
    label_offsets: tuple[int, ...]
    batch: TextBatch
    features: TextFeatures
    tuned: bool = False

    def of_prompts(self, chosen: Sequence[int]) -> "EncodedText":
        """The rows of some prompts, which become prompts 0, 1, ..."""
        rows = [(new, row) for new, old in enumerate(chosen) for row, owner in enumerate(self.owners) if owner == old]
        index = [row for _, row in rows]
        features = TextFeatures(self.features.hidden[index], self.features.attention_mask[index])
        return EncodedText(
            tuple(self.prompts[old] for old in chosen),
            tuple(new for new, _ in rows),
            tuple(self.label_offsets[row] for row in index),
            _pick(self.batch, index, self.batch.input_ids.shape[1]),
            features,
            self.tuned,
        )

    def rows(self, chosen: Sequence[int]) -> tuple[TextBatch, TextFeatures]:
        """Some rows, cut to the longest of them."""
        width = int(self.batch.attention_mask[list(chosen)].sum(1).max())
        batch = _pick(self.batch, chosen, width)
        return batch, TextFeatures(self.features.hidden[list(chosen)][:, :width], batch.attention_mask)


def _pick(batch: TextBatch, rows: Sequence[int], width: int) -> TextBatch:
    index = list(rows)
    return TextBatch(
        batch.input_ids[index][:, :width],
        batch.attention_mask[index][:, :width],
        tuple(batch.phrase_tokens[row][:, :width] for row in index),
        tuple(batch.prompts[row] for row in index),
    )
