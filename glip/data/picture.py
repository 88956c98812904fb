"""Opening pictures: whatever people have, as upright RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 200_000_000  # a larger picture is refused before it is decoded


class PictureError(ValueError):
    """A picture that cannot be read; the message names the file and the reason."""


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture file as upright RGB: EXIF rotation applied, grey, palette, alpha, 16-bit and CMYK converted.

    Raises:
        PictureError: missing, not a picture, broken, without pixels, or over ``MAX_PIXELS``.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise PictureError(
                    f"picture {str(path)!r} has {picture.width} x {picture.height} pixels, at most "
                    f"{MAX_PIXELS:,} are read: scale it down"
                )
            return to_rgb(picture)
    except FileNotFoundError:
        raise PictureError(f"picture {str(path)!r} is not there: check the path") from None
    except IsADirectoryError:
        raise PictureError(f"picture {str(path)!r} is a folder: give a file, or the folder to glip detect") from None
    except UnidentifiedImageError:
        raise PictureError(f"picture {str(path)!r} is not a picture that Pillow can read: convert it to PNG") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"picture {str(path)!r} is broken ({error}): get a whole copy of it") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Upright RGB of any Pillow picture; transparency is laid on white.

    Raises:
        PictureError: a picture without pixels.
    """
    if picture.width == 0 or picture.height == 0:
        raise PictureError(f"picture of {picture.width} x {picture.height} pixels: it needs at least one pixel")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith(("I", "F")):
        return _from_wide(upright)
    if "A" in upright.getbands() or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")


def _from_wide(picture: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey: Pillow would clip them to white, so they are scaled to 8 bits."""
    values = np.asarray(picture).astype(np.float64)
    top = 65535.0 if values.max() > 255 else 255.0 if values.max() > 1 else 1.0
    grey = np.clip(values / top * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
