"""Whatever people have becomes upright RGB; what cannot be read is named."""

import io
import re
import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

import glip.data.image
from glip.data.image import ENDINGS, _notice, image_size, load_image, open_any, stated_size
from glip.errors import ImageError, install_command
from glip.structures import TarMember

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def save(tmp_path):
    def saved(image: Image.Image, name: str, **options: object) -> Path:
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return saved


@pytest.fixture
def notices(caplog):
    """What was told since the last call."""

    def told() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        _notice.cache_clear()
        return lines

    told()
    return told


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


GREY, FLOATS = np.array([0, 0.25, 0.5, 1]), np.float32


@pytest.mark.parametrize(
    ("values", "white"),
    [
        *((np.round(GREY * top).astype(np.uint16), top) for top in (65535, 16383, 4095, 1023, 255)),
        *((np.round(GREY * top).astype(np.int32), top) for top in (65535, 4095)),
        *((np.round(GREY * 65535).astype(kind), 65535) for kind in ("<u2", ">u2")),
        *(((GREY * top).astype(FLOATS), top) for top in (1, 255, 4095, 65535)),
        *[((GREY * 1.02).astype(FLOATS), 1), ((GREY - 0.02).astype(FLOATS), 1), ((GREY * 256).astype(FLOATS), 255)],
        *[((GREY * 256).astype(np.uint16), 255), ((GREY * 200_000).astype(FLOATS), 200_000)],
        ((GREY * 300).astype(np.uint16), 1023),
    ],
)
def test_grey_of_any_depth(save, notices, values, white):
    """A file, an array and a tensor are read alike; where the depth is a guess, one notice says so."""
    expected = np.clip(values.astype(float) / white * 255, 0, 255)
    path = save(Image.fromarray(values[None]), "a.tiff")
    native = values[None].astype(values.dtype.newbyteorder("="))
    for read, image in ((load_image, path), (open_any, native), (open_any, torch.from_numpy(native))):
        first, again = read(image), read(image)
        assert np.abs(np.asarray(first)[0, :, 0] - expected).max() <= 0.51 and first.tobytes() == again.tobytes()
        taken = "its own largest" if white > 65535 else f"{white},"
        assert [f"white is taken as {taken}" in line for line in notices()] == [True] * (white not in (1, 65535))


def framed(chunk: bytes) -> bytes:
    """A chunk of a PNG with its length and checksum."""
    return (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")


def with_chunk(path: Path, chunk: bytes) -> Path:
    """A PNG with one more chunk after its header."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + framed(chunk) + data[33:])
    return path


def test_stated_depths_need_no_guess(save, tmp_path, notices):
    dark = Image.fromarray(np.array([[0, 800]], np.uint16))
    twelve, tags = tmp_path / "b.tiff", {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    twelve.write_bytes(b"II*\0\x08\0\0\0\x09\0" + entries + bytes(4) + bytes.fromhex("000320"))
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + struct.pack(">HH", 0, 800))
    for path, expected in (
        (with_chunk(save(dark, "a.png"), b"sBIT\x0c"), 800 / 4095),
        (with_chunk(save(dark, "b.png"), b"sBIT\x10"), 800 / 65535),
        (save(dark, "a.tiff", tiffinfo={281: 4095}), 800 / 4095),
        (twelve, 800 / 4095),
        (tmp_path / "a.pgm", 800 / 4095),
    ):
        assert load_image(path).getpixel((1, 0))[0] == round(255 * expected), path
        assert open_any(Image.open(path)).getpixel((1, 0))[0] == round(255 * expected), path
    assert not notices()
    bright = with_chunk(save(Image.fromarray(np.array([[0, 65520]], np.uint16)), "c.png"), b"sBIT\x0c")
    assert load_image(bright).getpixel((1, 0)) == WHITE, "scaled to 16 bit, as the PNG standard asks"


def test_dark_colour_of_16_bit_is_told(tmp_path, notices):
    """Pillow keeps the upper byte of a colour only."""
    header, rows = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"\0" + struct.pack(">HHH", 4095, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(framed, chunks)))
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (15, 0, 0)
    assert [line.startswith("16-bit colour image") for line in notices()] == [True]


@pytest.mark.parametrize("values", [[-50, 0, 255], [np.nan, 0, 1], [0, np.inf], [-2.1, 2.6], [1e6, 1e6], [-np.inf, 1]])
def test_values_that_no_image_has(save, values):
    array = np.array([values], FLOATS)
    refused(save(Image.fromarray(array), "a.tiff"), f"has values from {array.min():.3g} to {array.max():.3g}: scale")
    for image, name in ((array, "of shape (1, "), (torch.from_numpy(array), "of shape (1, ")):
        with pytest.raises(ImageError, match=re.escape(f"image {name}") + ".* has values from"):
            open_any(image)


def test_cmyk_jpeg(save):
    red, green, blue = load_image(save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "a.jpg")).getpixel((8, 8))
    assert red > 240 and green < 20 and blue < 20


def test_no_mode_is_refused():
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "I;16"):
        assert open_any(Image.new(mode, (3, 2))).mode == "RGB", mode


def test_arrays_and_tensors_are_the_same_image():
    array = np.asarray(marked().resize((12, 8), Image.Resampling.NEAREST))
    tensor = torch.from_numpy(array.copy())
    first, wide = tensor.permute(2, 0, 1), array.astype(np.uint16) * 257
    floats = (array / 255, first.float() / 255, (first.double() / 255).requires_grad_(), tensor.bfloat16())
    for same in (array, first, tensor, array.transpose(2, 0, 1), *floats, array.astype(np.int64), first.long(), wide):
        assert np.array_equal(np.asarray(open_any(same)), array)
    red = array[..., 0]
    for grey in (red, array[..., :1], red[None], red > 0, first[0], first[:1].half() / 255, tensor[..., :1]):
        assert np.array_equal(np.asarray(open_any(grey)), np.repeat(array[..., :1], 3, 2))
    clear = np.dstack([array, np.zeros_like(red)])
    for alpha in (clear, clear / 255, torch.from_numpy(clear).permute(2, 0, 1)):
        assert open_any(alpha).getcolors() == [(96, WHITE)]


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
    with suppress(OSError):
        lazy = Image.open(path)  # noqa: SIM115
        with pytest.raises(ImageError, match=f"image '.*a.{ending}' cannot be read"):
            open_any(lazy)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header states this size, with nothing behind it."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(framed, (header, b"IDAT" + zlib.compress(b""), b"IEND")))


def test_zero_size_and_decompression_bombs(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of(0, 7))
    refused(path)
    path.write_bytes(png_of(50_000, 50_000))
    for read in (load_image, image_size, stated_size):
        refused(path, "is too large", "2500000000 pixels", read=read)
    with pytest.raises(ImageError, match="0 x 7 pixels"):
        open_any(Image.new("RGB", (0, 7)))


def test_large_images_do_not_warn(save, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert load_image(save(marked(), "a.png")).size == (6, 4)
    assert not recwarn.list


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\) and type uint8 is not accepted: give"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), complex), "type complex128"),
        (np.full((4, 4, 3), "a"), "type <U1"),
        (torch.zeros(2, 3, 4, 4), r"shape \(2, 3, 4, 4\) and type float32 is .* or a list of these"),
        (torch.zeros(3, 0, 4), r"shape \(3, 0, 4\)"),
        (7, "image of type int is not accepted: give a path"),
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


def test_endings_of_images():
    assert {".jpg", ".avif", ".jfif", ".jp2", ".heic", ".webp", ".tif", ".ppm", ".mpo", ".png"} <= ENDINGS
    assert not ENDINGS & {"", ".txt", ".pdf", ".eps", ".ps", ".wmf", ".h5", ".mpg", ".svg"}


def test_postscript_is_never_run(tmp_path):
    """Pillow would give it to Ghostscript under any name."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    refused(tmp_path / "a.jpg", "is not an image that")


def test_heic(tmp_path):
    """A real one where its package is installed; else the error names the package."""
    path = tmp_path / "a.HEIC"
    if not find_spec("pillow_heif"):
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        refused(path, f"is not an image that Pillow can read: {install_command('heic')}, or convert")
        pytest.skip("pillow-heif is not installed")
    import pillow_heif

    photo = marked().resize((60, 40), Image.Resampling.NEAREST)
    pillow_heif.from_pillow(photo).save(path, exif=turned(6).tobytes())
    upright = load_image(path)
    assert upright.size == image_size(path) == (40, 60) and upright.getpixel((35, 5))[0] > 200
    path.write_bytes(path.read_bytes()[:30])
    refused(path, "is not an image that Pillow can read: convert it to PNG")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "I;16", "I", "F", "P"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_rows_give_the_same_pixels_as_the_whole(mode, orientation, monkeypatch):
    values = np.random.default_rng(0).integers(0, 255, (17, 23, 4), dtype=np.uint8)
    image = Image.fromarray(values, "RGBA").convert("L" if mode in ("I;16", "PA") else "RGBA" if "A" in mode else "RGB")
    image = image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    image.getexif()[0x0112] = orientation
    whole = open_any(image)
    monkeypatch.setattr(glip.data.image, "_STRIP", 50)
    assert whole.size == ((23, 17) if orientation == 1 else (17, 23)) and whole.tobytes() == open_any(image).tobytes()


def test_costly_formats_have_lower_limits(save, monkeypatch):
    path = save(Image.new("RGB", (20, 20)), "a.jpg", progressive=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 240)
    refused(path, "is too large (20 x 20 pixels of progressive JPEG): scale it down")
    assert load_image(save(Image.new("RGB", (20, 20)), "b.jpg")).size == (20, 20)
