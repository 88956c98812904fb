"""Detect in many image files: find the files, draw each result, print tables, write the results in any format."""

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice, takewhile
from pathlib import Path

from PIL import Image

from glip.config import DetectConfig
from glip.console import ProgressBar, counted
from glip.data.image import ENDINGS, load_image
from glip.detector import Detector
from glip.errors import ConfigError, ImageError
from glip.files import exclusive, remove_partials, writing
from glip.lettering import is_sentence
from glip.options import DetectOptions
from glip.recipes.result_files import WRITERS, Writer, image_folder, output_names, write_crops, write_lines
from glip.structures import Detections, Prompt
from glip.visualize import draw, save_image

_RESULTS = "results"  # the folder of files beside the drawn images, which no dataset's reader takes for its images
_FEW = 3  # up to this many images are printed as tables; more show a progress bar
_SEARCHED = 10_000  # files of a sub-folder
_SHOWN = 10  # names of a prompt in messages


def find_images(given: Sequence[str], config: DetectConfig) -> list[Path]:
    """Files, the images in folders, and what patterns match, in order, each once.

    Of a folder, and of a pattern without an ending, files that are no images are left out and named, as are sub-folders
    with images unless the search is recursive. Hidden files and, in sub-folders, what was drawn are left out.

    Raises:
        ConfigError: a folder or pattern without images.
    """
    found: list[Path] = []
    for item in given:
        path = Path(item)
        is_pattern = not path.exists() and glob.has_magic(item)
        if not is_pattern and not path.is_dir():
            found.append(path)
            continue
        below = "**" if config.recursive else "*"
        inside = sorted(map(Path, glob.glob(item if is_pattern else f"{glob.escape(item)}/{below}", recursive=True)))
        drawn = {Path(out).resolve() for out in (config.out, config.crops or config.out) if config.recursive}
        drawn -= {path.resolve()}
        files = [file for file in inside if not file.is_dir() and not drawn & {*file.resolve().parents}]
        images = files if is_pattern and path.suffix else [file for file in files if _is_image(file)]
        deeper = [] if is_pattern or config.recursive else [folder for folder in inside if _holds_images(folder)]
        notes = [f"{_counted_names('other file', sorted({*files} - {*images}))} skipped"] * (len(files) > len(images))
        if deeper:
            notes.append(f"{_counted_names('sub-folder', deeper)} with images not searched: --recursive searches all")
        elif not images:
            notes.append("give image files, such as .jpg or .png")
        if not images:
            raise ConfigError(f"{item!r} contains no image: {'; '.join(notes)}")
        if notes and not config.quiet:
            print(f"glip detect: {item!r}: {'; '.join(notes)}", file=sys.stderr)
        found.extend(images)
    return list(dict.fromkeys(found))


def split_arguments(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The images of a command line and the texts after them: from the first argument on that cannot be an image.

    Raises:
        ConfigError: no text, or an image after it.
    """
    images = list(takewhile(_may_be_image, given[:-1])) or list(given[:1])
    texts = list(given[len(images) :])
    late = next((text for text in texts if _is_image(Path(text)) and Path(text).is_file()), None)
    words = next((text for text in given if not _may_be_image(text)), None)
    if late and words:
        raise ConfigError(f"the image {late!r} comes after {words!r}, which is none: give all images, then the words")
    if late or not texts:
        raise ConfigError("no prompt: give words after the images, such as 'a red bus. a cyclist', --caption or --task")
    return images, texts


def _may_be_image(text: str) -> bool:
    path = Path(text)
    return _is_image(path) or path.exists() or glob.has_magic(text) or "/" in text or "\\" in text


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS


def _holds_images(folder: Path) -> bool:
    """Whether an image is among its first files; a folder can be a whole disk."""
    return any(map(_is_image, islice(folder.glob("**/*"), _SEARCHED)))


def _counted_names(what: str, paths: Sequence[Path]) -> str:
    """How many, and the first of them: "4 other files (a.txt, b.csv, c.md, ...)"."""
    names = [path.name for path in paths[:_FEW]] + ["..."] * (len(paths) > _FEW)
    return f"{counted(len(paths), what)} ({', '.join(names)})"


def detect_files(detector: Detector, paths: Sequence[Path], prompt: Prompt | None, config: DetectConfig) -> int:
    """Detect in all files; gives the number of files that could not be read, which are reported and skipped.

    Without a prompt the classes of the detector's task are detected. Each path is there once.
    """
    if config.image_size:
        detector = detector.resized(config.image_size)
    asked = prompt or detector.encode_text().prompts[0]
    drawn, summary, files = output_names(paths, Path(config.out)), _Summary(asked), _result_files(config)
    is_drawn, is_small = config.draw and config.out != "-", len(paths) <= _FEW
    is_table = "table" in (config.format or ("table",)) and not config.quiet and config.out != "-"
    for file in [*files, *list(drawn.values())[:is_drawn]]:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)  # refused here, where it cannot be
    with ExitStack() as stack, ProgressBar(total=len(paths), unit="image", disable=is_small or config.quiet) as bar:
        remove_partials(config.out)
        if any(file.parent.name == _RESULTS for file in files):
            stack.enter_context(exclusive(Path(config.out, _RESULTS)))
        writers = [stack.enter_context(write(file, paths, asked)) for file, write in files.items()]
        for path, image, found in _detections(detector, paths, prompt, config, bar):
            summary.add(found)
            for add in writers:
                add(path, image, found)
            if is_drawn:
                save_image(draw(image, found, scores=config.scores), drawn[path])
            if is_table and is_small:
                print(_detections_table(path, found), *[f"  drawn in {drawn[path]}"] * is_drawn, sep="\n")
    if summary.images and not config.quiet and config.out != "-":
        notes = [summary.text(table=is_table and not is_small), *[f"drawn in {config.out}"] * is_drawn]
        print(*notes, *files, sep=", ")
        if {"coco", "labels"} & {*config.format}:
            print(f"image folder of coco.json and labels.jsonl (--images): {os.path.relpath(image_folder(paths))}")
    return len(paths) - summary.images


def _result_files(config: DetectConfig) -> dict[Path, Writer]:
    """What is written beside the drawn images, and where."""
    files = {
        Path(config.out, _RESULTS, name): write for form, (name, write) in WRITERS.items() if form in config.format
    }
    files = {Path("-"): write_lines} if config.out == "-" else files
    return files | ({Path(config.crops): write_crops} if config.crops else {})


def _detections(
    detector: Detector, paths: Sequence[Path], prompt: Prompt | None, config: DetectConfig, bar: ProgressBar
) -> Iterator[tuple[Path, Image.Image, Detections]]:
    """Each file that can be read, its image and its detections; the others are reported."""
    size = config.batch_size
    options: DetectOptions = {"threshold": config.threshold, "nms": config.nms, "batch_size": size}
    options["max_detections"] = config.max_detections
    for batch in (paths[start : start + size] for start in range(0, len(paths), size)):
        opened = dict[Path, Image.Image]()
        for path in batch:
            try:
                opened[path] = load_image(path)
            except ImageError as error:
                # above the bar, if any
                ProgressBar.write(f"glip detect: {' '.join(str(error).split())}", file=sys.stderr)
        images = list(opened.values())
        found = detector(images, prompt, **options) if images else []
        yield from zip(opened, images, found, strict=True)
        bar.update(len(batch))


class _Summary:
    """What was found in all images."""

    def __init__(self, prompt: Prompt) -> None:
        self.images, self.prompt = 0, prompt
        self.rows: dict[str, tuple[int, int, float]] = {}  # of each phrase: images, detections, best score

    def add(self, found: Detections) -> None:
        """One image more."""
        self.images += 1
        for label in found.labels.unique().tolist():
            phrase, scores = found.prompt.texts[label].strip(), found.scores[found.labels == label]
            images, detections, best = self.rows.get(phrase, (0, 0, 0.0))
            self.rows[phrase] = images + 1, detections + len(scores), max(best, float(scores.max()))

    def text(self, *, table: bool) -> str:
        """How many images and detections; in a table how many of each phrase."""
        lines, width = list[str](), max([6, *map(len, self.rows)])
        if table and self.rows:
            lines.append(f"  {'phrase':<{width}}  images  detections  best score")
            for phrase, (images, detections, best) in sorted(self.rows.items(), key=lambda row: -row[1][1]):
                lines.append(f"  {phrase:<{width}}  {images:6}  {detections:10}  {best:10.2f}")
        missing = [text.strip() for text in self.prompt.texts if text.strip() not in self.rows]
        if table and missing:
            lines.append(f"  not found: {_some(missing)}" if self.rows else _nothing_found(self.prompt))
        found = sum(detections for _, detections, _ in self.rows.values())
        return "\n".join([*lines, f"{counted(self.images, 'image')}, {counted(found, 'detection')}"])


def _detections_table(path: Path, detections: Detections) -> str:
    """One image's detections as a table; for a sentence also the phrases that were not found."""
    width = max([6, *(len(found.phrase.strip()) for found in detections)])
    lines = [f"{path}: {len(detections)} found", f"  {'phrase':<{width}}  score  box (x1 y1 x2 y2)"]
    for box, score, _, phrase in detections:
        numbers = " ".join(f"{value:6.1f}" for value in box)
        lines.append(f"  {phrase.strip():<{width}}  {score:5.2f}  {numbers}")
    if len(detections) == 0:
        lines[1:] = [_nothing_found(detections.prompt)]
    prompt, found = detections.prompt, set(detections.labels.tolist())
    missing = [text for label, text in enumerate(prompt.texts) if label not in found]
    if missing and is_sentence(prompt):
        lines.append(f"  not found: {_some(missing)}")
    return "\n".join(lines)


def _nothing_found(prompt: Prompt) -> str:
    """How the prompt was read, for it may have been meant otherwise, and what to try."""
    read = f"{len(prompt.texts)} names: {_some(prompt.texts)}"
    if len(prompt.texts) == 1:
        read = f"ONE name, {prompt.texts[0]!r}; put '. ' between names"
    return f"  nothing found; the prompt was read as {read}\n  or try other words, or a lower --threshold"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if texts[_SHOWN:] else ""
    return ", ".join(texts[:_SHOWN]) + more
