"""Each rule on and off, counted by its reason; the same image found again in other clothes, others not."""

import io
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from glip.pseudo.filters import (
    Inspected,
    PairRules,
    SeenImages,
    ShardFilter,
    filter_caption,
    filter_image,
    image_hash,
    inspect_image,
)
from glip.structures import TarMember
from glip.text.tokens import Tokenizer

RULES = PairRules().for_model(256)
NONE = PairRules(
    min_side=0,
    max_aspect=0,
    max_pixels=0,
    min_bytes=0,
    max_bytes=0,
    min_words=0,
    max_words=0,
    max_tokens=-1,
    min_phrases=1,
    repeated_captions=0,
    same_image=-1,
    no_html=False,
    no_control=False,
    need_letters=False,
).for_model(256)
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def words(text: str) -> int:
    return len(text.split()) + 2


def drawn(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Overlapping shapes on a shaded ground."""
    random = np.random.default_rng(seed)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = (int(v) for v in random.uniform((0, 0, 30, 30), (*size, 150, 150)))
        pen.ellipse((x - w // 2, y - h // 2, x + w // 2, y + h // 2), tuple(int(v) for v in random.integers(0, 255, 3)))
    return image


def again(image: Image.Image, quality: int, scale: float = 1) -> Image.Image:
    file = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(file, "JPEG", quality=quality)
    return Image.open(file)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def huge(path: Path, width: int, height: int) -> Path:
    """A PNG that is nothing but a header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\x00\x00\x00"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(5000)))
    return path


# ---- captions


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a man rides a horse", ""),
        ("I <3 my dog & cat, 3 < 5 > 2", ""),
        ("<PERSON> at the beach", ""),
        ("ein Mann mit Hund", ""),
        ("一个男人骑着马", ""),
        ("мужчина на лошади \U0001f40e", ""),
        ("a dog\nand a cat", ""),
        (" \t\n", "empty caption"),
        ("", "empty caption"),
        ("a dog <b>runs</b>", "caption with HTML"),
        ("a dog<br/>runs", "caption with HTML"),
        ('<a href="x.html">a dog</a>', "caption with HTML"),
        ("dogs &amp; cats", "caption with HTML"),
        ("a dog&#8217;s bowl", "caption with HTML"),
        ("\U0001f600 \U0001f40e\U0001f3fd", "caption without a letter"),
        ("12 / 34 !!", "caption without a letter"),
        ("a dog\x00 runs", "caption with control characters"),
        ("a dog \ud83d runs", "caption with control characters"),
        ("dog", "caption of too few words"),
        ("snow-covered", "caption of too few words"),
        ("狗", "caption of too few words"),
        ("a dog " * 33, "caption of too many words"),
    ],
)
def test_captions(text, reason):
    assert filter_caption(text, RULES, words) == reason
    assert filter_caption(text, NONE, words) == ("empty caption" if reason == "empty caption" else "")


def test_other_scripts_only_go_when_asked():
    latin = replace(RULES, latin_only=True)
    assert filter_caption("un café à l'été, 3 €", latin, words) == ""
    for text in ("собака и кошка", "a dog 狗", "مرحبا بالعالم"):
        assert filter_caption(text, RULES, words) == ""
        assert filter_caption(text, latin, words) == "caption that is not in Latin letters"


def test_tokens_are_the_models(tokenizer: Tokenizer):
    def count(text: str) -> int:
        return len(tokenizer(text).ids)

    rules = PairRules(max_words=0)
    long = "a dog " * 5000  # 10,000 words
    assert filter_caption(long, rules.for_model(256), count) == "caption of too many tokens"
    assert filter_caption("a dog " * 127, rules.for_model(256), count) == ""
    assert filter_caption("a dog " * 128, rules.for_model(256), count) == "caption of too many tokens"
    assert filter_caption(long, RULES, lambda _: pytest.fail("words are counted first")) == "caption of too many words"


def test_the_models_limit_holds_above_a_greater_one():
    assert PairRules(max_tokens=40).for_model(256).max_tokens == 40
    assert PairRules(max_tokens=400).for_model(256).max_tokens == 256
    assert PairRules(max_tokens=-1).for_model(256).max_tokens == -1


# ---- images


@pytest.mark.parametrize(
    ("size", "count", "reason"),
    [
        ((640, 480), 50_000, ""),
        ((64, 256), 2_000, ""),
        ((64, 64), 1_999, "image file of too few bytes"),
        ((640, 480), 50_000_001, "image file of too many bytes"),
        ((63, 100), 9_000, "image too small"),
        ((100, 63), 9_000, "image too small"),
        ((64, 257), 9_000, "image too long and narrow"),
        ((257, 64), 9_000, "image too long and narrow"),
        ((8_000, 8_001), 9_000_000, "image of too many pixels"),
    ],
)
def test_headers(size, count, reason):
    assert filter_image(size, count, RULES) == reason
    assert filter_image(size, count, NONE) == ""


def test_a_good_image_is_decoded(tmp_path):
    file = saved(drawn(1), tmp_path / "a.jpg")
    found = inspect_image(file, RULES)
    assert found.image is not None and found.image.size == (320, 240) and found.image.mode == "RGB"
    assert found.hash == image_hash(found.image) and not found.reason
    assert inspect_image(file, NONE).hash == 0, "not computed when nobody asks"


def test_a_image_of_an_archive(tmp_path):
    content = saved(drawn(1), tmp_path / "a.jpg").read_bytes()
    (tmp_path / "0.tar").write_bytes(bytes(512) + content)
    archived = TarMember(tmp_path / "0.tar", "a.jpg", 512, len(content))
    assert inspect_image(archived, RULES).image is not None
    small = inspect_image(archived, replace(RULES, min_bytes=len(content) + 1))
    assert small.reason == "image file of too few bytes" and "0.tar:a.jpg: 320 x 240" in small.detail
    cut = inspect_image(replace(archived, length=len(content) + 1), RULES)
    assert cut.reason == "image that cannot be read" and "the archive ends" in cut.detail


def test_sizes_are_of_the_upright_image_but_the_rules_hold_either_way(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = saved(drawn(1, (90, 300)), tmp_path / "a.jpg", exif=exif)
    assert inspect_image(file, RULES).image.size == (300, 90)
    assert inspect_image(file, replace(RULES, max_aspect=3)).reason == "image too long and narrow"


def test_huge_images_are_refused_by_their_header(tmp_path):
    """Decoding them would take gigabytes, and here would fail with another reason."""
    bomb = inspect_image(huge(tmp_path / "bomb.png", 30_000, 30_000), RULES)
    assert bomb.reason == "image that cannot be read" and "too large" in bomb.detail
    large = inspect_image(huge(tmp_path / "large.png", 10_000, 10_000), RULES)
    assert large.reason == "image of too many pixels" and "10000 x 10000" in large.detail
    broken = inspect_image(huge(tmp_path / "cut.png", 100, 100), RULES)
    assert broken.reason == "image that cannot be read"


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("no image" * 1000)
    (tmp_path / "b.jpg").write_bytes(b"")
    for name in ("a.jpg", "b.jpg", "missing.jpg", "."):
        found = inspect_image(tmp_path / name, NONE)
        assert found.reason == "image that cannot be read" and str(tmp_path) in found.detail and found.image is None


# ---- the same image


def test_other_encodings_and_sizes_hash_alike():
    for seed in range(8):
        image = drawn(seed)
        codes = {image_hash(again(image, quality, scale)) for quality in (30, 90) for scale in (0.5, 1, 1.7)}
        assert max((code ^ image_hash(image)).bit_count() for code in codes) <= RULES.same_image
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert (image_hash(turned) ^ image_hash(image)).bit_count() > RULES.same_image


def test_different_images_hash_differently():
    codes = [image_hash(drawn(seed)) for seed in range(20)]
    apart = [(one ^ other).bit_count() for index, one in enumerate(codes) for other in codes[:index]]
    assert min(apart) > RULES.same_image


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_photographs():
    files = sorted((SHARED / "coco_mini" / "images").glob("*.jpg"))[:12]
    seen = SeenImages(RULES.same_image)
    images = [Image.open(file) for file in files]
    assert len(images) == 12 and not any(seen.seen(image_hash(image)) for image in images)
    assert all(seen.seen(image_hash(again(image.convert("RGB"), 40, 0.6))) for image in images)


def test_brightness_and_plain_images():
    assert image_hash(Image.new("RGB", (99, 70), "red")) == image_hash(Image.new("L", (64, 64), 77)) == 0
    brighter = drawn(3).point(lambda value: value // 2 + 60)
    assert (image_hash(brighter) ^ image_hash(drawn(3))).bit_count() <= RULES.same_image


def test_distance_and_memory():
    seen = SeenImages(2, remembered=3)
    assert not seen.seen(0) and seen.seen(0b11) and not seen.seen(0b111), "a repetition is not remembered itself"
    assert seen.seen(0b1111) and not seen.seen(0xFF00) and seen.seen(1)
    assert not seen.seen(0xFFFF0000), "the fourth takes the place of the first"
    assert not seen.seen(1 << 63) and seen.seen(0xFF00) and seen.seen(1 << 63)
    exact = SeenImages(0)
    assert not exact.seen(4) and exact.seen(4) and not exact.seen(5)


def test_many_images():
    """Against each other: none is taken for another, every repetition is found."""
    codes = np.random.default_rng(0).integers(0, 1 << 64, 3_000, dtype=np.uint64).tolist()
    seen = SeenImages(4)
    assert sum(seen.seen(code) for code in codes) == 0
    assert all(seen.seen(code ^ 0b1111) for code in codes[::100])


# ---- a shard


def test_a_shard_is_counted_by_reason():
    shard = ShardFilter(replace(RULES, repeated_captions=2), words)
    texts = ["A dog runs.", "a dog  runs.", "a DOG runs.", "dog", "a <i>dog</i>", "A dog runs."]
    assert [shard.caption(text, f"record {n}") for n, text in enumerate(texts)] == [True, True, *[False] * 4]
    assert shard.phrases(1, "record 0") and not shard.phrases(0, "record 1")
    first, copy, other = (Inspected(drawn(1), code) for code in (0, 0b1011, 0xFFFF))
    assert [shard.image(item, f"image {n}") for n, item in enumerate((first, copy, other, first))] == [
        *(True, False),
        *(True, False),
    ]
    assert not shard.image(Inspected(reason="image too small", detail="x.jpg: 5 x 5"), "image 9")
    assert shard.tally.counts == {
        "caption repeated too often": 2,
        "caption of too few words": 1,
        "caption with HTML": 1,
        "caption without a noun phrase": 1,
        "image that looks like one before": 2,
        "image too small": 1,
    }
    assert shard.tally.places["caption repeated too often"] == ["record 2", "record 5"]
    assert shard.tally.places["image too small"] == ["x.jpg: 5 x 5"]


def test_a_shard_without_rules_keeps_all():
    shard = ShardFilter(NONE, words)
    assert all(shard.caption("<b>", "") for _ in range(30)) and shard.phrases(1, "")
    assert all(shard.image(Inspected(drawn(1), 0), "") for _ in range(3)) and not shard.tally


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("min_side", -1, r"min_side: got -1: give a number from 0 on \(0 turns the rule off\)"),
        ("max_tokens", -2, r"max_tokens: got -2: give a number from -1 on \(-1 turns"),
        ("max_aspect", float("nan"), "max_aspect: got nan"),
        ("max_aspect", 0.5, "max_aspect: got 0.5: it is the long side over the short one"),
        ("max_words", 1, "min_words 2 is over max_words 1: nothing would be kept"),
        ("min_bytes", 10**9, "min_bytes 1000000000 is over max_bytes"),
        ("same_image", 17, "same_image: got 17: different ones are so near"),
        ("same_image", -2, r"same_image: got -2: give a number from -1 on \(-1 turns"),
    ],
)
def test_senseless_rules(name, value, message):
    with pytest.raises(ValueError, match=message):
        PairRules(**{name: value})
