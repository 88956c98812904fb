"""``glip detect IMAGE... "a red bus. a cyclist"``: find what words name, draw it, print it."""

import argparse
import glob
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glip.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from glip.detector import Detector
    from glip.structures import Detections, Prompt

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
_FEW = 3  # up to so many images are printed as tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE... PROMPT",
        help="files, folders or patterns such as 'shots/*.jpg'; then what to find, names with '. ' between them (with "
        "--caption or --task images only)",
    )
    parser.add_argument("--model", default="glip-nano", help="a name, a folder or a .pth file (default: glip-nano)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--caption", metavar="SENTENCE", help="find the things that a sentence names, its noun phrases"
    )
    instead.add_argument("--task", metavar="FILE", help="a task.safetensors of glip tune: finds its names as tuned")
    parser.add_argument(
        "--threshold", type=float, default=None, help="lowest score shown, 0..1 (default: the task's or model's)"
    )
    parser.add_argument("--out", default="out", metavar="DIR", help="where drawn images go (default: out)")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON line per image; '-' prints them instead")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--batch-size", type=int, default=4, help="images computed at once (default: 4)")


def run(args: argparse.Namespace) -> int:
    """Detect in all images; those that cannot be read are named, counted, and make the exit code 2."""
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ConfigError(f"threshold {args.threshold} is outside [0, 1]: scores are probabilities, such as 0.5")
    if args.batch_size < 1:
        raise ConfigError(f"batch size {args.batch_size} is less than 1: give the images computed at once, such as 4")
    if args.json != "-" and Path(args.out).is_file():
        raise ConfigError(f"--out {args.out!r} is a file: give a folder, which is made if missing")
    if args.json and Path(args.json).is_dir():
        raise ConfigError(f"--json {args.json!r} is a folder: give a file, or '-' to print the lines")
    prompt = asked(args)
    paths = find_images(args.images)
    from glip.detector import Detector

    detector = Detector.from_pretrained(args.model, task=args.task, device=args.device)
    names = output_names(paths, Path(args.out))
    report = Report(args.json, quiet=args.json == "-", table=len(paths) <= _FEW)
    failed = 0
    with report:
        for batch in _batches(paths, args.batch_size):
            tried = [(path, _open(path)) for path in batch]
            opened = [(path, image) for path, image in tried if image is not None]
            failed += len(tried) - len(opened)
            found = _detect(detector, [image for _, image in opened], prompt, args.threshold)
            for (path, image), detections in zip(opened, found, strict=True):
                report.add(path, image, detections, names[path])
    if failed:
        print(f"{failed} of {len(paths)} images could not be read", file=sys.stderr)
    return 2 if failed else 0


def asked(args: argparse.Namespace) -> "Prompt | None":
    """What to look for: the caption, or the words after the images, taken off them; None stands for the task's own.

    Raises:
        ValueError: nothing to look for, words besides a caption or a task, a caption or words that name nothing.
    """
    from glip.structures import Prompt

    last = args.images[-1]
    if args.caption is None and not args.task:
        if len(args.images) == 1:
            example = "'a red bus. a cyclist'"
            raise ConfigError(
                f"nothing to look for: give words after the images, such as {example}, --caption or --task"
            )
        return Prompt.parse(args.images.pop())
    may_be_images = glob.has_magic(last) or Path(last).exists() or re.search(r"\.\w+$", last)
    if len(args.images) > 1 and not may_be_images:
        option = "--task" if args.caption is None else "--caption"
        raise ConfigError(f"words {last!r} and {option}, which says what to look for: give images and one of the two")
    return None if args.caption is None else Prompt.from_caption(args.caption)


def find_images(given: Sequence[str]) -> list[Path]:
    """Files, the images of folders, and what patterns match, in order, each once.

    Raises:
        ValueError: a folder or pattern without images.
    """
    found: list[Path] = []
    for item in given:
        path = Path(item)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in _ENDINGS)
        elif path.exists() or not glob.has_magic(item):
            matches = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(item, recursive=True) if not Path(match).is_dir())
        if not matches:
            raise ConfigError(f"{item!r} holds no image: give files that end in {', '.join(sorted(_ENDINGS))}")
        found.extend(matches)
    return list(dict.fromkeys(found))


def output_names(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where each drawn image goes: its own name, numbered where two share one or it would replace a given image."""
    names: dict[Path, Path] = {}
    taken = {path.resolve() for path in paths}
    for path in paths:
        suffix = path.suffix if path.suffix.lower() in {".jpg", ".jpeg", ".png"} else ".png"
        name, number = folder / f"{path.stem}{suffix}", 1
        while name.resolve() in taken:
            number += 1
            name = folder / f"{path.stem}-{number}{suffix}"
        taken.add(name.resolve())
        names[path] = name
    return names


class Report:
    """Where results go: drawn images, tables for a few images, a progress bar for many, JSON lines on request."""

    def __init__(self, json_path: str | None, *, quiet: bool, table: bool) -> None:
        self.json_path, self.quiet, self.table = json_path, quiet, table
        self.lines: list[str] = []

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        if self.json_path and not self.quiet:
            write_lines(Path(self.json_path), self.lines)
            print(f"{len(self.lines)} lines in {self.json_path}")

    def add(self, path: Path, image: "Image.Image", detections: "Detections", target: Path) -> None:
        """Report one image."""
        if self.json_path:
            self.lines.append(json.dumps(as_record(path, detections), ensure_ascii=False))
        if self.quiet:
            print(self.lines[-1], flush=True)
            return
        from glip.visualize import draw, save_image

        save_image(draw(image, detections), target)
        if self.table:
            print(as_table(path, detections, target))


def as_record(path: Path, detections: "Detections") -> dict[str, object]:
    """One image's JSON line: boxes are xyxy pixels of the image, labels index ``phrases``, spans the caption."""
    height, width = detections.size
    return {
        "image": str(path),
        "width": width,
        "height": height,
        "caption": detections.prompt.caption,
        "phrases": list(detections.prompt.texts),
        "detections": [
            {
                "box": [round(value, 2) for value in found.box],
                "score": round(found.score, 4),
                "label": found.label,
                "phrase": found.phrase,
                "spans": [list(span) for span in phrase.spans],
            }
            for found, phrase in zip(detections, detections.phrases, strict=True)
        ],
    }


def as_table(path: Path, detections: "Detections", target: Path) -> str:
    """One image's detections to be read by people; of a sentence also the phrases that were not found."""
    from glip.lettering import is_sentence

    width = max([6, *(len(found.phrase.strip()) for found in detections)])
    lines = [f"{path}: {len(detections)} found", f"  {'phrase':<{width}}  score  box (x1 y1 x2 y2)"]
    for box, score, _, phrase in detections:
        numbers = " ".join(f"{value:6.1f}" for value in box)
        lines.append(f"  {phrase.strip():<{width}}  {score:5.2f}  {numbers}")
    if len(detections) == 0:
        lines[1:] = ["  nothing scored high enough: try a lower --threshold, or other words"]
    prompt, found = detections.prompt, set(detections.labels.tolist())
    missing = [text for label, text in enumerate(prompt.texts) if label not in found]
    if missing and is_sentence(prompt):
        lines.append(f"  not found: {', '.join(missing)}")
    return "\n".join([*lines, f"  drawn in {target}"])


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    partial.replace(path)


def _batches(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    from tqdm import tqdm

    with tqdm(total=len(paths), unit="image", disable=len(paths) <= _FEW) as bar:
        for start in range(0, len(paths), size):
            yield paths[start : start + size]
            bar.update(len(paths[start : start + size]))


def _open(path: Path) -> "Image.Image | None":
    from tqdm import tqdm

    from glip.data.image import load_image
    from glip.errors import ImageError

    try:
        return load_image(path)
    except ImageError as error:
        tqdm.write(f"glip detect: {' '.join(str(error).split())}", file=sys.stderr)  # above the bar, if there is one
        return None


def _detect(
    detector: "Detector", images: "list[Image.Image]", prompt: "Prompt | None", threshold: float | None
) -> "list[Detections]":
    return detector(images, prompt, threshold=threshold, batch_size=len(images)) if images else []
