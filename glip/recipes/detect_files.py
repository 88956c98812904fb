"""Detect in many images and videos: find the files, draw each result, print tables, write the results in any format."""

import glob
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import islice, takewhile
from pathlib import Path

from PIL import Image

from glip.console import ProgressBar, counted, printable
from glip.data.download import is_url
from glip.data.image import ENDINGS, load_image
from glip.data.video import is_video, is_webcam, read_video, video_header
from glip.detector import Detector
from glip.errors import ConfigError, ImageError
from glip.lettering import is_sentence
from glip.options import DetectOptions
from glip.recipes.detect_config import DetectConfig
from glip.recipes.result_files import WRITERS, Item, Source, image_folder, open_writers, output_names, result_files
from glip.recipes.tiles import detect_in_tiles
from glip.recipes.track import Tracker
from glip.signals import GracefulStop
from glip.structures import Detections, Prompt

_FEW = 3  # up to this many images are printed as tables; more show a progress bar
_SEARCHED = 10_000  # files of a sub-folder
_SHOWN = 10  # names of a prompt in messages


def find_images(given: Sequence[str], config: DetectConfig) -> list[Source]:
    """Files, URLs, a webcam, the images in folders, and what patterns match, in order, each once.

    Of a folder, and of a pattern without an ending, files that are no images are left out and named, as are sub-folders
    with images unless the search is recursive. Hidden files and, in sub-folders, what was drawn are left out.

    Raises:
        ConfigError: a folder or pattern without images.
    """
    found: list[Source] = []
    for item in given:
        path = Path(item)
        if is_url(item) or (is_webcam(item) and not path.exists()):
            found.append(item)
            continue
        is_pattern = not path.exists() and glob.has_magic(item)
        if not is_pattern and not path.is_dir():
            found.append(path)
            continue
        below = "**" if config.recursive else "*"
        inside = sorted(map(Path, glob.glob(item if is_pattern else f"{glob.escape(item)}/{below}", recursive=True)))
        drawn = {Path(out).resolve() for out in (config.out, config.crops or config.out) if config.recursive}
        drawn -= {path.resolve()}
        files = [file for file in inside if not file.is_dir() and not drawn & {*Path(os.path.realpath(file)).parents}]
        images = files if is_pattern and path.suffix else [file for file in files if _is_image(file)]
        deeper = [] if is_pattern or config.recursive else [folder for folder in inside if _holds_images(folder)]
        videos = [file for file in files if is_video(file) and file not in images]
        others = sorted({*files} - {*images, *videos})
        notes = [f"{_counted_names('other file', others)} skipped"] * bool(others)
        if videos:
            notes.append(f"{_counted_names('video', videos)} skipped: give videos by name or pattern, such as *.mp4")
        if deeper:
            notes.append(f"{_counted_names('sub-folder', deeper)} with images not searched: --recursive searches all")
        elif not images and not videos:
            notes.append("give image files, such as .jpg or .png")
        if not images:
            raise ConfigError(f"{item!r} contains no image: {'; '.join(notes)}")
        if notes and not config.quiet:
            print(f"notice: {item!r}: {'; '.join(notes)}", file=sys.stderr)
        found.extend(images)
    return list(dict.fromkeys(found))


def split_arguments(given: Sequence[str], instead: str = "") -> tuple[list[str], list[str]]:
    """The images of a command line and the texts after them: from the first argument on that cannot be an image.

    Raises:
        ConfigError: no text, or an image after it; with an option that is given ``instead`` of texts, a text.
    """
    images = list(takewhile(_may_be_image, given[:-1])) or list(given[:1])
    texts = list(given[len(images) :])
    named = (text for text in texts if _is_image(Path(text)) or is_video(Path(text)))
    late = next(filter(os.path.isfile, named), "")
    words = next((text for text in given if not (_may_be_image(text) or is_webcam(text))), None)
    if instead and words:
        raise ConfigError(f"{words!r} is no image, and {instead} says what to find: leave one of them out")
    if instead:
        return list(given), []
    if late and words:
        raise ConfigError(f"the file {late!r} comes after {words!r}, which is none: give all images, then the words")
    if late or not texts:
        raise ConfigError("no prompt: give words after the images, such as 'a red bus. a cyclist', --caption or --task")
    return images, texts


def _may_be_image(text: str) -> bool:
    path = Path(text)
    return _is_image(path) or is_video(path) or path.exists() or glob.has_magic(text) or "/" in text or "\\" in text


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS


def _holds_images(folder: Path) -> bool:
    """Whether an image is among its first files; a folder can be a whole disk."""
    return any(map(_is_image, islice(folder.glob("**/*"), _SEARCHED)))


def _counted_names(what: str, paths: Sequence[Path]) -> str:
    """How many, and the first of them: "4 other files (a.txt, b.csv, c.md, ...)"."""
    names = [printable(path.name) for path in paths[:_FEW]] + ["..."] * (len(paths) > _FEW)
    return f"{counted(len(paths), what)} ({', '.join(names)})"


def detect_files(
    detector: Detector,
    sources: Sequence[Source],
    prompt: Prompt | None,
    config: DetectConfig,
    segment: Callable[[Image.Image, Detections], Detections] | None = None,
) -> int:
    """Detect in all; gives the number of sources that could not be read to the end, which are reported.

    Without a prompt the classes of the detector's task are detected. Each source is there once, and ``check_fits`` has
    passed. With a video, the first Ctrl-C or SIGTERM ends the work cleanly: what is written so far is whole.
    ``segment`` gives detections their masks.

    Raises:
        Interrupted: stopped by a signal; a webcam, which has no other end, is not.
    """
    if any(map(is_webcam, sources)):
        config = replace(config, batch_size=1)  # no frame waits for others
    if config.image_size:
        detector = detector.resized(config.image_size)
    asked, floor = prompt or detector.encode_text().prompts[0], detector.config.inference.candidate_threshold
    advice = "try other words" + ", or a lower --threshold" * (config.threshold is None or config.threshold > floor)
    is_drawn, has_video = config.draw and config.out != "-", any(map(is_video, sources))
    drawn, files = output_names(sources, Path(config.out)) if is_drawn else {}, result_files(config)
    is_table = "table" in (config.format or ("table",)) and not config.quiet and config.out != "-"
    summary = _Summary(asked, advice, "frame" if has_video else "image")
    is_small, unreadable = len(sources) <= _FEW and not has_video, list[Source]()
    stop = GracefulStop(lost="without the last video; the same command starts over")
    with ExitStack() as stack:
        if has_video:
            stack.enter_context(stop)
        writers = stack.enter_context(open_writers(config, sources, asked, drawn))
        total = None if is_small or config.quiet else _expected(sources, config)
        bar = ProgressBar(total=total, unit=summary.noun, disable=is_small or config.quiet)
        items = _readable(sources, config, unreadable, stack.enter_context(bar))
        for item, found in _detections(detector, takewhile(lambda _: not stop.number, items), prompt, config):
            found = segment(item.image, found) if segment else found
            summary.add(item.source, found)
            for add in writers:
                add(item, found)
            bar.update(1)
            if is_table and is_small:
                print(_detections_table(item.source, found, advice))
                print(*[f"  drawn in {printable(str(drawn[item.source]))}\n" for _ in range(is_drawn)], end="")
    if summary.images and not config.quiet and config.out != "-":
        notes = [summary.text(table=is_table and not is_small), *[f"drawn in {config.out}"] * is_drawn]
        print(*notes, *files, sep=", ")
        if own := [WRITERS[form][0] for form in ("coco", "labels") if form in config.format]:
            folder = image_folder(sources)
            shown = folder if Path(sources[0]).is_absolute() else os.path.relpath(folder)
            print(f"image folder of {' and '.join(own)} (--images): {shown}")
    done = f"the results of {counted(summary.images, summary.noun)} are written; the same command starts over"
    stop.stop_if(bool(stop.number) and not all(map(is_webcam, sources)), done)
    return len(unreadable)


def check_fits(sources: Sequence[Source], config: DetectConfig) -> None:
    """Refuse what these sources cannot give.

    Raises:
        ConfigError: a format or an option that is not for them.
    """
    other = next((source for source in sources if is_video(source) or is_url(source)), None)
    unfit = next((form for form in ("coco", "yolo", "labels") if form in config.format), None)
    if unfit and other:
        raise ConfigError(
            f"--format {unfit} is for image files, and {str(other)!r} is none: give jsonl, json, csv or table"
        )
    if config.track and not any(map(is_video, sources)):
        raise ConfigError("--track is for videos, and none is given: leave it out")
    if config.track:
        Tracker(1.0)  # says now if its package is missing


def _expected(sources: Sequence[Source], config: DetectConfig) -> int | None:
    """How many images there are, as far as headers state it."""
    counts = [1] * len(sources)
    for place, source in enumerate(sources):
        if is_video(source):
            with suppress(ImageError):  # which is reported when its turn comes
                frames = -(-video_header(source).frames // config.every)
                counts[place] = min(frames, config.frames or frames) if frames else config.frames
    return sum(counts) if all(counts) else None


def _readable(
    sources: Sequence[Source], config: DetectConfig, unreadable: list[Source], bar: ProgressBar
) -> Iterator[Item]:
    """Each image and frame that can be read; sources that cannot be are reported and added to ``unreadable``."""
    for source in sources:
        try:
            if is_video(source):
                frames = islice(read_video(source, every=config.every), config.frames or None)
                yield from (Item(source, frame.image, frame.number, frame.time) for frame in frames)
            else:
                yield Item(source, load_image(source, allow_download=config.allow_download))
        except ImageError as error:
            unreadable.append(source)
            bar.update(1)
            ProgressBar.write(f"glip detect: {' '.join(str(error).split())}", file=sys.stderr)  # above the bar, if any


def _detections(
    detector: Detector, items: Iterable[Item], prompt: Prompt | None, config: DetectConfig
) -> Iterator[tuple[Item, Detections]]:
    """Each item and its detections; those of a video with tracks, if asked for."""
    options: DetectOptions = {"threshold": config.threshold, "nms": config.nms, "batch_size": config.batch_size}
    options["max_detections"] = config.max_detections
    waiting, trackers = deque[Item](), dict[Source, Tracker]()

    def images() -> Iterator[Image.Image]:
        for item in items:
            waiting.append(item)
            yield item.image

    stream = detector.stream
    if config.tile:
        stream = partial(detect_in_tiles, detector, tile=config.tile, overlap=config.overlap)
    for found in stream(images(), prompt, **options):
        item = waiting.popleft()
        if config.track and item.frame is not None:
            if item.source not in trackers:
                trackers = {item.source: Tracker(video_header(item.source).rate / config.every)}
            found = trackers[item.source](found, item.time)
        yield item, found


class _Summary:
    """What was found in all images."""

    def __init__(self, prompt: Prompt, advice: str, noun: str) -> None:
        self.images, self.prompt, self.advice, self.noun = 0, prompt, advice, noun
        self.rows: dict[str, tuple[int, int, float]] = {}  # of each phrase: images, detections, best score
        self.tracks: dict[str, set[tuple[Source, int]]] = {}

    def add(self, source: Source, found: Detections) -> None:
        """One image more."""
        self.images += 1
        for label in found.labels.unique().tolist():
            phrase, own = printable(found.prompt.texts[label].strip()), found[found.labels == label]
            images, detections, best = self.rows.get(phrase, (0, 0, 0.0))
            self.rows[phrase] = images + 1, detections + len(own), max(best, float(own.scores.max()))
            if own.tracks is not None:
                numbers = {(source, track) for track in own.tracks.tolist() if track > 0}
                self.tracks[phrase] = self.tracks.get(phrase, set()) | numbers

    def text(self, *, table: bool) -> str:
        """How many images and detections; in a table how many of each phrase."""
        lines, width = list[str](), max([6, *map(len, self.rows)])
        if table and self.rows:
            lines.append(f"  {'phrase':<{width}}  {self.noun}s  detections  best score{'  tracks' * bool(self.tracks)}")
            for phrase, (images, detections, best) in sorted(self.rows.items(), key=lambda row: -row[1][1]):
                tracks = f"  {len(self.tracks.get(phrase, ())):6}" * bool(self.tracks)
                lines.append(f"  {phrase:<{width}}  {images:6}  {detections:10}  {best:10.2f}{tracks}")
        missing = [name for text in self.prompt.texts if (name := printable(text.strip())) not in self.rows]
        if table and missing:
            lines.append(f"  not found: {_some(missing)}" if self.rows else _nothing_found(self.prompt, self.advice))
        found = sum(detections for _, detections, _ in self.rows.values())
        return "\n".join([*lines, f"{counted(self.images, self.noun)}, {counted(found, 'detection')}"])


def _detections_table(path: Source, detections: Detections, advice: str) -> str:
    """One image's detections as a table, and the phrases that were not found."""
    phrases = [printable(found.phrase.strip()) for found in detections]
    width = max([6, *map(len, phrases)])
    lines = [f"{printable(str(path))}: {len(detections)} found", f"  {'phrase':<{width}}  score  box (x1 y1 x2 y2)"]
    for (box, score, *_), phrase in zip(detections, phrases, strict=True):
        numbers = " ".join(f"{value:6.1f}" for value in box)
        lines.append(f"  {phrase:<{width}}  {score:5.2f}  {numbers}")
    if len(detections) == 0:
        lines[1:] = [_nothing_found(detections.prompt, advice)]
    prompt, found = detections.prompt, set(detections.labels.tolist())
    missing = [text for label, text in enumerate(prompt.texts) if label not in found]
    if missing and (len(detections) or is_sentence(prompt)):
        lines.append(f"  not found: {_some(missing)}")
    return "\n".join(lines)


def _nothing_found(prompt: Prompt, advice: str) -> str:
    """How the prompt was read, for it may have been meant otherwise, and what to try."""
    read = f"{len(prompt.texts)} names: {_some(prompt.texts)}"
    if len(prompt.texts) == 1:
        read = f"ONE name, {prompt.texts[0]!r}; put '. ' between names"
    return f"  nothing found; the prompt was read as {read}\n  or {advice}"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if texts[_SHOWN:] else ""
    return ", ".join(map(printable, texts[:_SHOWN])) + more
