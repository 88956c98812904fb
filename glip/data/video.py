"""Videos and webcams by PyAV: frames as upright RGB images with their times, and images written as a video.

What cannot be read is an ImageError that names it: missing, not a video, without images, broken in the middle, or with
frames over twice Pillow's ``MAX_IMAGE_PIXELS``. A file is read through Python and only as one of some formats, so that
none, such as a playlist, makes FFmpeg open other files or addresses.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from glip.errors import ImageError, needs
from glip.files import atomic_path, writing

VIDEO_ENDINGS = {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
VIDEO_ENDINGS |= {".flv", ".wmv", ".ogv"}
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"  # as FFmpeg names them
_RATE = 30.0  # frames per second where a video or a webcam does not state it
_TICKS = 60_000  # per second, of times that are written; MPEG-4 allows 65,535
_LATE = 1.0  # seconds that may be missing at the end


class Frame(NamedTuple):
    """One frame of a video: its number from 0, its time in seconds after the first one, and the upright RGB image."""

    number: int
    time: float
    image: Image.Image


class VideoHeader(NamedTuple):
    """What a video states: frames per second, on average, and the number of frames; 0 where it is not known."""

    rate: float
    frames: int


def is_video(source: str | Path) -> bool:
    """Whether it is a webcam's number, or has the ending of a video."""
    return is_webcam(source) or Path(source).suffix.lower() in VIDEO_ENDINGS


def is_webcam(source: str | Path) -> bool:
    """Whether it is the number of a webcam, such as "0"."""
    return isinstance(source, str) and source.isdecimal()


def video_header(source: str | Path) -> VideoHeader:
    """The header of a video; a webcam is not opened for it."""
    if is_webcam(source):
        return VideoHeader(_RATE, 0)
    with _container(source) as (_, stream):
        rate = float(stream.average_rate or stream.guessed_rate or _RATE)
        return VideoHeader(rate, stream.frames or round(_stated_seconds(stream) * rate))


def read_video(source: str | Path, *, every: int = 1) -> Iterator[Frame]:
    """Read the frames of a video file, or of a webcam by its number ("0"), one after another.

    Only one frame of ``every`` is given, from the first on; the others are decoded, but not converted to RGB.

    Raises:
        ImageError: it cannot be read, or is broken in the middle; the frames before that were given.
    """
    number, time, end, start, problems = -1, 0.0, 0.0, None, list[str]()
    with _container(source) as (container, stream):
        rate = float(stream.average_rate or _RATE)
        for number, frame in enumerate(_decoded(container, stream, problems)):
            start = frame.time if start is None else start
            known = None if frame.time is None or start is None else frame.time - start
            last, time = time, number / rate if known is None else known
            time = max(time, last + 1 / _TICKS) if number else 0.0  # broken clocks stand or go back
            end = time + float((frame.duration or 0) * stream.time_base)
            if number % every == 0:
                yield Frame(number, time, frame.to_image().rotate(frame.rotation, expand=True))
        stated = 0.0 if "mpeg" in container.format.name else _stated_seconds(stream)  # guessed in transport streams
        if not problems and (number < 0 or end + _LATE < stated):
            problems.append("ends too early")
    if problems:
        read = f"{number + 1} frames ({end:.2f} s) were read"
        raise ImageError(f"video {str(source)!r} {problems[0]}: {read}: get a complete copy of it")


def _decoded(container: Any, stream: Any, problems: list[str]) -> Iterator[Any]:
    """Frames up to the end, or to what cannot be decoded, which is added to ``problems``."""
    stream.codec_context.options = {"max_pixels": str(_most_pixels())}  # also of later frames
    try:
        yield from container.decode(stream)
    except _av().FFmpegError as error:
        problems.append(f"is broken ({error.strerror})")


@contextmanager
def write_video(path: Path, rate: float) -> Iterator[Callable[[Image.Image, float], None]]:
    """Write an MP4 that replaces ``path`` when the block ends: a function that takes each image and its time.

    All have the size of the first one, cut to even sides: other images are cut or get a black margin. After an error or
    a kill the old file is unchanged. ``rate`` is about that of the frames per second; the times are what counts.
    """
    av, streams = _av(), list[Any]()

    def close() -> None:
        for stream in streams:
            with suppress(av.error.FFmpegError, OSError):  # after an error it may fail again
                stream.container.close()

    with ExitStack() as stack:

        def add(image: Image.Image, time: float) -> None:
            with _encoding(path):
                if not streams:
                    partial = stack.enter_context(atomic_path(path))
                    stack.callback(close)
                    streams.append(_new_stream(av.open(f"file:{partial}", "w", format="mp4"), image.size, rate))
                [stream] = streams
                frame = av.VideoFrame.from_image(image.crop((0, 0, stream.width, stream.height)))
                frame.time_base, frame.pts = Fraction(1, _TICKS), round(time * _TICKS)
                stream.container.mux(stream.encode(frame))

        yield add
        for stream in streams:
            with _encoding(path):
                stream.container.mux(stream.encode())  # what the encoder holds back
                stream.container.close()


@contextmanager
def _encoding(path: Path) -> Iterator[None]:
    """FFmpeg's errors are those of writing the file: a full disk, or no memory for the encoder."""
    with writing(path):
        try:
            yield
        except _av().error.FFmpegError as error:
            raise OSError(str(error)) from error


def _new_stream(container: Any, size: tuple[int, int], rate: float) -> Any:
    """H.264 where this FFmpeg writes it, else MPEG-4."""
    stream = container.add_stream("libx264" if "libx264" in _av().codecs_available else "mpeg4", rate=round(rate) or 1)
    stream.width, stream.height = (max(2, side - side % 2) for side in size)  # as the encoders ask
    stream.pix_fmt, stream.bit_rate = "yuv420p", 0 if stream.name == "libx264" else 4 * stream.width * stream.height
    stream.codec_context.time_base = Fraction(1, _TICKS)
    return stream


@contextmanager
def _container(source: str | Path) -> Iterator[tuple[Any, Any]]:
    """An open video and its first stream of images."""
    av, container, stream = _av(), None, None
    problem = "contains no images: give a file with a video stream"
    with ExitStack() as stack:
        try:
            if is_webcam(source):
                container = stack.enter_context(_webcam(str(source)))
            else:
                file = stack.enter_context(Path(source).open("rb"))
                container = stack.enter_context(av.open(file, options={"format_whitelist": _FORMATS}))
            stream = next(iter(container.streams.video), None)
        except FileNotFoundError:
            problem = "is not there: check the path, or connect the webcam"
        except (av.FFmpegError, OSError) as error:
            problem = f"cannot be opened ({error.strerror}): get a complete copy, or convert it to MP4"
        if stream is not None:
            large = stream.width * stream.height > _most_pixels()
            problem = f"is too large ({stream.width} x {stream.height} pixels): scale it down" if large else ""
        if problem:
            raise ImageError(f"{'webcam' if is_webcam(source) else 'video'} {str(source)!r} {problem}")
        yield container, stream


def _webcam(number: str) -> Any:
    """The container of a webcam, as each system names it."""
    av = _av()
    if sys.platform == "darwin":
        return av.open(number, format="avfoundation", options={"framerate": f"{_RATE:g}"})
    if sys.platform == "win32":
        names = [one.name for one in av.enumerate_input_devices("dshow") if "video" in one.media_types]
        return av.open(f"video={dict(enumerate(names)).get(int(number), number)}", format="dshow")
    return av.open(f"/dev/video{number}", format="v4l2")


def _stated_seconds(stream: Any) -> float:
    """The length of a stream, for Matroska and WebM in a tag; 0 where it is not stated."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    found = re.match(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0.0


def _most_pixels() -> int:
    return 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize // 4)


def _av() -> Any:
    with needs("video"):
        import av
    return av
