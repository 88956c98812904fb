"""Open images: a file, a member of a tar, a PIL image, an array or a tensor becomes upright RGB.

What cannot be read is an ImageError that names it: missing, not an image, broken, without pixels, or over twice
Pillow's ``MAX_IMAGE_PIXELS``. Where only the header is read, as far as that shows it.
"""

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from glip.errors import ImageError
from glip.shapes import Tensor
from glip.structures import Sample, TarMember

ImageInput = str | Path | Image.Image | np.ndarray | Tensor
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height
_OVERSHOOT = 0.1  # resampling a float image may leave 0..1 by this much


def load_image(path: str | Path | TarMember) -> Image.Image:
    """Read an image file as upright RGB: EXIF rotation applied; grey, palette, alpha, 16-bit and CMYK converted."""
    with _opened(path) as image:
        return to_rgb(image)


def sample_image(sample: Sample) -> Image.Image:
    """The image of a sample as RGB, read unless it is loaded."""
    return to_rgb(sample.image) if isinstance(sample.image, Image.Image) else load_image(sample.image)


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


def stated_size(path: str | Path | TarMember) -> tuple[int, int]:
    """(width, height) as the header states them, before EXIF rotation; nothing is decoded."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: str | Path | TarMember) -> Iterator[Image.Image]:
    """The image while Pillow reads it; whatever goes wrong becomes an ImageError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is fine, Pillow refuses huge
            with Image.open(io.BytesIO(read_member(path)) if isinstance(path, TarMember) else path) as image:
                yield image
    except Exception as error:  # on broken bytes Pillow's decoders raise anything: TypeError, struct.error...
        known = (
            (FileNotFoundError, "is not there: check the path"),
            (IsADirectoryError, "is a folder: give a file, or the folder to glip detect"),
            (UnidentifiedImageError, "is not an image that Pillow can read: convert it to PNG"),
            (Image.DecompressionBombError, f"is too large ({error}): scale it down"),
            (Exception, f"cannot be read ({str(error) or type(error).__name__}): get a complete copy of it"),
        )
        problem = next(text for kind, text in known if isinstance(error, kind))
        # without memory the image may be fine
        raise (error if isinstance(error, MemoryError) else ImageError(f"image {str(path)!r} {problem}")) from None


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


def open_any(image: ImageInput) -> Image.Image:
    """An image of any kind that a Detector takes, as RGB.

    Arrays are (height, width) or (height, width, 1, 3 or 4) of uint8; tensors are (height, width) or (1, 3 or 4,
    height, width), uint8 or floats in 0..1.

    Raises:
        ImageError: a file that cannot be read, or an array or tensor of another shape, type or range.
    """
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Tensor):
        image = _to_array(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        grey = image.squeeze(2) if image.ndim == 3 and image.shape[2] == 1 else image
        if grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] in (3, 4)):
            image = Image.fromarray(grey)
    if not isinstance(image, Image.Image):
        shown = f"type {type(image).__name__}"
        if isinstance(image, np.ndarray):
            span = f", from {image.min():.3g} to {image.max():.3g}" if image.size else ""
            shown = f"shape {image.shape} and type {image.dtype}{span}"
        raise ImageError(
            f"image of {shown}: give a path, a PIL image, an array of uint8 (height, width) or (height, width, 3) in "
            "RGB, or a tensor (3, height, width) of uint8, or of floats in 0..1"
        )
    return to_rgb(image)


def _to_array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array with its channels last; floats in 0..1 as uint8, others as they are."""
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.numel():
        values = values.float()
        if values.min() >= -_OVERSHOOT and values.max() <= 1 + _OVERSHOOT:  # also refuses NaN
            values = (values * 255).round().clamp(0, 255).byte()
    array: np.ndarray = (values.permute(1, 2, 0) if values.ndim == 3 else values).numpy()
    return array


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of any Pillow image; transparent pixels become white."""
    if 0 in image.size:
        raise ImageError(f"image of {image.width} x {image.height} pixels: it needs at least one pixel")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16-bit, 32-bit and float grey: Pillow would clip them to white
        values = np.nan_to_num(np.asarray(upright).astype(np.float64), posinf=0, neginf=0)
        highest = float(values.max())
        top = next((limit for limit in (1.0, 255.0, 65535.0) if highest <= limit), highest)
        upright = Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))
    if "A" in upright.getbands() or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")
