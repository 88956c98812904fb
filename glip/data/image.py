"""Opening images: whatever people have, as upright RGB."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from glip.errors import DataError, ImageError
from glip.shapes import Tensor
from glip.structures import TarMember

ImageInput = str | Path | TarMember | Image.Image | np.ndarray | Tensor
_ROTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height
_OVERSHOOT = 0.1  # by so much a resized image of floats may leave 0..1


def load_image(path: str | Path | TarMember) -> Image.Image:
    """Read an image as upright RGB: EXIF rotation applied, grey, palette, alpha, 16-bit and CMYK converted.

    Args:
        path: a file, or bytes of an archive.

    Raises:
        ImageError: missing, not an image, broken, without pixels, or over twice Pillow's ``MAX_IMAGE_PIXELS``.
    """
    with _opened(path) as image:
        return to_rgb(image)


def image_size(path: str | Path | TarMember) -> tuple[int, int]:
    """(width, height) of the upright image, from its header; a PNG is read whole, since its EXIF may come last.

    Raises:
        ImageError: as ``load_image``, as far as the header shows it.
    """
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ROTATION) in _ON_ITS_SIDE else (width, height)


def stated_size(path: str | Path | TarMember) -> tuple[int, int]:
    """The two sides of an image as its header states them, not turned upright; nothing is ever decoded.

    Raises:
        ImageError: as ``load_image``, as far as the header shows it.
    """
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: str | Path | TarMember) -> Iterator[Image.Image]:
    """The image as Pillow has it while it is being read; whatever goes wrong becomes a ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is fine, Pillow refuses huge
            with Image.open(_bytes_of(path) if isinstance(path, TarMember) else path) as image:
                yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"image {str(path)!r} is not there: check the path") from None
    except IsADirectoryError:
        raise ImageError(f"image {str(path)!r} is a folder: give a file, or the folder to glip detect") from None
    except UnidentifiedImageError:
        raise ImageError(f"image {str(path)!r} is not an image that Pillow can read: convert it to PNG") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"image {str(path)!r} is too large ({error}): scale it down") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders let through whatever broken bytes cause: TypeError, struct.error...
        reason = str(error) or type(error).__name__
        raise ImageError(f"image {str(path)!r} cannot be read ({reason}): get a whole copy of it") from None


def _bytes_of(image: TarMember) -> io.BytesIO:
    with image.archive.open("rb") as file:
        file.seek(image.start)
        content = file.read(image.length)
    if len(content) < image.length:
        raise OSError(f"the archive ends after {len(content)} of its {image.length} bytes")
    return io.BytesIO(content)


def open_any(image: ImageInput) -> Image.Image:
    """An image of any accepted kind as RGB: a path, bytes of an archive, a PIL image, an array or a tensor.

    Raises:
        ImageError: a file that cannot be read, or an image without pixels.
        ValueError: an array or tensor of another shape, type or range.
    """
    if isinstance(image, str | Path | TarMember):
        return load_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    array = _as_array(image) if isinstance(image, Tensor) else image
    if not isinstance(array, np.ndarray):
        raise DataError(f"image of type {type(image).__name__}: give a path, a PIL image, an array or a tensor")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or array.dtype != np.uint8:
        raise DataError(
            f"array of shape {array.shape} and type {array.dtype}: give (height, width), or (height, width, 3) in RGB, "
            "of uint8; or a tensor (3, height, width)"
        )
    if 0 in array.shape:
        raise DataError(f"array of shape {array.shape}: it needs at least one pixel")
    return to_rgb(Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array))


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of any Pillow image; transparency is laid on white.

    Raises:
        ImageError: an image without pixels.
    """
    if image.width == 0 or image.height == 0:
        raise ImageError(f"image of {image.width} x {image.height} pixels: it needs at least one pixel")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        return _from_wide(upright)
    if "A" in upright.getbands() or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey: Pillow would clip them to white, so they are scaled to 8 bits."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
    highest = float(values.max())
    top = next((limit for limit in (1.0, 255.0, 65535.0) if highest <= limit), highest)
    grey = np.clip(values / top * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _as_array(tensor: Tensor) -> np.ndarray:
    values = tensor.detach().cpu()
    if values.is_floating_point():
        low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
        if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
            raise DataError(f"tensor of floats from {low:.3g} to {high:.3g}: floats must lie in 0..1, or give uint8")
        values = (values.float() * 255).round().clamp(0, 255).byte()
    array: np.ndarray = (values.permute(1, 2, 0) if values.ndim == 3 else values).numpy()
    return array
