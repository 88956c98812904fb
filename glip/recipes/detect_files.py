"""Detect in many image files: find the files, draw each result, print a table or write JSON lines."""

import glob
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from glip.config import DetectConfig
from glip.data.image import ENDINGS, load_image
from glip.detector import Detector
from glip.errors import ConfigError, ImageError
from glip.files import write_jsonl
from glip.lettering import is_sentence
from glip.structures import Detections, Prompt
from glip.visualize import draw, save_image

_FEW = 3  # up to this many images are printed as tables; more show a progress bar


def find_images(given: Sequence[str]) -> list[Path]:
    """Files, the images in folders, and what patterns match, in order, each once.

    Of a folder, and of a pattern without an ending, files that are no images are left out and told, as are sub-folders
    with images. Hidden files are left out.

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
        inside = sorted(map(Path, glob.glob(item if is_pattern else f"{glob.escape(item)}/*", recursive=True)))
        files = [file for file in inside if not file.is_dir()]
        images = files if is_pattern and path.suffix else [file for file in files if _is_image(file)]
        deeper = [] if is_pattern else [folder for folder in inside if any(map(_is_image, folder.glob("**/*")))]
        notes = [f"{_names('other file', sorted({*files} - {*images}))} skipped"] * (len(files) > len(images))
        if deeper:
            notes.append(f"{_names('sub-folder', deeper)} with images not searched: give '{path}/**' to search all")
        elif not images:
            notes.append("give image files, such as .jpg or .png")
        if not images:
            raise ConfigError(f"{item!r} contains no image: {'; '.join(notes)}")
        if notes:
            print(f"glip detect: {item!r}: {'; '.join(notes)}", file=sys.stderr)
        found.extend(images)
    return list(dict.fromkeys(found))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS


def _names(what: str, paths: Sequence[Path]) -> str:
    """How many, and the first of them: "4 other files (a.txt, b.csv, c.md, ...)"."""
    names = [path.name for path in paths[:_FEW]] + ["..."] * (len(paths) > _FEW)
    return f"{len(paths)} {what}{'s' * (len(paths) > 1)} ({', '.join(names)})"


def detect_files(detector: Detector, paths: Sequence[Path], prompt: Prompt | None, config: DetectConfig) -> int:
    """Detect in all files; gives the number of files that could not be read, which are reported and skipped.

    Without a prompt the classes of the detector's task are detected. Each path is there once.
    """
    targets, records, read = _output_names(paths, Path(config.out)), list[dict[str, Any]](), 0
    if config.json != "-":
        Path(config.out).mkdir(parents=True, exist_ok=True)  # refused here, where it cannot be
    with tqdm(total=len(paths), unit="image", disable=len(paths) <= _FEW) as bar:
        for path, image, found in _detections(detector, paths, prompt, config, bar):
            read += 1
            if config.json == "-":
                print(json.dumps(to_record(path, found), ensure_ascii=False), flush=True)
                continue
            if config.json:
                records.append(to_record(path, found))
            save_image(draw(image, found), targets[path])
            if len(paths) <= _FEW:
                print(_detections_table(path, found, targets[path]))
    if config.json and config.json != "-":
        write_jsonl(config.json, records)
        print(f"{len(records)} lines in {config.json}")
    return len(paths) - read


def _detections(
    detector: Detector, paths: Sequence[Path], prompt: Prompt | None, config: DetectConfig, bar: "tqdm[Any]"
) -> Iterator[tuple[Path, Image.Image, Detections]]:
    """Each file that can be read, its image and its detections; the others are reported."""
    size = config.batch_size
    for batch in (paths[start : start + size] for start in range(0, len(paths), size)):
        opened = dict[Path, Image.Image]()
        for path in batch:
            try:
                opened[path] = load_image(path)
            except ImageError as error:
                tqdm.write(f"glip detect: {' '.join(str(error).split())}", file=sys.stderr)  # above the bar, if any
        images = list(opened.values())
        found = detector(images, prompt, threshold=config.threshold, batch_size=size) if images else []
        yield from zip(opened, images, found, strict=True)
        bar.update(len(batch))


def to_record(path: Path, detections: Detections) -> dict[str, Any]:
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


def _detections_table(path: Path, detections: Detections, target: Path) -> str:
    """One image's detections as a table; for a sentence also the phrases that were not found."""
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


def _output_names(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
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
