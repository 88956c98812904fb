"""Open images: a file, a member of a tar, a PIL image, an array or a tensor becomes upright RGB.

What cannot be read is an ImageError that names it: missing, not an image, broken, without pixels, of values that no
image has, or over twice Pillow's ``MAX_IMAGE_PIXELS``. Where only the header is read, as far as that shows it.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from glip.data.download import download, is_url
from glip.errors import ImageError, install_command
from glip.files import is_special
from glip.shapes import Tensor
from glip.structures import Sample, TarMember

with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

T = TypeVar("T")
_log = logging.getLogger(__name__)
ImageInput = str | Path | bytes | io.BufferedIOBase | Image.Image | np.ndarray | Tensor
File = str | Path | TarMember | io.BufferedIOBase
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height
_BITS, _MAX_SAMPLE = 258, 281  # tags of TIFF
_WHITES = (1, 255, 1023, 4095, 16383, 65535)  # the largest value of floats and of 8, 10, 12, 14 and 16 bit
# The most pixels of formats whose decoders hold 10 to 17 bytes for each, as shares of MAX_IMAGE_PIXELS: 1.5 GB.
_COSTLY = {"progressive JPEG": 1.6, "AVIF": 1.5, "WEBP": 1.0, "JPEG2000": 0.8, "HEIF": 1.0}
_STRIP = 1 << 20  # pixels that are converted at once
_OVERSHOOT = 0.1  # resampling floats may leave black and white by this much
# No photographs; Pillow has no pixels for them, or gives them to another program (PostScript).
_NO_PHOTOS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"}
Image.preinit()  # the usual formats come first
Image.init()
_FORMATS = [form for form in Image.ID if form not in _NO_PHOTOS]
_HEIC = {".heic", ".heif", ".hif"}  # read where pillow-heif is installed
_UNREAD = _HEIC - Image.registered_extensions().keys()  # where it is not
ENDINGS = {ending for ending, form in Image.registered_extensions().items() if form not in _NO_PHOTOS} | _HEIC


def load_image(path: File, *, allow_download: bool = False) -> Image.Image:
    """Read an image file as upright RGB: EXIF rotation applied; grey, palette, alpha, 16-bit and CMYK converted.

    A URL is an error unless ``allow_download`` (https, up to 50 MB, within 30 s).
    """
    return _turned(*_read_rgb(path, allow_download))


def _read_rgb(path: File, allow_download: bool) -> tuple[Image.Image, object]:
    """A function of its own, so that what the file was decoded to is freed before the image is turned."""
    with _opened(path, allow_download) as image:
        return _to_rgb(image)


def sample_image(sample: Sample) -> Image.Image:
    """The image of a sample as RGB, read unless it is loaded."""
    return load_image(sample.image) if isinstance(sample.image, TarMember) else open_any(sample.image)


def image_size(path: str | Path | TarMember) -> tuple[int, int]:
    """(width, height) of the upright image, from its header; a PNG is read whole, since its EXIF may come last."""
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)


def size_if_readable(path: str | Path | TarMember) -> tuple[int, int] | None:
    """The same, or None where the header cannot be read."""
    with suppress(ImageError):
        return image_size(path)
    return None


def stated_size(path: File) -> tuple[int, int]:
    """(width, height) as the header states them, before EXIF rotation; nothing is decoded."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: File, allow_download: bool = False) -> Iterator[Image.Image]:
    """The image while Pillow reads it."""
    name = getattr(path, "name", "") if isinstance(path, io.IOBase) else path
    with _explained(name, "in memory"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is fine, Pillow refuses huge
        place = path.archive if isinstance(path, TarMember) else path
        if isinstance(place, str | Path) and is_special(place):
            raise ImageError("is a pipe or a device: give a file")
        file = io.BytesIO(read_member(path)) if isinstance(path, TarMember) else path
        if is_url(path):
            file = io.BytesIO(download(str(path), allowed=allow_download))
        with Image.open(file, formats=_FORMATS) as image:  # type: ignore[arg-type]
            yield image


@contextmanager
def _explained(path: object, shown: str = "") -> Iterator[None]:
    """An error of any kind becomes an ImageError that names the file, or what is shown of an image without one."""
    try:
        yield
    except Exception as error:  # on broken bytes Pillow's decoders raise anything: TypeError, struct.error...
        heic = f"{install_command('heic')}, or " if Path(str(path)).suffix.lower() in _UNREAD else ""
        known = (
            (ImageError, str(error)),
            (FileNotFoundError, "is not there: check the path"),
            (IsADirectoryError, "is a folder: give a file, or the folder to glip detect"),
            (UnidentifiedImageError, f"is not an image that Pillow can read: {heic}convert it to PNG"),
            (Image.DecompressionBombError, f"is too large ({error}): scale it down"),
            (Exception, f"cannot be read ({str(error) or type(error).__name__}): get a complete copy of it"),
        )
        problem = next(text for kind, text in known if isinstance(error, kind))
        explained = ImageError(f"image {repr(str(path)) if path else shown} {problem}")
        raise (error if isinstance(error, MemoryError) else explained) from None  # without memory it may be fine


def read_member(member: TarMember) -> bytes:
    """The bytes of a member of an archive."""
    with member.archive.open("rb") as file:
        file.seek(member.start)
        return file.read(member.length)


def open_all(
    images: Iterable[ImageInput], on_error: Callable[[int, ImageError], None] | None = None
) -> Iterator[tuple[int, Image.Image]]:
    """Each image with its number; one that cannot be read is left out and given to ``on_error``, or is raised."""
    for number, image in enumerate(images):
        try:
            opened = open_any(image)
        except ImageError as error:
            if on_error is None:
                raise
            on_error(number, error)
        else:
            yield number, opened


def is_batch(images: object) -> bool:
    """Whether several images are given: in a list or a generator, or as an array or tensor of four axes."""
    listed = isinstance(images, list | tuple | Iterator) and not isinstance(images, io.IOBase)
    return listed or getattr(images, "ndim", 0) == 4


def open_any(image: ImageInput) -> Image.Image:
    """An image of any kind that a Detector takes, as RGB.

    Arrays and tensors are (height, width), or have 1, 3 (RGB) or 4 (RGBA) channels: arrays the last axis, tensors the
    first, or the other one where it alone can be the channels. Values of any number type are read as those of files.

    Raises:
        ImageError: what cannot be read, or an array or tensor of another shape, type or range.
    """
    if isinstance(image, bytes):
        image = io.BytesIO(image)
    if isinstance(image, str | Path | io.BufferedIOBase):
        return load_image(image)
    shown = f"of type {type(image).__name__}"
    if isinstance(image, np.ndarray | Tensor):
        shown = f"of shape {tuple(image.shape)} and type {str(image.dtype).removeprefix('torch.')}"
    with _explained(getattr(image, "filename", ""), shown):
        opened = image if isinstance(image, Image.Image) else Image.fromarray(_to_bytes(_channels_last(image)))
        return _turned(*_to_rgb(opened))


def _channels_last(image: np.ndarray | Tensor) -> np.ndarray:
    """The values of an array or a tensor, (height, width) or (height, width, 3 or 4)."""
    is_tensor = isinstance(image, Tensor)
    if isinstance(image, Tensor):
        image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
    values = np.asarray(image)
    if values.ndim == 3:
        first, last = values.shape[0] in (1, 3, 4), values.shape[2] in (1, 3, 4)
        if first and (is_tensor or (not last and min(values.shape[1:]) > 4)):
            values = np.moveaxis(values, 0, 2)
        values = values.squeeze(2) if values.shape[2] == 1 else values
    is_image = values.ndim > 1 and values.size and values.shape[2:] in ((), (3,), (4,))
    if not is_image or values.dtype.kind not in "biuf":
        raise ImageError(
            "is not accepted: give a path, the bytes of a file, a PIL image, an array (height, width) or (height, "
            "width, 3) in RGB, a tensor (3, height, width), or a list of these"
        )
    return values


def _to_rgb(image: Image.Image) -> tuple[Image.Image, object]:
    """A new RGB image, and the orientation that it is stored in; transparent pixels become white.

    What needs large intermediate values is converted by rows, so that memory holds the image twice and no more.
    """
    form = "progressive JPEG" if image.info.get("progressive") else str(image.format)
    size, most = f"{image.width} x {image.height} pixels", _COSTLY.get(form, 2.0) * (Image.MAX_IMAGE_PIXELS or np.inf)
    if 0 in image.size or image.width * image.height > most:
        large = f"is too large ({size} of {form}): scale it down, or save it as PNG or plain JPEG"
        raise ImageError(f"has {size}: it needs at least one pixel" if 0 in image.size else large)
    is_grey = image.mode.startswith(("I", "F"))
    is_deep = not is_grey and ";16" in str(getattr(image, "tile", ""))
    white = _stated_white(image) if image.mode.startswith("I") else None
    image.load()
    if is_grey:  # 16-bit, 32-bit and float grey: Pillow would clip them to white
        strips = [(part.dtype, part.min(), part.max()) for _, part in _strips(image, np.asarray)]
        low, high = np.min([strip[1] for strip in strips]), np.max([strip[2] for strip in strips])
        factor = _factor(strips[0][0], float(low), float(high), white)
        rgb = _by_rows(image, lambda part: Image.fromarray(_scaled(np.asarray(part), factor)))
    elif "A" in image.getbands() or "transparency" in image.info:
        rgb = _by_rows(image, _on_white)
    else:
        rgb = image.convert("RGB")
    if is_deep and max(high for _, high in rgb.getextrema()) < 64:  # type: ignore[misc,union-attr]
        _notice("16-bit colour image, nearly black: if its values have 10, 12 or 14 bit, convert it to 8 bit first")
    return rgb, image.getexif().get(_ORIENTATION)


def _turned(rgb: Image.Image, orientation: object) -> Image.Image:
    if orientation in range(2, 9):
        rgb.getexif()[_ORIENTATION] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _strips(image: Image.Image, convert: Callable[[Image.Image], T]) -> Iterator[tuple[int, T]]:
    """The image in strips of rows, converted, each with its first row."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, convert(image.crop((0, top, image.width, min(top + rows, image.height))))


def _by_rows(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    for top, part in _strips(image, convert):
        rgb.paste(part.convert("RGB"), (0, top))
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)


def _stated_white(image: Image.Image) -> int | None:
    """The value of white as the file of a deep grey image states it, asked before its pixels are read."""
    if image.format == "PPM":
        return 65535  # Pillow has scaled to it
    if image.format == "PNG" and isinstance(image, ImageFile) and image.fp and image.tile:
        place = image.fp.tell()
        image.fp.seek(0)
        _, _, bits = image.fp.read(image.tile[0][2]).partition(b"\0\0\0\1sBIT")  # a chunk that Pillow skips
        image.fp.seek(place)
        return 2 ** bits[0] - 1 if bits else None
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    white = (4095,) if tags.get(_BITS) == (12,) else tags.get(_MAX_SAMPLE)
    return white[0] if isinstance(white, tuple) else None


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Values of any depth as uint8."""
    if values.dtype == np.uint8:
        return values
    factor = _factor(values.dtype, float(values.min()), float(values.max()))
    return np.concatenate([_scaled(part, factor) for part in np.array_split(values, -(-values.size // _STRIP))])


def _scaled(values: np.ndarray, factor: np.float32) -> np.ndarray:
    return np.clip(np.rint(values * factor), 0, 255).astype(np.uint8)


def _factor(kind: np.dtype, low: float, high: float, stated: int | None = None) -> np.float32:
    """What values from ``low`` to ``high`` are multiplied by to be 0..255.

    White is what the file states, where no value is above it, else a guess: the smallest of the usual largest values
    that holds them all; a notice says it.
    """
    slack = 1 + (_OVERSHOOT if kind.kind == "f" else 1 / 255)  # 256 for 255
    white = next((white for white in _WHITES if high <= white * slack), high)
    if not low >= -_OVERSHOOT * max(high, 1) or white == np.inf or low == white > _WHITES[-1]:
        raise ImageError(f"has values from {low:.3g} to {high:.3g}: scale them to 0..1 as floats, or 0..255 as uint8")
    if stated and high <= stated:
        white = stated
    elif white not in (1, _WHITES[-1]):
        taken = f"{white}, from the" if white in _WHITES else "its own"
        how = f"white is taken as {taken} largest value: convert the images to 8 bit if that is wrong"
        _notice(f"image of type {kind} states no bit depth: {how}")
    return np.float32(255 / white)


@cache
def _notice(text: str) -> None:
    _log.warning("%s (said once)", text)
