"""Which pairs of image and caption are worth labelling: cheap checks before any network runs.

Cheapest first: the caption, then the file's size and header, then the pixels, last whether the image occurred before.
A caption is kept as it is or skipped, never changed, so that spans stay valid.
"""

import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import imagehash
from PIL import Image

from glip.config import LabelConfig
from glip.data.image import load_image, stated_size
from glip.data.sets import SkipCounter
from glip.errors import ImageError
from glip.structures import LETTER, TarMember
from glip.text.phrases import MARKUP

_WORD = re.compile(rf"{LETTER}+(?:['’-]{LETTER}+)*|\w")  # the second: each letter of scripts without spaces
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_REMEMBERED = 1 << 17  # image hashes of a shard; older ones are forgotten


def caption_problem(text: str, config: LabelConfig, count_tokens: Callable[[str], int], max_tokens: int) -> str:
    """Why a caption is skipped, "" if it is kept; the teacher reads ``max_tokens``, which are counted last."""
    if not text.strip():
        return "empty caption"
    if not config.keep_control_characters and _CONTROL.search(text):
        return "caption with control characters"
    if not config.keep_html and MARKUP.search(text):
        return "caption with HTML"
    if not config.keep_without_letters and not any(map(str.isalpha, text)):
        return "caption without letters"
    if config.latin_only and not all(letter.isascii() or _is_latin(letter) for letter in text):
        return "caption with letters that are not Latin"
    words = len(_WORD.findall(text))
    if words < config.min_words:
        return "caption with too few words"
    if config.max_words and words > config.max_words:
        return "caption with too many words"
    if config.max_tokens >= 0 and count_tokens(text) > min(config.max_tokens or max_tokens, max_tokens):
        return "caption with too many tokens"
    return ""


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return not letter.isalpha() or "LATIN" in unicodedata.name(letter, "") or letter in "ªº"


def image_problem(size: tuple[int, int], file_bytes: int, config: LabelConfig) -> str:
    """Why an image is skipped, judged by its sides in pixels (in either order) and its file size; "" if it is kept."""
    short, long = sorted(size)
    if file_bytes < config.min_bytes:
        return "image file too small"
    if config.max_bytes and file_bytes > config.max_bytes:
        return "image file too large"
    if short < max(config.min_side, 1):
        return "image with too few pixels"
    if config.max_aspect and long > config.max_aspect * short:
        return "image too long and narrow"
    if config.max_pixels and short * long > config.max_pixels:
        return "image with too many pixels"
    return ""


@dataclass(frozen=True)
class Inspected:
    """A decoded image (upright RGB) and its hash, or the reason why it is skipped with a detail for the report."""

    image: Image.Image | None = None
    hash: int = 0
    reason: str = ""
    detail: str = ""


def inspect_image(image: Path | TarMember | Image.Image, config: LabelConfig) -> Inspected:
    """Check an image's size and header, and decode it if both are in order; threads may call this in any order."""
    assert not isinstance(image, Image.Image), "captioned datasets are files"
    try:
        size = stated_size(image)
        file_bytes = image.length if isinstance(image, TarMember) else image.stat().st_size
        if reason := image_problem(size, file_bytes, config):
            return Inspected(reason=reason, detail=f"{image}: {size[0]} x {size[1]} pixels, {file_bytes} bytes")
        decoded = load_image(image)
    except ImageError as error:
        return Inspected(reason="image that cannot be read", detail=str(error))
    return Inspected(decoded, image_hash(decoded) if config.same_image >= 0 else 0)


def image_hash(image: Image.Image) -> int:
    """The perceptual hash of an image (pHash, 64 bits); other sizes and encodings of it differ in a few bits only."""
    return int(str(imagehash.phash(image)), 16)


class ShardFilter:
    """The rules for one shard, applied in its order; ``skipped`` counts the pairs that each rule skips.

    Repetitions are counted within the shard, so that the result does not depend on other shards.
    """

    def __init__(self, config: LabelConfig, count_tokens: Callable[[str], int], max_tokens: int) -> None:
        self.skipped = SkipCounter()
        self._config, self._count_tokens, self._max_tokens = config, count_tokens, max_tokens
        self._times = Counter[bytes]()
        self._hashes = deque[int](maxlen=_REMEMBERED)

    def keep_caption(self, text: str, place: str) -> bool:
        """Whether a caption is kept; ``place`` (such as the image's file) is listed if not."""
        problem = caption_problem(text, self._config, self._count_tokens, self._max_tokens)
        return self._keep(problem or self._repeated(text), place)

    def keep_image(self, inspected: Inspected, place: str, pairs: int = 1) -> bool:
        """Whether an image is kept; call it once per image. All its pairs are skipped with it."""
        reason = inspected.reason
        if not reason and self._config.same_image >= 0 and self._is_duplicate(inspected.hash):
            reason = "near-duplicate image"
        return self._keep(reason, inspected.detail or place, pairs)

    def _repeated(self, text: str) -> str:
        if not self._config.max_repeats:
            return ""
        normalized = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
        key = blake2b(normalized, digest_size=16).digest()  # smaller than the caption itself
        self._times[key] += 1
        return "caption repeated too often" if self._times[key] > self._config.max_repeats else ""

    def _is_duplicate(self, hash: int) -> bool:
        """Whether an image was there before; if not, its hash is remembered."""
        if any((hash ^ other).bit_count() <= self._config.same_image for other in self._hashes):
            return True
        self._hashes.append(hash)
        return False

    def _keep(self, reason: str, place: str, pairs: int = 1) -> bool:
        if reason:
            self.skipped.add(reason, place, pairs)
        return not reason
