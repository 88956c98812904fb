"""What was found in one image, and its forms in other tools: supervision, COCO, YOLO, pandas, a drawing, crops.

A package that glip itself does not need is imported when its form is asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from PIL import Image

from glip.errors import GlipError, ImageError, needs
from glip.shapes import Bool, Float, Int, Size, Tensor
from glip.text.prompt import Phrase, Prompt

COLUMNS = ("phrase", "label", "score", "x1", "y1", "x2", "y2")  # of a table of detections
_SHOWN = 3  # detections in a repr


class Detection(NamedTuple):
    """One detection, as iteration over Detections yields it."""

    box: tuple[float, float, float, float]
    score: float
    label: int
    phrase: str


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, best first.

    ``boxes`` are xyxy in pixels of the original image; ``labels`` index the caller's own phrases (``prompt.phrases``)
    and ``classes`` are those labels after the caller's mapping of names to classes. ``token_scores`` is there on
    request: for each box the alignment with every token of its caption, named by ``tokens``. ``tracks`` numbers the
    objects of a video from 1 on, the same in all frames; -1 is a detection without a track.
    ``masks``, from ``glip.integrations.sam``, are True in the pixels of the image that belong to the object.
    """

    boxes: Float[Tensor, "det 4"]
    scores: Float[Tensor, " det"]
    labels: Int[Tensor, " det"]
    prompt: Prompt
    size: Size
    token_scores: Float[Tensor, "det tok"] | None = None
    tokens: tuple[str, ...] = ()
    tracks: Int[Tensor, " det"] | None = None
    masks: Bool[Tensor, "det height width"] | None = None

    @property
    def classes(self) -> Int[Tensor, " det"]:
        """The class of each detection, after the prompt's mapping."""
        return torch.tensor(self.prompt.classes, device=self.labels.device)[self.labels]

    @property
    def phrases(self) -> list[Phrase]:
        """The phrase of each detection, with its text and spans."""
        return [self.prompt.phrases[label] for label in self.labels.tolist()]

    def __repr__(self) -> str:
        shown = [f"{phrase} {score:.2f}" for _, score, _, phrase in self[:_SHOWN]] + ["..."] * (len(self) > _SHOWN)
        return f"Detections({len(self)}{': ' if shown else ''}{', '.join(shown)})"

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.phrases, strict=True)
        for box, score, label, phrase in rows:
            yield Detection(tuple(box), score, label, phrase.text)

    @overload
    def __getitem__(self, key: int) -> Detection: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | np.ndarray | Tensor) -> "Detections": ...
    def __getitem__(self, key: Any) -> "Detection | Detections":
        """The detection at an index; the detections of a slice, at indices or of a mask."""
        places = np.arange(len(self))[key.cpu().numpy() if isinstance(key, Tensor) else key]
        chosen = self.select(torch.tensor(places.reshape(-1).tolist(), dtype=torch.long, device=self.scores.device))
        return chosen if places.ndim else next(iter(chosen))

    def __eq__(self, other: object) -> bool:
        """Whether all values are the same."""
        return self._values() == other._values() if isinstance(other, Detections) else NotImplemented

    def _values(self) -> list[Any]:
        return [value.tolist() if isinstance(value, Tensor) else value for value in vars(self).values()]

    def select(self, keep: Tensor) -> "Detections":
        """The detections at the given indices or mask."""
        return self._mapped(lambda values: values[keep])

    def by_class(self) -> "Detections":
        """The detections with a label and a phrase for each class, instead of one for each of its names."""
        numbers, names = zip(*self.prompt.class_names.items(), strict=True)
        labels = torch.tensor([numbers.index(number) for number in self.classes.tolist()], device=self.labels.device)
        merged = replace(self, labels=labels.long(), prompt=Prompt.from_names(names, classes=numbers))
        return replace(merged, token_scores=None, tokens=())

    def above(self, threshold: float) -> "Detections":
        """The detections that score at least ``threshold``."""
        return self.select(self.scores >= threshold)

    def to(self, device: torch.device | str) -> "Detections":
        """The same detections on another device."""
        return self._mapped(lambda values: values.to(device))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Detections":
        changed: dict[str, Any] = {key: change(own) for key, own in vars(self).items() if isinstance(own, Tensor)}
        return replace(self, **changed)

    def filter(self, keep: Callable[[Detection], bool]) -> "Detections":
        """The detections for which ``keep`` is true, such as ``lambda found: found.phrase == "a car"``."""
        return self[[index for index, found in enumerate(self) if keep(found)]]

    def to_dicts(self) -> list[dict[str, Any]]:
        """As the Hugging Face pipeline gives them: ``score``, ``label`` (the phrase), ``box`` in whole pixels."""
        sides = ("xmin", "ymin", "xmax", "ymax")
        boxes = [dict(zip(sides, map(int, found.box), strict=True)) for found in self]
        return [{"score": one.score, "label": one.phrase, "box": box} for one, box in zip(self, boxes, strict=True)]

    def to_supervision(self) -> Any:
        """``supervision.Detections``: ``class_id`` is the label, ``data["class_name"]`` the phrase."""
        boxes, scores, labels = self._arrays()
        data = {"class_name": np.array([phrase.text for phrase in self.phrases], dtype=str)}
        found = _extra("supervision").Detections(xyxy=boxes, confidence=scores, class_id=labels, data=data)
        found.mask = None if self.masks is None else self.masks.cpu().numpy()
        found.tracker_id = None if self.tracks is None else self.tracks.cpu().numpy().copy()
        return found

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with the columns phrase, label, score, x1, y1, x2, y2."""
        boxes, scores, labels = self._arrays()
        columns = ([phrase.text for phrase in self.phrases], labels, scores, *boxes.T)
        return _extra("pandas").DataFrame(dict(zip(COLUMNS, columns, strict=True)))

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | Mapping[str, int]) -> list[dict[str, Any]]:
        """COCO's results: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``score``.

        With masks also ``segmentation`` (see ``to_rle``).

        The ids are those of the annotations that the results are for; ``category_ids`` has one for each phrase, in the
        prompt's order or by text.

        Raises:
            GlipError: a list of another length than the prompt, or no id for a phrase that was found.
        """
        texts = self.prompt.texts
        ids = list(map(category_ids.get, texts) if isinstance(category_ids, Mapping) else category_ids)
        if len(ids) != len(texts) or None in {ids[label] for label in self.labels.tolist()}:
            raise GlipError(f"category_ids: got {category_ids!r:.99}: give one for each of {', '.join(texts)[:99]}")
        boxes = [[left, top, right - left, bottom - top] for left, top, right, bottom in self.boxes.tolist()]
        rows = [{"image_id": image_id, "category_id": ids[found.label], "score": found.score} for found in self]
        masks = [{"segmentation": mask} for mask in self.to_rle()] or [{}] * len(self)
        return [{**row, "bbox": box, **mask} for row, box, mask in zip(rows, boxes, masks, strict=True)]

    def to_rle(self) -> list[dict[str, Any]]:
        """The masks as COCO's compressed run lengths: ``size`` (height, width) and ``counts``."""
        from pycocotools.mask import encode

        masks = self.masks if self.masks is not None else torch.zeros(0)
        coded = [encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks.cpu().numpy()]
        return [{"size": list(self.size), "counts": one["counts"].decode()} for one in coded]

    def to_yolo(self) -> str:
        """Lines of a YOLO label file: label, centre x, centre y, width, height as shares of the image's sides."""
        boxes, _, labels = self._arrays()
        low, high = np.split((boxes / np.tile(self.size[::-1], 2)).clip(0, 1), 2, axis=1)
        rows = zip(labels, np.hstack([(low + high) / 2, high - low]), strict=True)
        return "".join(f"{label} {' '.join(f'{value:.6f}' for value in row)}\n" for label, row in rows)

    def draw(self, image: Any, *, scores: bool = True) -> Image.Image:
        """A copy of the image with a frame and a label for each detection (``glip.visualize.draw``).

        The image is the one they were found in, in any form that a Detector takes.

        Raises:
            ImageError: it cannot be read, or has another size.
        """
        drawn: Image.Image = _above("visualize").draw(self._opened(image), self, scores=scores)
        return drawn

    def crops(self, image: Any) -> list[Image.Image]:
        """The part of the image in each box, out to whole pixels; image and errors as for ``draw``."""
        opened, (boxes, *_) = self._opened(image), self._arrays()
        low = np.floor(boxes[:, :2]).clip(0, np.array(opened.size) - 1)
        corners = np.hstack([low, np.ceil(boxes[:, 2:]).clip(low + 1, opened.size)])
        return [opened.crop(tuple(box)) for box in corners.astype(int).tolist()]

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Copies of boxes, scores and labels."""
        boxes, scores, labels = (value.cpu().numpy().copy() for value in (self.boxes, self.scores, self.labels))
        return boxes, scores, labels

    def _opened(self, image: Any) -> Image.Image:
        opened: Image.Image = _above("data.image").open_any(image)
        if opened.size != self.size[::-1]:
            sizes = [f"{width} x {height}" for width, height in (opened.size, self.size[::-1])]
            raise ImageError(f"image of {sizes[0]} pixels with detections of another of {sizes[1]}: give that one")
        return opened


def _above(module: str) -> Any:
    """A module that itself imports this one, so that it can only be loaded when it is used."""
    return import_module(f"glip.{module}")


def _extra(package: str) -> Any:
    with needs(package):
        return import_module(package)
