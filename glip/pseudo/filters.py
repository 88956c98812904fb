"""Which pairs of image and caption are worth labelling: cheap checks before any network runs.

Cheapest first: the caption, then the file's size and header, then the pixels, last whether the image occurred before.
A check raises ``InvalidRecord`` with the reason, which a ``SkipCounter`` counts. A caption is kept as it is or skipped,
never changed, so that spans stay valid.
"""

import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import imagehash
from PIL import Image

from glip.config import LabelConfig
from glip.data.image import load_image, stated_size
from glip.data.sets import InvalidRecord, require
from glip.errors import ImageError
from glip.structures import TarMember
from glip.text.phrases import MARKUP
from glip.text.prompt import LETTER

_WORD = re.compile(rf"{LETTER}+(?:['’-]{LETTER}+)*|\w")  # the second: each letter of scripts without spaces
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_REMEMBERED = 1 << 17  # image hashes of a shard; older ones are forgotten


def check_caption(text: str, config: LabelConfig, count_tokens: Callable[[str], int], max_tokens: int) -> None:
    """Check a caption by itself; the teacher reads ``max_tokens``, which are counted last."""
    require(text.strip(), "empty caption")
    require(config.keep_control_characters or not _CONTROL.search(text), "caption with control characters")
    require(config.keep_html or not MARKUP.search(text), "caption with HTML")
    require(config.keep_without_letters or any(map(str.isalpha, text)), "caption without letters")
    require(not config.latin_only or all(map(_is_latin, text)), "caption with letters that are not Latin")
    words = len(_WORD.findall(text))
    require(words >= config.min_words, "caption with too few words")
    require(not config.max_words or words <= config.max_words, "caption with too many words")
    limit = min(config.max_tokens or max_tokens, max_tokens)
    require(config.max_tokens < 0 or count_tokens(text) <= limit, "caption with too many tokens")


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return not letter.isalpha() or "LATIN" in unicodedata.name(letter, "") or letter in "ªº"


def check_size(size: tuple[int, int], file_bytes: int, config: LabelConfig) -> None:
    """Check an image by its sides in pixels (in either order) and its file size."""
    short, long = sorted(size)
    require(file_bytes >= config.min_bytes, "image file too small")
    require(not config.max_bytes or file_bytes <= config.max_bytes, "image file too large")
    require(short >= max(config.min_side, 1), "image with too few pixels")
    require(not config.max_aspect or long <= config.max_aspect * short, "image too long and narrow")
    require(not config.max_pixels or short * long <= config.max_pixels, "image with too many pixels")


def open_checked(image: Path | TarMember | Image.Image, config: LabelConfig) -> tuple[Image.Image, int]:
    """Check an image's size and header, and give it decoded with its hash; threads may call this in any order."""
    assert not isinstance(image, Image.Image), "captioned datasets are files"
    try:
        size = stated_size(image)
        check_size(size, image.length if isinstance(image, TarMember) else image.stat().st_size, config)
        decoded = load_image(image)
    except ImageError as error:
        raise InvalidRecord("image that cannot be read") from error
    return decoded, image_hash(decoded) if config.same_image >= 0 else 0


def image_hash(image: Image.Image) -> int:
    """The perceptual hash of an image (pHash, 64 bits); other sizes and encodings of it differ in a few bits only."""
    return int(str(imagehash.phash(image)), 16)


class Repetitions:
    """Captions and images that occurred before in a shard; those of other shards are irrelevant to the result."""

    def __init__(self, config: LabelConfig) -> None:
        self._config = config
        self._times = Counter[bytes]()
        self._hashes = deque[int](maxlen=_REMEMBERED)

    def check_caption(self, text: str) -> None:
        """Count a caption, whatever its case and spaces, and check that it did not occur too often."""
        normalized = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
        key = blake2b(normalized, digest_size=16).digest()  # smaller than the caption itself
        self._times[key] += 1
        limit = self._config.max_repeats
        require(not limit or self._times[key] <= limit, "caption repeated too often")

    def check_image(self, hash: int) -> None:
        """Check that no image with a hash like this one occurred before, and remember it."""
        bits = self._config.same_image
        require(bits < 0 or all((hash ^ other).bit_count() > bits for other in self._hashes), "near-duplicate image")
        self._hashes.append(hash)
