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

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from glip.errors import ImageError
from glip.shapes import Tensor
from glip.structures import Sample, TarMember

with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

_log = logging.getLogger(__name__)
ImageInput = str | Path | bytes | io.BufferedIOBase | Image.Image | np.ndarray | Tensor
File = str | Path | TarMember | io.BufferedIOBase
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height
_BITS, _MAX_SAMPLE = 258, 281  # tags of TIFF
_WHITES = (1, 255, 1023, 4095, 16383, 65535)  # the largest value of floats and of 8, 10, 12, 14 and 16 bit
_OVERSHOOT = 0.1  # resampling floats may leave black and white by this much
# No photographs; Pillow has no pixels for them, or gives them to another program (PostScript).
_NO_PHOTOS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"}
Image.preinit()  # the usual formats come first
Image.init()
_FORMATS = [form for form in Image.ID if form not in _NO_PHOTOS]
_HEIC = {".heic", ".heif", ".hif"}  # read where pillow-heif is installed
ENDINGS = {ending for ending, form in Image.registered_extensions().items() if form not in _NO_PHOTOS} | _HEIC


def load_image(path: File) -> Image.Image:
    """Read an image file as upright RGB: EXIF rotation applied; grey, palette, alpha, 16-bit and CMYK converted."""
    with _opened(path) as image:
        return _upright_rgb(image)


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
    try:
        return image_size(path)
    except ImageError:
        return None


def stated_size(path: File) -> tuple[int, int]:
    """(width, height) as the header states them, before EXIF rotation; nothing is decoded."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: File) -> Iterator[Image.Image]:
    """The image while Pillow reads it."""
    name = getattr(path, "name", "") if isinstance(path, io.IOBase) else path
    with _explained(name, "in memory"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is fine, Pillow refuses huge
        file = io.BytesIO(read_member(path)) if isinstance(path, TarMember) else path
        with Image.open(file, formats=_FORMATS) as image:  # type: ignore[arg-type]
            yield image


@contextmanager
def _explained(path: object, shown: str = "") -> Iterator[None]:
    """Whatever goes wrong becomes an ImageError that names the file, or what is shown of an image without one."""
    try:
        yield
    except Exception as error:  # on broken bytes Pillow's decoders raise anything: TypeError, struct.error...
        heic = "pip install 'glip[heic]', or " if Path(str(path)).suffix.lower() in _HEIC else ""
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
        return _upright_rgb(
            image if isinstance(image, Image.Image) else Image.fromarray(_to_bytes(_channels_last(image)))
        )


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


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Transparent pixels become white."""
    if 0 in image.size:
        raise ImageError(f"has {image.width} x {image.height} pixels: it needs at least one pixel")
    is_deep = ";16" in str(getattr(image, "tile", ""))
    white = _stated_white(image) if image.mode.startswith("I") else None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16-bit, 32-bit and float grey: Pillow would clip them to white
        return Image.fromarray(_to_bytes(np.asarray(image), white)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    image = image.convert("RGB")
    if is_deep and np.asarray(image).max() < 64:
        _notice("16-bit colour image, nearly black: if its values have 10, 12 or 14 bit, convert it to 8 bit first")
    return image


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


def _to_bytes(values: np.ndarray, stated: int | None = None) -> np.ndarray:
    """Values of any depth as uint8. White is what the file states, where no value is above it, else a guess.

    The guess is the smallest of the usual largest values that holds them all; a notice says it.
    """
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    slack = 1 + (_OVERSHOOT if values.dtype.kind == "f" else 1 / 255)  # 256 for 255
    white = next((white for white in _WHITES if high <= white * slack), high)
    if not low >= -_OVERSHOOT * max(high, 1) or white == np.inf or low == white > _WHITES[-1]:
        raise ImageError(f"has values from {low:.3g} to {high:.3g}: scale them to 0..1 as floats, or 0..255 as uint8")
    if stated and high <= stated:
        white = stated
    elif white not in (1, _WHITES[-1]):
        taken = f"{white}, from the" if white in _WHITES else "its own"
        how = f"white is taken as {taken} largest value: convert the images to 8 bit if that is wrong"
        _notice(f"image of type {values.dtype} states no bit depth: {how}")
    return np.clip(np.rint(values * np.float32(255 / white)), 0, 255).astype(np.uint8)


@cache
def _notice(text: str) -> None:
    _log.warning("%s (said once)", text)
