"""Class names and what is asked for each: several prompts may mean one class, and negatives are asked but not kept.

As YAML, where a class without prompts is asked by its name::

    names:
      car: [a car, a van, a pickup truck]
      person: {prompts: [a person, a cyclist], threshold: 0.4}
      dog:
    negatives: [a statue, a poster of a person]

A list of names is enough where they are the prompts.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from glip.config import Name, Share, option
from glip.data.records import is_visible, read_words
from glip.data.sets import check_exists
from glip.data.yolo import YAML
from glip.experiment import read_yaml
from glip.geometry.boxes import iou
from glip.schema import checked, parse
from glip.structures import Detections
from glip.text.names import split_names
from glip.text.prompt import Prompt

Given = str | Path | Sequence[str] | Mapping[str, Any]
_LISTS = (".txt", ".names")  # files with a name on each line


@checked
class NamedClass:
    """What is asked for a class, and the lowest score of its boxes (None: as for the others)."""

    prompts: tuple[Name, ...] = option(..., "texts that mean the class", min_length=1)
    threshold: Share | None = None


@checked
class Ontology:
    """The classes by name, and what is asked beside them: a negative's box removes a worse box of a class there."""

    names: dict[str, NamedClass] = option(..., "the classes", min_length=1)
    negatives: tuple[Name, ...] = ()

    def __post_init__(self) -> None:
        asked = [*(text for one in self.names.values() for text in one.prompts), *self.negatives]
        times = Counter(" ".join(text.casefold().split()) for text in asked)
        blank = next((text for text in [*self.names, *asked] if not is_visible(text)), None)
        twice = next((text for text, count in times.items() if count > 1), None)
        if blank is not None or twice is not None:
            problem = f"{blank!r} has no letter" if twice is None else f"{twice!r} is asked twice: leave one out"
            raise ValueError(f"names: {problem}")

    @cached_property
    def prompt(self) -> Prompt:
        """All prompts as one; the class of a negative is the number after the last class."""
        texts = [(text, number) for number, one in enumerate(self.names.values()) for text in one.prompts]
        texts += [(text, len(self.names)) for text in self.negatives]
        return Prompt.from_names([text for text, _ in texts], classes=[number for _, number in texts])

    def thresholds(self, usual: float, stored: Mapping[str, float]) -> dict[str, float]:
        """The lowest score of each class: its own, else that stored for its name or a prompt of it, else the usual."""
        known = {text.lower(): value for text, value in stored.items()}
        found = {}
        for name, one in self.names.items():
            own = [known[text.lower()] for text in (name, *one.prompts) if text.lower() in known]
            found[name] = one.threshold if one.threshold is not None else next(iter(own), usual)
        return found

    def without_negatives(self, found: Detections, nms: float) -> Detections:
        """Detections of the classes, without those that a better one of a negative overlaps by more than ``nms``."""
        wanted = found.classes < len(self.names)
        against = found.select(~wanted)
        overlap = iou(found.boxes, against.boxes, inclusive=True) > nms
        return found.select(wanted & ~(overlap & (against.scores > found.scores[:, None])).any(1))


def read_ontology(given: Given) -> Ontology:
    """An ontology from a YAML or JSON file, a text file with a name on each line, names in a text, or plain values.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: a name or prompt that occurs twice or has no letter, no name, or a threshold outside 0..1.
    """
    tree, at = given, ""
    if isinstance(given, str | Path):
        ending, is_file = Path(given).suffix.lower(), os.path.isfile(given)
        at = str(given) if is_file else at
        if ending in (*YAML, ".json"):
            check_exists(Path(given), "The file of names {!r} is not there")
            tree = read_yaml(Path(given))
        elif is_file or ending in _LISTS:
            tree = [line.strip() for line in read_words(Path(given)) if line.strip()]
        else:
            tree = split_names(str(given))
    tree = tree if isinstance(tree, Mapping) else {"names": tree}
    return parse(Ontology, {**tree, "names": _classes(tree["names"], at)} if "names" in tree else tree, at=at)


def _classes(given: Any, at: str) -> Any:
    """Each class as a map with its prompts; what is no list or map of names is left as it is, to be refused."""
    if not isinstance(given, list | tuple | Mapping):
        return given
    names = parse(
        tuple[Name, ...], list(given), at=at and f"{at}.names"
    )  # YAML reads the names no and 1 as other values
    if not isinstance(given, Mapping):
        given = {name: [name] * count for name, count in Counter(names).items()}  # listed twice: asked twice, refused
    classes = {}
    for name, value in given.items():
        listed = [value] if isinstance(value, str) else value
        own = {"prompts": listed} if isinstance(listed, list | tuple) else listed or {}
        classes[name] = {"prompts": [name], **own} if isinstance(own, Mapping) else own
    return classes
