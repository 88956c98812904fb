"""Each rule on and off, counted by its reason; near-duplicates of an image are found, other images are not."""

import io
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from glip.config import LabelConfig
from glip.data.sets import InvalidRecord, SkipCounter
from glip.pseudo.filters import Repetitions, check_caption, check_size, image_hash, open_checked
from glip.structures import TarMember
from glip.text.tokens import Tokenizer

RULES = LabelConfig()
NUMBERS = ("min_side", "max_aspect", "max_pixels", "min_bytes", "max_bytes", "min_words", "max_words", "max_repeats")
OFF = LabelConfig(
    **dict.fromkeys(NUMBERS, 0),
    max_tokens=-1,
    same_image=-1,
    keep_html=True,
    keep_control_characters=True,
    keep_without_letters=True,
)


def words(text: str) -> int:
    return len(text.split()) + 2


def reason(check: Callable[..., object], *arguments: object) -> str:
    """Why a check skips a record; "" if it does not."""
    try:
        check(*arguments)
    except InvalidRecord as found:
        return str(found)
    return ""


def problem(text: str, **options: object) -> str:
    return reason(check_caption, text, replace(RULES, **options), words, 256)


def drawn(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Overlapping shapes on a shaded background."""
    random = np.random.default_rng(seed)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = (int(v) for v in random.uniform((0, 0, 30, 30), (*size, 150, 150)))
        pen.ellipse((x - w // 2, y - h // 2, x + w // 2, y + h // 2), tuple(int(v) for v in random.integers(0, 255, 3)))
    return image


def huge(path: Path, width: int, height: int) -> Path:
    """A PNG that is only a header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\x00\x00\x00"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(5000)))
    return path


# ---- captions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a man rides a horse", ""),
        ("I <3 my dog & cat, 3 < 5 > 2", ""),
        ("<PERSON> at the beach", ""),
        ("一个男人骑着马", ""),
        ("мужчина на лошади \U0001f40e", ""),
        ("a dog\nand a cat", ""),
        (" \t\n", "empty caption"),
        ("a dog <b>runs</b>", "caption with HTML"),
        ('<a href="x.html">a dog</a>', "caption with HTML"),
        ("a dog&#8217;s bowl", "caption with HTML"),
        ("\U0001f600 \U0001f40e\U0001f3fd", "caption without letters"),
        ("a dog\x00 runs", "caption with control characters"),
        ("a dog \ud83d runs", "caption with control characters"),
        ("dog", "caption with too few words"),
        ("狗", "caption with too few words"),
        ("a dog " * 33, "caption with too many words"),
    ],
)
def test_captions(text, expected):
    assert problem(text) == expected
    assert reason(check_caption, text, OFF, words, 256) == ("empty caption" if expected == "empty caption" else "")


def test_other_scripts_are_skipped_on_request():
    for text in ("собака и кошка", "a dog 狗", "مرحبا بالعالم"):
        assert problem(text) == "" and problem(text, latin_only=True) == "caption with letters that are not Latin"
    assert problem("un café à l'été, 3 €", latin_only=True) == ""


@pytest.mark.parametrize(
    ("limit", "count", "kept"), [(0, 254, True), (0, 255, False), (40, 39, False), (400, 255, False)]
)
def test_tokens(tokenizer: Tokenizer, limit, count, kept):
    """The teacher's limit holds, also below a larger one that was given."""
    rules = replace(RULES, max_words=0, max_tokens=limit)
    found = reason(check_caption, "dog " * count, rules, lambda text: len(tokenizer(text).ids), 256)
    assert found == ("" if kept else "caption with too many tokens")
    long = reason(check_caption, "dog " * 9000, RULES, lambda _: pytest.fail("words are counted first"), 256)
    assert long == "caption with too many words"


# ---- images


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        ((64, 256), 2_000, ""),
        ((64, 64), 1_999, "image file too small"),
        ((640, 480), 50_000_001, "image file too large"),
        ((100, 63), 9_000, "image with too few pixels"),
        ((64, 257), 9_000, "image too long and narrow"),
        ((257, 64), 9_000, "image too long and narrow"),
        ((8_000, 8_001), 9_000_000, "image with too many pixels"),
    ],
)
def test_headers(size, count, expected):
    assert reason(check_size, size, count, RULES) == expected and reason(check_size, size, count, OFF) == ""


def test_an_image_is_decoded_upright_also_in_a_tar(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn(1, (90, 300)).save(tmp_path / "a.jpg", exif=exif)
    image, code = open_checked(tmp_path / "a.jpg", RULES)
    assert image.size == (300, 90) and image.mode == "RGB"
    assert code == image_hash(image) and open_checked(tmp_path / "a.jpg", OFF)[1] == 0
    assert reason(open_checked, tmp_path / "a.jpg", replace(RULES, max_aspect=3)) == "image too long and narrow"
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "0.tar").write_bytes(bytes(512) + content)
    member = TarMember(tmp_path / "0.tar", "a.jpg", 512, len(content))
    assert open_checked(member, RULES)[0].size == (300, 90)
    assert reason(open_checked, member, replace(RULES, min_bytes=len(content) + 1)) == "image file too small"
    assert reason(open_checked, replace(member, start=0), RULES) == "image that cannot be read"


def test_what_is_no_image(tmp_path):
    """Huge images are refused by their header: decoding them would take gigabytes."""
    (tmp_path / "text.jpg").write_text("no image" * 1000)
    (tmp_path / "empty.jpg").write_bytes(b"")
    huge(tmp_path / "cut.png", 100, 100)
    for name in ("text.jpg", "empty.jpg", "missing.jpg", ".", "cut.png"):
        assert reason(open_checked, tmp_path / name, OFF) == "image that cannot be read"
    assert reason(open_checked, huge(tmp_path / "bomb.png", 30_000, 30_000), RULES) == "image that cannot be read"
    assert reason(open_checked, huge(tmp_path / "large.png", 10_000, 10_000), RULES) == "image with too many pixels"


# ---- near-duplicates


def test_hashes_tell_images_apart_but_not_their_encodings():
    codes = [image_hash(drawn(seed)) for seed in range(20)]
    apart = [(one ^ other).bit_count() for index, one in enumerate(codes) for other in codes[:index]]
    assert min(apart) > RULES.same_image
    for seed, code in enumerate(codes[:8]):
        file = io.BytesIO()
        drawn(seed).resize((160, 120)).save(file, "JPEG", quality=30)
        assert (image_hash(Image.open(file)) ^ code).bit_count() <= RULES.same_image


def test_distance_of_hashes():
    """Among 3,000 random images none is taken for another; every repetition is found, up to 4 bits away."""
    codes = np.random.default_rng(0).integers(0, 1 << 64, 3_000, dtype=np.uint64).tolist()
    seen = Repetitions(RULES)
    assert not any(reason(seen.check_image, code) for code in codes)
    assert all(reason(seen.check_image, code ^ 0b1111) for code in codes[::100])
    assert not any(reason(seen.check_image, code ^ 0b11111) for code in codes[1::100])


def test_repeated_captions_are_counted_whatever_their_case_and_spaces():
    seen, skipped = Repetitions(replace(RULES, max_repeats=2)), SkipCounter()
    for number, text in enumerate(["A dog runs.", "a dog  runs.", "a DOG runs.", "dog", "A dog runs."]):
        with skipped.catch(f"record {number}"):
            seen.check_caption(text)
    assert skipped.counts == {"caption repeated too often": 2}
    assert skipped.places["caption repeated too often"] == ["record 2", "record 4"]
