"""What ``glip serve`` reads and answers: plain JSON, and the protocol of X-AnyLabeling.

A question is one image and what to find in it. No path or address in a request is ever opened. What cannot be used is a
GlipError, which the server answers with status 400.
"""

import base64
import binascii
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from glip.config import CountOrZero, Share, option
from glip.data.image import load_image, stated_size
from glip.data.records import as_map
from glip.detector import Detector
from glip.errors import GlipError, ImageError
from glip.integrations.serve_options import ServeConfig
from glip.options import DetectOptions
from glip.schema import checked, did_you_mean, parse
from glip.structures import Detections, Prompt

_LETTERS = 30  # characters of a prompt for each name that is allowed
_DATA_URI = re.compile(r"data:[\w./+-]*(?:;[\w.=+-]+)*;base64,")
_CORNERS = ((0, 1), (2, 1), (2, 3), (0, 3))  # of a box, clockwise


@dataclass(frozen=True)
class Question:
    """The bytes of an image file and what to find in it; without a prompt the classes of the task."""

    image: bytes
    task: str = ""
    prompt: Prompt | None = None
    options: DetectOptions = field(default_factory=DetectOptions)
    name: str = ""  # of the file that was sent


@checked
class DetectRequest:
    """The body of ``POST /detect``; as multipart/form-data the images are files."""

    image: str | None = option(None, "an image file in base64, or as a data URI")
    images: tuple[str, ...] = option((), "several images, each as for image; results come in their order")
    names: Any = option(None, "what to find: a list of names, or text such as 'a red bus. a cyclist'")
    caption: str | None = option(None, "instead of names: a sentence; the objects that it mentions are found")
    task: str | None = option(None, "a task of the server; without names and caption its classes are found")
    threshold: Any = option(None, "lowest score: a number, or one for each name in a list or an object")
    nms: Share | None = option(None, "IoU above which the lower-scored of two boxes of a name is removed; 1: off")
    max_detections: CountOrZero | None = option(None, "maximum detections per image; 0: no limit")


def read_questions(
    request: DetectRequest, files: Sequence[tuple[str, bytes]], detectors: Mapping[str, Detector], limits: ServeConfig
) -> list[Question]:
    """The questions of a plain request; ``files`` are images that came as files, with their names.

    Raises:
        GlipError: no image, too many, one that is not base64, a bad prompt, an unknown task.
    """
    listed = [*([request.image] if request.image is not None else []), *request.images]
    images = [*files, *(("", decode_image(text, f"image {place}")) for place, text in enumerate(listed, start=1))]
    if not 0 < len(images) <= limits.max_images:
        raise GlipError(f"got {len(images)} images: send 1 to {limits.max_images} of them")
    task, prompt = request.task or "", read_prompt(request.names, request.caption, limits)
    version_of(detectors, task)  # there is such a task
    options = detect_options(limits, request.threshold, request.nms, request.max_detections)
    return [Question(image, task, prompt, options, name) for name, image in images]


def version_of(detectors: Mapping[str, Detector], task: str) -> str:
    """The model's name, and the task's.

    Raises:
        GlipError: no such task.
    """
    if task not in detectors:
        known = [name for name in detectors if name]
        raise GlipError(
            f"no task {task[:60]!r}{did_you_mean(task[:60], known)}: known are {', '.join(known) or 'none'}"
        )
    return " ".join(filter(None, (detectors[""].config.name, task)))


def detect_options(
    limits: ServeConfig, threshold: Any = None, nms: float | None = None, max_detections: int | None = None
) -> DetectOptions:
    """The options of a call of the Detector; None leaves the model's."""
    threshold = limits.threshold if threshold is None else threshold
    return DetectOptions(threshold=threshold, nms=nms, max_detections=max_detections)


def read_prompt(names: Any, caption: str | None, limits: ServeConfig) -> Prompt | None:
    """The prompt of a request; None where it gives none.

    Raises:
        GlipError: names and a caption, too many names, too long a text, or nothing named.
    """
    given = caption if names is None else names
    if given is None:
        return None
    if names is not None and caption is not None:
        raise GlipError("got names and a caption: send one of them")
    listed = given if isinstance(given, list) else [given]
    length, most = sum(len(text) for text in listed if isinstance(text, str)), _LETTERS * limits.max_names
    limit = f"this server reads up to {limits.max_names} names and {most} characters in a prompt"
    if len(listed) > limits.max_names or length > most:
        raise GlipError(f"got {len(listed)} texts of {length} characters: {limit}")
    prompt = Prompt.from_names(given) if caption is None else Prompt.from_caption(caption)
    if len(prompt.phrases) > limits.max_names:
        raise GlipError(f"got {len(prompt.phrases)} names: {limit}")
    return prompt


def decode_image(text: Any, shown: str = "image") -> bytes:
    """The bytes of an image file from base64 or a data URI.

    Raises:
        ImageError: neither; an address or a path too.
    """
    given = text if isinstance(text, str) else ""
    head = _DATA_URI.match(given[:200])
    try:
        return base64.b64decode("".join(given[head.end() if head else 0 :].split()) or "-", validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            f"{shown} is not base64: send the file's bytes so, or as a data URI; no path or address is opened"
        ) from None


def open_image(data: bytes, limits: ServeConfig, name: str = "") -> Image.Image:
    """An image of a request as RGB; its file's name is for the errors.

    Raises:
        ImageError: it cannot be read, or has too many pixels by its header.
    """
    file = io.BytesIO(data)
    file.name = name  # type: ignore[attr-defined]
    width, height = stated_size(file)
    if width * height > limits.max_pixels:
        raise ImageError(f"image has {width} x {height} pixels: this server reads up to {limits.max_pixels}")
    return load_image(file)


def to_record(found: Detections) -> dict[str, Any]:
    """Detections as plain JSON: boxes are xyxy pixels of the image; a label is the index of a phrase."""
    height, width = found.size
    return {
        "width": width,
        "height": height,
        "caption": found.prompt.caption,
        "phrases": found.prompt.texts,
        "detections": [one._asdict() for one in found],
    }


def read_form(fields: Mapping[str, Sequence[str]]) -> DetectRequest:
    """A plain request from the text fields of a form; numbers and thresholds are written as in JSON."""
    values: dict[str, Any] = {name: texts[-1] for name, texts in fields.items()}
    if len(fields.get("names", ())) > 1:
        values["names"] = list(fields["names"])
    for name in {"threshold", "nms", "max_detections"} & values.keys():
        with suppress(ValueError):  # what is no number is refused as any other value
            values[name] = json.loads(values[name])
    return parse(DetectRequest, values, at="request")


# ---- X-AnyLabeling


def list_models(detectors: Mapping[str, Detector]) -> dict[str, Any]:
    """The models that X-AnyLabeling offers: the model itself, asked by text, and each task with its classes."""
    models: dict[str, Any] = {}
    for task, detector in detectors.items():
        widgets: dict[str, Any] = {"button_run": None} if task else {"edit_text": None, "button_send": None}
        widgets |= {"input_conf": None, "edit_conf": 0.0, "toggle_preserve_existing_annotations": False}
        models[task or detector.config.name] = {
            "display_name": f"GLIP: {version_of(detectors, task)}",
            "classes": detector.adaptation.names if detector.adaptation else [],
            "batch_processing_mode": "default" if task else "text_prompt",
            "widgets": [{"name": name, "value": value} for name, value in widgets.items()],
        }
    return {"success": True, "data": models}


def read_shape_question(body: Any, detectors: Mapping[str, Detector], limits: ServeConfig) -> Question:
    """The question of X-AnyLabeling's ``/v1/predict``; thresholds of 0 are those that nobody set.

    Raises:
        GlipError: an unknown model, no prompt for the model itself, an image that is not base64.
    """
    request, params = as_map(body), as_map(as_map(body).get("params"))
    task, text = str(request.get("model")), params.get("text_prompt")
    task = "" if task == detectors[""].config.name else task
    version_of(detectors, task)  # there is such a task
    prompt = read_prompt(text or "", None, limits) if text or not task else None
    threshold, nms = (parse(Share, params.get(name) or 0, at=name) for name in ("conf_threshold", "iou_threshold"))
    return Question(
        decode_image(request.get("image")), task, prompt, detect_options(limits, threshold or None, nms or None)
    )


def to_shapes(found: Detections, names: Sequence[str], body: Any) -> dict[str, Any]:
    """Detections as X-AnyLabeling's rectangles, of the classes that its filter leaves if there is one.

    ``names`` are those of the prompt's phrases. Whether they replace other shapes is left to the person there.
    """
    wanted = as_map(as_map(body).get("params")).get("filter_classes")
    shapes = [
        {"label": names[label], "shape_type": "rectangle", "points": [[box[x], box[y]] for x, y in _CORNERS]}
        | {"score": score}
        for box, score, label, _ in found
        if not isinstance(wanted, list) or not wanted or names[label] in wanted
    ]
    return {"success": True, "data": {"shapes": shapes, "description": ""}}
