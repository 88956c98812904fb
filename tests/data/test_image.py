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


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (5, 0)), (3, (5, 3)), (4, (0, 3)), (5, (0, 0)), (6, (3, 0)), (7, (3, 5)), (8, (0, 5))],
)
def test_exif_rotation(save, orientation, corner):
    path = save(marked(), "turned.png", exif=turned(orientation))
    upright = load_image(path)
    assert upright.size == ((6, 4) if orientation < 5 else (4, 6)) == image_size(path)
    assert upright.mode == "RGB" and upright.getpixel(corner) == RED
    assert stated_size(path) == (6, 4), "not turned"


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        *[("L", 77, (77,) * 3), ("1", 1, WHITE), ("P", 0, (0, 0, 0))],
        *[("RGBA", (255, 0, 0, 255), RED), ("RGBA", (255, 0, 0, 0), WHITE), ("RGBA", (0, 0, 0, 128), (127, 127, 127))],
        *[("LA", (0, 0), WHITE), ("LA", (40, 255), (40, 40, 40))],
    ],
)
def test_modes_and_transparency_on_white(save, mode, colour, expected):
    assert load_image(save(Image.new(mode, (3, 2), colour), "a.png")).getpixel((1, 1)) == expected


def test_transparent_values(save):
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    grey = Image.new("L", (3, 2), 9)
    grey.putpixel((0, 0), 50)
    for image, name, value, expected in (
        (palette, "a.png", 0, (WHITE, RED)),
        (palette, "a.gif", 0, (WHITE, RED)),
        (grey, "b.png", 9, ((50,) * 3, WHITE)),
    ):
        opened = load_image(save(image, name, transparency=value))
        assert (opened.getpixel((0, 0)), opened.getpixel((2, 1))) == expected


@pytest.mark.parametrize(
    ("name", "kind", "values", "expected"),
    [
        ("a.png", np.uint16, [0, 256, 32768, 65535], [0, 0, 127, 255]),
        ("a.tiff", np.int32, [0, 500, 1000, 100_000], [0, 1, 2, 255]),
        ("a.tiff", np.float32, [0, 0.5, 1], [0, 127, 255]),
        ("a.tiff", np.float32, [0, 100, 255], [0, 100, 255]),
        ("a.tiff", np.float32, [0, 300, 65535], [0, 1, 255]),
        ("a.tiff", np.float32, [0, 100_000, 200_000], [0, 127, 255]),
        ("a.tiff", np.float32, [float("nan"), 0.5, 1], [0, 127, 255]),
        ("a.tiff", np.float32, [float("inf"), -1, 1], [0, 0, 255]),
    ],
)
def test_wide_grey(save, name, kind, values, expected):
    path = save(Image.fromarray(np.array([values], dtype=kind)), name)
    assert np.asarray(load_image(path))[0, :, 0].tolist() == expected


def test_cmyk_jpeg(save):
    red, green, blue = load_image(save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "a.jpg")).getpixel((8, 8))
    assert red > 240 and green < 20 and blue < 20


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


def refused(path: str | Path | TarMember, *words: str, read=load_image) -> None:
    with pytest.raises(ImageError) as caught:
        read(path)
    message = str(caught.value)
    assert repr(str(path)) in message and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("read", [load_image, image_size, stated_size])
def test_missing_and_folder(tmp_path, read):
    refused(tmp_path / "none.png", "is not there", read=read)
    refused(tmp_path, "is a folder", read=read)


@pytest.mark.parametrize("content", [b"", b"hello, this is a text", b"<svg></svg>", b"\x89PNG\r\n\x1a\n", bytes(200)])
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png")
    refused(tmp_path / "a.png", read=image_size)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tiff", "bmp", "webp"])
def test_truncated(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    complete, path = io.BytesIO(), tmp_path / f"a.{ending}"
    Image.fromarray(noise).save(complete, "JPEG" if ending == "jpg" else ending.upper())
    path.write_bytes(complete.getvalue()[: len(complete.getvalue()) // 2])
    refused(path)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header states this size, with nothing behind it."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    data = b"IDAT" + zlib.compress(b"")
    chunks = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_zero_size_and_decompression_bombs(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(0, 7))
    refused(path)
    path.write_bytes(png_of(50_000, 50_000))
    for read in (load_image, image_size, stated_size):
        refused(path, "is too large", "2500000000 pixels", read=read)
    with pytest.raises(ImageError, match="0 x 7 pixels"):
        to_rgb(Image.new("RGB", (0, 7)))


def test_large_images_do_not_warn(save, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert load_image(save(marked(), "a.png")).size == (6, 4)
    assert not recwarn.list


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "type float64, from 0 to 0: give .* of uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (torch.zeros(2, 3, 4, 4), r"shape \(2, 3, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.long), "type int64"),
        (torch.zeros(3, 0, 4), "shape"),
        (torch.full((3, 4, 4), 200.0), r"from 200 to 200: give .* floats in 0..1"),
        (torch.full((3, 4, 4), float("nan")), "from nan to nan"),
        (7, "image of type int: give a path"),
        (None, "image of type NoneType"),
    ],
)
def test_other_things_are_explained(image, message):
    with pytest.raises(ImageError, match=message):
        open_any(image)


@pytest.mark.parametrize("error", [TypeError("bad tag"), struct.error("short"), EOFError(), MemoryError()])
@pytest.mark.parametrize("read", [load_image, image_size])
def test_whatever_a_decoder_raises_is_a_broken_image(save, monkeypatch, error, read):
    path = save(marked(), "a.png")

    def fail(image: Image.Image) -> None:
        raise error

    monkeypatch.setattr(PngImageFile, "load", fail)
    monkeypatch.setattr(PngImageFile, "getexif", fail)
    if isinstance(error, MemoryError):  # the image may be fine
        with pytest.raises(MemoryError):
            read(path)
    else:
        refused(path, str(error) or "EOFError", read=read)


def test_the_stated_size_is_read_without_decoding(save, monkeypatch):
    path = save(marked(), "a.png")
    monkeypatch.setattr(PngImageFile, "load", lambda _: pytest.fail("decoded"))
    assert stated_size(path) == (6, 4)


def test_members_of_archives(tmp_path):
    png, jpeg = io.BytesIO(), io.BytesIO()
    marked().save(png, "PNG")
    Image.new("RGB", (30, 20), RED).save(jpeg, "JPEG")
    start, length = 6 + len(png.getvalue()), len(jpeg.getvalue())
    (tmp_path / "0.tar").write_bytes(b"before" + png.getvalue() + jpeg.getvalue()[:-20])
    first = TarMember(tmp_path / "0.tar", "a.png", 6, len(png.getvalue()))
    second = TarMember(tmp_path / "0.tar", "b.jpg", start, length)
    assert load_image(first).tobytes() == marked().tobytes()
    assert image_size(first) == (6, 4) and image_size(second) == (30, 20)
    refused(second, "cannot be read")  # the archive is cut off
    refused(replace(first, start=0), "is not an image")
    refused(replace(first, archive=tmp_path / "1.tar"), "is not there")
