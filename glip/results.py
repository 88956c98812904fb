"""What was found in one image, and its forms in other tools: supervision, COCO, YOLO, pandas, a drawing, crops.

A package that glip itself does not need is imported when its form is asked for.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from PIL import Image

from glip.errors import GlipError, ImageError
from glip.shapes import Float, Int, Size, Tensor
from glip.text.prompt import Phrase, Prompt

COLUMNS = ("phrase", "label", "score", "x1", "y1", "x2", "y2")  # of a table of detections
_CORNERS = ("xmin", "ymin", "xmax", "ymax")  # of a box in the Hugging Face pipeline
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
    request: for each box the alignment with every token of its caption, named by ``tokens``.
    """

    boxes: Float[Tensor, "det 4"]
    scores: Float[Tensor, " det"]
    labels: Int[Tensor, " det"]
    prompt: Prompt
    size: Size
    token_scores: Float[Tensor, "det tok"] | None = None
    tokens: tuple[str, ...] = ()

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

    def above(self, threshold: float) -> "Detections":
        """The detections that score at least ``threshold``."""
        return self.select(self.scores >= threshold)

    def to(self, device: torch.device | str) -> "Detections":
        """The same detections on another device."""
        return self._mapped(lambda values: values.to(device))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Detections":
        token_scores = None if self.token_scores is None else change(self.token_scores)
        boxes, scores, labels = change(self.boxes), change(self.scores), change(self.labels)
        return replace(self, boxes=boxes, scores=scores, labels=labels, token_scores=token_scores)

    def filter(self, keep: Callable[[Detection], bool]) -> "Detections":
        """The detections for which ``keep`` is true, such as ``lambda found: found.phrase == "a car"``."""
        return self[[index for index, found in enumerate(self) if keep(found)]]

    # ---- in the form of other tools

    def to_dicts(self) -> list[dict[str, Any]]:
        """As the Hugging Face pipeline gives them: ``score``, ``label`` (the phrase), ``box`` in whole pixels."""
        return [
            {"score": score, "label": phrase, "box": dict(zip(_CORNERS, map(int, box), strict=True))}
            for box, score, _, phrase in self
        ]

    def to_supervision(self) -> Any:
        """``supervision.Detections``: ``class_id`` is the label, ``data["class_name"]`` the phrase.

        Raises:
            GlipError: supervision is not installed.
        """
        own = self.to("cpu")
        return _extra("supervision").Detections(
            xyxy=own.boxes.numpy(),
            confidence=own.scores.numpy(),
            class_id=own.labels.numpy(),
            data={"class_name": np.array([phrase.text for phrase in self.phrases], dtype=str)},
        )

    def to_dataframe(self) -> Any:
        """A pandas DataFrame: phrase, label, score, x1, y1, x2, y2.

        Raises:
            GlipError: pandas is not installed.
        """
        own, phrases = self.to("cpu"), [phrase.text for phrase in self.phrases]
        columns = (phrases, own.labels.numpy(), own.scores.numpy(), *own.boxes.numpy().T)
        return _extra("pandas").DataFrame(dict(zip(COLUMNS, columns, strict=True)))

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | Mapping[str, int]) -> list[dict[str, Any]]:
        """COCO's results: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``score``.

        Args:
            image_id: the image's id in the annotations that the results are for.
            category_ids: the id of each phrase there: in the prompt's order, or by text; several may have the same.

        Raises:
            GlipError: a list of another length than the prompt, or a phrase that was found and has no id.
        """
        texts, ids = self.prompt.texts, category_ids
        if not isinstance(ids, Mapping) and len(ids) != len(texts):
            raise GlipError(f"category_ids: got {len(ids)} for {len(texts)} phrases: give one id per phrase")
        rows = []
        for (left, top, right, bottom), score, label, phrase in self:
            own = ids.get(phrase) if isinstance(ids, Mapping) else ids[label]
            if own is None:
                raise GlipError(f"category_ids: no id for {phrase!r}, which was found: give one for each phrase")
            box = [left, top, right - left, bottom - top]
            rows.append({"image_id": image_id, "category_id": own, "bbox": box, "score": score})
        return rows

    def to_yolo(self, *, scores: bool = False) -> str:
        """The lines of a YOLO label file: label, centre x, centre y, width, height, as shares of the image's sides.

        Args:
            scores: end each line with the score, as ultralytics' predictions; what is trained on has none.
        """
        height, width = self.size
        x1, y1, x2, y2 = (self.boxes.double().cpu() / torch.tensor([width, height] * 2)).clamp(0, 1).unbind(1)
        numbers = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, *([self.scores.double().cpu()] if scores else [])]
        rows = zip(self.labels.tolist(), torch.stack(numbers, 1).tolist(), strict=True)
        return "".join(f"{label} {' '.join(f'{value:.6f}' for value in row)}\n" for label, row in rows)

    def draw(self, image: Any, *, scores: bool = True) -> Image.Image:
        """A copy of the image with a frame and a label for each detection, as ``glip.visualize.draw``.

        Args:
            image: the image they were found in: what a Detector takes.
            scores: whether labels carry the score.

        Raises:
            ImageError: one that cannot be read, or of another size.
        """
        drawn: Image.Image = _above("visualize").draw(self._opened(image), self, scores=scores)
        return drawn

    def crops(self, image: Any) -> list[Image.Image]:
        """The part of the image in each box, out to whole pixels; arguments and errors as for ``draw``."""
        opened, cut = self._opened(image), []
        for x1, y1, x2, y2 in self.boxes.tolist():
            left, top = (
                max(0, min(math.floor(low), side - 1)) for low, side in ((x1, opened.width), (y1, opened.height))
            )
            right, bottom = min(math.ceil(x2), opened.width), min(math.ceil(y2), opened.height)
            cut.append(opened.crop((left, top, max(right, left + 1), max(bottom, top + 1))))
        return cut

    def _opened(self, image: Any) -> Image.Image:
        opened: Image.Image = _above("data.image").open_any(image)
        height, width = self.size
        if opened.size != (width, height):
            sizes = f"has {opened.width} x {opened.height} pixels, these detections are of one of {width} x {height}"
            raise ImageError(f"the image {sizes}: give the image that they were found in")
        return opened


def _extra(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise GlipError(f"{package} is not installed: pip install 'glip[{package}]'") from None


def _above(module: str) -> Any:
    """A module that itself imports this one, so that it can only be loaded when it is used."""
    return import_module(f"glip.{module}")
