"""Whatever people have becomes upright RGB; what cannot be read is named."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from glip.data.image import image_size, load_image, open_any, stated_size, to_rgb
from glip.errors import ImageError
from glip.structures import TarMember

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def save(tmp_path):
    def saved(image: Image.Image, name: str, **options: object) -> Path:
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return saved


def marked() -> Image.Image:
    """6 x 4, one red pixel in the top left corner."""
    image = Image.new("RGB", (6, 4), (0, 0, 255))
    image.putpixel((0, 0), RED)
    return image


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [
        (1, (6, 4), (0, 0)),
        (2, (6, 4), (5, 0)),
        (3, (6, 4), (5, 3)),
        (4, (6, 4), (0, 3)),
        (5, (4, 6), (0, 0)),
        (6, (4, 6), (3, 0)),
        (7, (4, 6), (3, 5)),
        (8, (4, 6), (0, 5)),
    ],
)
def test_exif_rotation(save, orientation, size, corner):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(save(marked(), "turned.png", exif=exif))
    assert upright.size == size and upright.mode == "RGB"
    assert upright.getpixel(corner) == RED


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 77, (77,) * 3), ("1", 1, WHITE), ("P", 0, (0, 0, 0))])
def test_grey_one_bit_and_palette(save, mode, value, expected):
    assert load_image(save(Image.new(mode, (3, 2), value), "a.png")).getpixel((1, 1)) == expected


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), WHITE),
        ("LA", (40, 255), (40, 40, 40)),
    ],
)
def test_transparency_lies_on_white(save, mode, colour, expected):
    assert load_image(save(Image.new(mode, (3, 2), colour), "a.png")).getpixel((1, 1)) == expected


def test_palette_with_transparency(save):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    opened = load_image(save(image, "a.png", transparency=0))
    assert (opened.getpixel((0, 0)), opened.getpixel((2, 1))) == (WHITE, RED)
    assert load_image(save(image, "a.gif", transparency=0)).getpixel((0, 0)) == WHITE


def test_grey_with_a_transparent_value(save):
    image = Image.new("L", (3, 2), 9)
    image.putpixel((0, 0), 50)
    opened = load_image(save(image, "a.png", transparency=9))
    assert (opened.getpixel((0, 0)), opened.getpixel((2, 1))) == ((50,) * 3, WHITE)


def wide(values: list[list[float]], kind: type) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=kind))


def greys(path: Path) -> list[int]:
    return np.asarray(load_image(path))[0, :, 0].tolist()


def test_sixteen_bit_png(save):
    assert greys(save(wide([[0, 256, 32768, 65535]], np.uint16), "a.png")) == [0, 0, 127, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 127, 255]),
        ([0, 100, 255], [0, 100, 255]),
        ([0, 300, 65535], [0, 1, 255]),
        ([0, 100_000, 200_000], [0, 127, 255]),
        ([float("nan"), 0.5, 1], [0, 127, 255]),
        ([float("inf"), -1, 1], [0, 0, 255]),
    ],
)
def test_float_tiff(save, values, expected):
    assert greys(save(wide([values], np.float32), "a.tiff")) == expected


def test_long_integer_tiff(save):
    assert greys(save(wide([[0, 500, 1000, 100_000]], np.int32), "a.tiff")) == [0, 1, 2, 255]


def test_cmyk_jpeg(save):
    red, green, blue = load_image(save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "a.jpg")).getpixel((8, 8))
    assert red > 240 and green < 20 and blue < 20


def test_rgb_stays_as_it_is(save):
    assert np.array_equal(np.asarray(load_image(save(marked(), "a.png"))), np.asarray(marked()))
    assert load_image(str(save(marked(), "a.bmp"))).size == (6, 4)


def refused(path: str | Path, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    message = str(caught.value)
    assert repr(str(path)) in message and "\n" not in message
    assert all(word in message for word in words), message


def test_missing_and_folder(tmp_path):
    refused(tmp_path / "none.png", "is not there: check the path")
    refused(tmp_path, "is a folder: give a file")


@pytest.mark.parametrize("content", [b"", b"hello, this is a text", b"<svg></svg>", b"\x89PNG\r\n\x1a\n", bytes(200)])
def test_not_a_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tiff", "bmp", "webp"])
def test_truncated(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    whole, path = io.BytesIO(), tmp_path / f"a.{ending}"
    Image.fromarray(noise).save(whole, "JPEG" if ending == "jpg" else ending.upper())
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    refused(path)


def test_broken_png(save):
    path = save(marked(), "a.png")
    content = bytearray(path.read_bytes())
    content[45:55] = b"broken...."
    path.write_bytes(content)
    refused(path, "cannot be read", "get a whole copy of it")


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with nothing behind it."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    data = b"IDAT" + zlib.compress(b"")
    chunks = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_zero_size(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(0, 7))
    refused(path)
    with pytest.raises(ImageError, match="image of 0 x 7 pixels: it needs at least one pixel"):
        to_rgb(Image.new("RGB", (0, 7)))


def test_decompression_bomb(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(50_000, 50_000))
    refused(path, "is too large", "2500000000 pixels", "scale it down")


def test_large_images_do_not_warn(save, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert load_image(save(marked(), "a.png")).size == (6, 4)
    assert not recwarn.list


def test_no_mode_is_refused():
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "I;16"):
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB", mode


def test_arrays_and_tensors_are_the_same_image():
    array = np.asarray(marked())
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for same in (marked(), array, tensor, tensor.float() / 255, (tensor.double() / 255).requires_grad_()):
        assert np.array_equal(np.asarray(open_any(same)), array)
    for grey in (array[..., 0], array[..., :1], tensor[0], tensor[:1].half() / 255):
        assert np.array_equal(np.asarray(open_any(grey)), np.repeat(array[..., :1], 3, 2))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "type float64: give .* of uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (torch.zeros(2, 3, 4, 4), r"shape \(2, 3, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.long), "type int64"),
        (torch.zeros(3, 0, 4), "at least one pixel"),
        (torch.full((3, 4, 4), 200.0), r"floats from 200 to 200: floats must lie in 0\.\.1, or give uint8"),
        (torch.full((3, 4, 4), float("nan")), "floats from nan to nan"),
        (7, "image of type int: give a path"),
        (None, "image of type NoneType"),
    ],
)
def test_other_things_are_explained(image, message):
    with pytest.raises(ValueError, match=message):
        open_any(image)


# ---- in archives, and sizes from headers


@pytest.fixture
def archive(tmp_path):
    """Bytes of two images between others."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    marked().save(png, "PNG")
    Image.new("RGB", (30, 20), RED).save(jpeg, "JPEG")
    content = b"before" + png.getvalue() + jpeg.getvalue() + b"after"
    (tmp_path / "0.tar").write_bytes(content)
    lengths = len(png.getvalue()), len(jpeg.getvalue())
    first = TarMember(tmp_path / "0.tar", "a.png", 6, lengths[0])
    return first, TarMember(tmp_path / "0.tar", "b.jpg", 6 + lengths[0], lengths[1])


def test_images_in_archives(archive):
    first, second = archive
    assert load_image(first).tobytes() == open_any(first).tobytes() == marked().tobytes()
    assert load_image(second).size == image_size(second) == (30, 20) and image_size(first) == (6, 4)


@pytest.mark.parametrize("read", [load_image, image_size])
def test_archives_that_are_missing_or_cut_off(archive, read):
    first, second = archive
    with pytest.raises(ImageError, match=r"0\.tar:a\.png' is not an image that Pillow can read"):
        read(replace(first, start=0))
    with pytest.raises(ImageError, match=r"0\.tar:b\.jpg' cannot be read \(the archive ends after \d+ of its 9999"):
        read(replace(second, length=9999))
    with pytest.raises(ImageError, match=r"1\.tar:a\.png' is not there"):
        read(replace(first, archive=first.archive.with_name("1.tar")))


@pytest.mark.parametrize(("orientation", "size"), [(1, (6, 4)), (3, (6, 4)), (6, (4, 6)), (8, (4, 6))])
def test_sizes_are_those_of_the_upright_image(save, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(marked(), "turned.png", exif=exif)
    assert image_size(path) == load_image(path).size == size


def test_sizes_of_what_cannot_be_read(tmp_path):
    for name, message in (("none.png", "is not there"), (".", "is a folder"), ("text.png", "not an image")):
        (tmp_path / "text.png").write_text("text")
        with pytest.raises(ImageError, match=message):
            image_size(tmp_path / name)


@pytest.mark.parametrize("error", [TypeError("bad tag"), struct.error("short"), EOFError(), IndexError("far")])
@pytest.mark.parametrize("read", [load_image, image_size])
def test_whatever_a_decoder_raises_is_a_broken_image(save, monkeypatch, error, read):
    path = save(marked(), "a.png")

    def broken(image: Image.Image) -> None:
        raise error

    monkeypatch.setattr(PngImageFile, "load", broken)
    monkeypatch.setattr(PngImageFile, "getexif", broken)
    with pytest.raises(ImageError, match=rf"cannot be read \({str(error) or 'EOFError'}\): get a whole copy"):
        read(path)


def test_too_little_memory_is_no_fault_of_the_image(save, monkeypatch):
    def full(image: Image.Image) -> None:
        raise MemoryError

    path = save(marked(), "a.png")
    monkeypatch.setattr(PngImageFile, "load", full)
    with pytest.raises(MemoryError):
        load_image(path)


def test_the_stated_size_is_told_without_decoding(save, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert stated_size(save(marked(), "a.jpg", exif=exif)) == (6, 4), "not turned"
    path = save(marked(), "a.png")
    monkeypatch.setattr(PngImageFile, "load", lambda _: pytest.fail("decoded"))
    assert stated_size(path) == (6, 4)
    with pytest.raises(ImageError, match="does not exist"):
        stated_size(path.with_name("b.png"))
