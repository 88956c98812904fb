"""Which pairs of image and caption are worth a teacher's time: cheap rules, asked before any network runs.

Cheapest first: the caption, then the file's bytes and header, then its pixels, last whether it was seen before.
``ShardFilter`` asks the rules for one shard and counts what each took out. Nothing is changed: a caption is taken as it
is stored, so that spans keep their meaning, or not at all.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from glip.data.image import load_image, stated_size
from glip.data.sets import SkipCounter
from glip.errors import DataError, ImageError
from glip.structures import LETTER, TarMember
from glip.text.phrases import MARKUP

_WORD = re.compile(rf"{LETTER}+(?:['’-]{LETTER}+)*|\w")  # the second: each letter of scripts without spaces
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SIDE = 32  # an image is hashed at 32 x 32
_WAVES = np.cos(np.pi / _SIDE * (np.arange(_SIDE) + 0.5)[None, :] * np.arange(8)[:, None])  # lowest 8 of the DCT-II
_ONES = np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)
_REMEMBERED = 1 << 17  # images, 8 bytes each


@dataclass(frozen=True, kw_only=True)
class PairRules:
    """Which pairs are kept; 0 turns a rule off where nothing else is said.

    Args:
        min_side: least short side, pixels.
        max_aspect: greatest long side over short side.
        max_pixels: most pixels, told from the header; Pillow itself refuses over 179 million.
        min_bytes: least size of the file; below it are icons and place holders.
        max_bytes: greatest size of the file.
        min_words: least words of a caption; in scripts without spaces each letter counts as one.
        max_words: most words of a caption.
        max_tokens: most tokens of a caption, [CLS] and [SEP] included; 0: as many as the model reads; -1: off.
        min_phrases: least noun phrases of a caption, from 1 on: without one there is nothing to ask.
        repeated_captions: how often a caption may occur in a shard; the first ones stay.
        same_image: the most bits of 64 in which the hash may differ from one before; -1: off. 4 found, for 700
            photographs of six sets, all 2,100 re-encodings (JPEG quality 30; half the size; 256 pixels at quality 60);
            the nearest two different ones were 12 apart.
        no_html: drop captions with tags or entities of HTML; False: off.
        no_control: drop captions with control characters or halves of characters; False: off.
        need_letters: drop captions without any letter, such as emoji only; False: off.
        latin_only: drop captions with letters of other scripts; False: off.

    Raises:
        ValueError: a value that makes no sense.
    """

    min_side: int = 64
    max_aspect: float = 4.0
    max_pixels: int = 64_000_000
    min_bytes: int = 2_000
    max_bytes: int = 50_000_000
    min_words: int = 2
    max_words: int = 64
    max_tokens: int = 0
    min_phrases: int = 1
    repeated_captions: int = 10
    same_image: int = 4
    no_html: bool = True
    no_control: bool = True
    need_letters: bool = True
    latin_only: bool = False

    def __post_init__(self) -> None:
        least = {"max_tokens": -1, "same_image": -1, "min_phrases": 1}
        for name, value in self.__dict__.items():
            off = least.get(name, 0)
            if type(value) is not bool and not off <= value < float("inf"):
                raise DataError(f"{name}: got {value}: give a number from {off} on ({off} turns the rule off)")
        for what in ("bytes", "words"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if high and low > high:
                raise DataError(f"min_{what} {low} is over max_{what} {high}: nothing would be kept, so change one")
        if 0 < self.max_aspect < 1:
            raise DataError(f"max_aspect: got {self.max_aspect}: it is the long side over the short one, so from 1 on")
        if self.same_image > 16:
            raise DataError(f"same_image: got {self.same_image}: different ones are so near; give -1 to 16, such as 4")

    def for_model(self, limit: int) -> "PairRules":
        """The rules with the tokens that a model reads as the limit where none, or a greater one, is given."""
        return replace(self, max_tokens=min(self.max_tokens or limit, limit))


def filter_caption(text: str, rules: PairRules, count_tokens: Callable[[str], int]) -> str:
    """Why a caption is not worth asking a teacher; "" where it is.

    Args:
        text: the caption as it is stored.
        rules: with the model's limit in them (``for_model``).
        count_tokens: the tokens of a caption, special ones included; asked last, and only if needed.
    """
    if not text.strip():
        return "empty caption"
    if rules.no_control and _CONTROL.search(text):
        return "caption with control characters"
    if rules.no_html and MARKUP.search(text):
        return "caption with HTML"
    if rules.need_letters and not any(map(str.isalpha, text)):
        return "caption without a letter"
    if rules.latin_only and not all(letter.isascii() or _is_latin(letter) for letter in text):
        return "caption that is not in Latin letters"
    words = len(_WORD.findall(text)) if rules.min_words or rules.max_words else 0
    if words < rules.min_words:
        return "caption of too few words"
    if rules.max_words and words > rules.max_words:
        return "caption of too many words"
    if rules.max_tokens > 0 and count_tokens(text) > rules.max_tokens:
        return "caption of too many tokens"
    return ""


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return not letter.isalpha() or "LATIN" in unicodedata.name(letter, "") or letter in "ªº"


def filter_image(size: tuple[int, int], count: int, rules: PairRules) -> str:
    """Why an image is not worth asking a teacher, told from what costs nothing; "" where it is.

    Args:
        size: its sides as the header states them, in either order (``stated_size``, or ``Image.size`` before decoding).
        count: the bytes of its file.
        rules: what is asked.
    """
    short, long = sorted(size)
    if count < rules.min_bytes:
        return "image file of too few bytes"
    if rules.max_bytes and count > rules.max_bytes:
        return "image file of too many bytes"
    if short < max(rules.min_side, 1):
        return "image too small"
    if rules.max_aspect and long > rules.max_aspect * short:
        return "image too long and narrow"
    if rules.max_pixels and short * long > rules.max_pixels:
        return "image of too many pixels"
    return ""


@dataclass(frozen=True)
class Inspected:
    """An image that was looked at: upright RGB and its hash; or the reason why not, and a detail to be listed."""

    image: Image.Image | None = None
    hash: int = 0
    reason: str = ""
    detail: str = ""


def inspect_image(image: Path | TarMember, rules: PairRules) -> Inspected:
    """Look at an image's bytes and header, and decode it if both are in order. Needs no order: threads may do it."""
    try:
        size = stated_size(image)
        count = image.length if isinstance(image, TarMember) else image.stat().st_size
        if reason := filter_image(size, count, rules):
            return Inspected(reason=reason, detail=f"{image}: {size[0]} x {size[1]} pixels, {count} bytes")
        decoded = load_image(image)
    except ImageError as error:
        return Inspected(reason="image that cannot be read", detail=str(error))
    return Inspected(decoded, image_hash(decoded) if rules.same_image >= 0 else 0)


def image_hash(image: Image.Image) -> int:
    """64 bits of what an image looks like: the signs of its lowest waves about their median (Zauner 2010, pHash).

    The same for other sizes and encodings of an image, but for a few bits; crops and mirrored images differ.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    waves = (_WAVES @ grey @ _WAVES.T).round(6).ravel()  # rounded, so that of a plain image all are zero
    bits = waves > np.median(waves[1:])
    bits[0] = False  # the mean: how bright it is says nothing
    return int.from_bytes(np.packbits(bits).tobytes())


class SeenImages:
    """The hashes of the images so far; the oldest are forgotten when there are more than ``remembered``."""

    def __init__(self, distance: int, remembered: int = _REMEMBERED) -> None:
        self._distance, self._hashes, self._count = distance, np.zeros(remembered, dtype=np.uint64), 0

    def seen(self, hash: int) -> bool:
        """Whether an image that looks the same was asked for before; if not, this one is remembered."""
        known = self._hashes[: min(self._count, len(self._hashes))]
        counts = _ONES.take((known ^ np.uint64(hash)).view(np.uint16)).view(np.uint32)  # four bytes, 16 bits of it each
        apart = (counts * np.uint32(0x01010101)) >> 24  # their sum; numpy 2 could say bitwise_count
        if (apart <= self._distance).any():
            return True
        self._hashes[self._count % len(self._hashes)] = hash
        self._count += 1
        return False


class ShardFilter:
    """The rules over one shard, in its order: what repeats is told within the shard, so that no other one matters.

    ``tally`` has how many pairs each rule took out.
    """

    def __init__(self, rules: PairRules, count_tokens: Callable[[str], int]) -> None:
        self.tally = SkipCounter()
        self._rules, self._count_tokens = rules, count_tokens
        self._times: dict[bytes, int] = {}
        self._images = SeenImages(rules.same_image)

    def caption(self, text: str, place: str) -> bool:
        """Whether a caption is kept; the place (such as "record 17 of 00003.tar") is listed if not."""
        return self._kept(filter_caption(text, self._rules, self._count_tokens) or self._repeated(text), place)

    def phrases(self, number: int, place: str) -> bool:
        """Whether a caption with so many noun phrases is kept."""
        return self._kept("caption without a noun phrase" if number < self._rules.min_phrases else "", place)

    def image(self, inspected: Inspected, place: str, pairs: int = 1) -> bool:
        """Whether an image is kept; to be asked once for each image, which takes all its pairs with it."""
        reason = inspected.reason
        if not reason and self._rules.same_image >= 0 and self._images.seen(inspected.hash):
            reason = "image that looks like one before"
        return self._kept(reason, inspected.detail or place, pairs)

    def _repeated(self, text: str) -> str:
        if not self._rules.repeated_captions:
            return ""
        written = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
        key = blake2b(written, digest_size=16).digest()  # captions themselves would be kept in memory
        self._times[key] = self._times.get(key, 0) + 1
        return "caption repeated too often" if self._times[key] > self._rules.repeated_captions else ""

    def _kept(self, reason: str, place: str, pairs: int = 1) -> bool:
        if reason:
            self.tally.add(reason, place, pairs)
        return not reason
