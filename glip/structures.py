"""The nouns of glip: what travels between files is one of these frozen records, never a bare dict.

In the order data flows: Phrase and Prompt (words), Sample (one annotated image), Batch and Target (what the network
reads), TextFeatures, ImageFeatures and Outputs (what it computes), Detections (what a person receives).
Boxes are absolute xyxy pixels everywhere; masks are Bool with True = keep.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from glip.errors import GlipError
from glip.shapes import Bool, Float, Int, Tensor

Span = tuple[int, int]

NEGATIVE = -1  # the class of a phrase that takes part in the prompt but is never returned
# What may not continue a word on either side: not the letters of scripts that write words without spaces.
LETTER = "[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
SEPARATOR = ". "  # between names, as in the 2022 release (DATASETS.SEPARATION_TOKENS)


@dataclass(frozen=True)
class Phrase:
    """A thing named in a caption: its text and the character ranges [start, end) that name it."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Prompt:
    """A caption and the phrases in it that are to be found.

    ``classes[i]`` is the class of phrase ``i``: its own index unless the caller maps several names to one class, or
    ``NEGATIVE`` for a phrase that only competes. Phrases know their characters by construction; nothing is ever
    found again by searching a string, so "car" cannot be mistaken for the start of "cart".
    """

    caption: str
    phrases: tuple[Phrase, ...]
    classes: tuple[int, ...] = ()
    is_list: bool = False  # made of independent names, so it may be split into chunks

    def __post_init__(self) -> None:
        if not self.phrases:
            raise GlipError("prompt has no phrase: give at least one name, such as 'a red bus. a cyclist'")
        if not self.classes:
            object.__setattr__(self, "classes", tuple(range(len(self.phrases))))
        if len(self.classes) != len(self.phrases):
            raise GlipError(
                f"classes: got {len(self.classes)} for {len(self.phrases)} phrases: give one class per phrase"
            )
        if not self.caption.isascii() and any("\ud800" <= letter <= "\udfff" for letter in self.caption):
            raise GlipError(f"prompt {self.caption!r} holds characters that are not UTF-8: write it in UTF-8")
        for phrase in self.phrases:
            _check_phrase(phrase, self.caption)

    @classmethod
    def from_names(
        cls, names: Sequence[str], *, negatives: Sequence[str] = (), classes: Sequence[int] | None = None
    ) -> "Prompt":
        """Join names to a caption: ``["person", "stop sign"]`` -> "person. stop sign".

        Args:
            names: what to find; label ``i`` of a detection is ``names[i]``. Duplicates stay separate labels.
            negatives: names that take part and may win a region, but are not returned.
            classes: maps names to classes (for instance synonyms to one class); suppression is per class.

        Raises:
            ValueError: no name, or an empty one.
        """
        if isinstance(names, str):
            raise GlipError(f"names: got the string {names!r}: pass a list of names, or use Prompt.parse")
        caption = ""
        phrases: list[Phrase] = []
        for index, name in enumerate([*names, *negatives]):
            if not name.strip():
                raise GlipError(f"name {index} of the prompt is empty: remove it or write what to look for")
            caption += SEPARATOR if phrases else ""
            phrases.append(Phrase(name, ((len(caption), len(caption) + len(name)),)))
            caption += name
        own = tuple(classes) if classes is not None else tuple(range(len(names)))
        if len(own) != len(names):
            raise GlipError(f"classes: got {len(own)} for {len(names)} names: give one class per name")
        if any(number < 0 for number in own):
            raise GlipError(f"classes: got {min(own)}; classes count from 0, use negatives= for names not returned")
        return cls(caption, tuple(phrases), own + (NEGATIVE,) * len(negatives), is_list=True)

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """Split "a red bus. a cyclist." at ". " and " . " and a trailing dot into names.

        A dot inside a word is kept ("7.5 cm"); a name that itself has a dot and a space ("St. Bernard") must be
        passed in a list.

        Raises:
            ValueError: nothing is left to look for.
        """
        names = [part.strip() for part in re.split(r"\.+(?:\s+|$)", text)]
        names = [name for name in names if name]
        if not names:
            raise GlipError(f"prompt {text!r} names nothing: write what to look for, such as 'a red bus. a cyclist'")
        return cls.from_names(names)

    @classmethod
    def from_caption(cls, caption: str, phrases: Sequence[str | Sequence[Any]] | None = None) -> "Prompt":
        """A free sentence and the things in it: each a text that occurs in it, a span, or several spans.

        A text stands for its next whole-word occurrence after the phrase given before it (else its first one), so
        phrases listed in reading order find their own words, also when a word occurs twice. Without ``phrases`` the
        noun phrases of the caption are taken.

        Raises:
            ValueError: a text that is not in the caption, a span outside it, or no phrase.
        """
        if phrases is None:
            from glip.text.phrases import noun_phrases  # late: the one arrow that points up (docs/decisions.md)

            phrases = noun_phrases(caption)
            if not phrases:
                raise GlipError(f"caption {caption[:60]!r} names nothing: say which things, or use a list of names")
        if isinstance(phrases, str):
            raise GlipError(f"phrases: got the string {phrases!r}: pass a list of the things in the caption")
        found, position = list[Phrase](), 0
        for item in phrases:
            spans = (_locate(caption, item, position),) if isinstance(item, str) else _spans(item)
            position = spans[-1][1] if isinstance(item, str) else position
            found.append(Phrase(" ".join(caption[start:end] for start, end in spans), spans))
        return cls(caption, tuple(found))

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each phrase, in the caller's order."""
        return tuple(phrase.text for phrase in self.phrases)


def _locate(caption: str, text: str, start: int) -> Span:
    text = text.strip()
    if not text:
        raise GlipError("a phrase of the caption is empty: remove it or write the words it stands for")
    before = rf"(?<!{LETTER})" if re.match(LETTER, text) else ""
    after = rf"(?!{LETTER})" if re.match(LETTER, text[-1]) else ""
    pattern = re.compile(before + re.escape(text) + after, re.IGNORECASE)
    match = pattern.search(caption, start) or pattern.search(caption)
    if match is None:
        raise GlipError(f"phrase {text!r} does not occur in the caption {caption!r}: give words of it, or a span")
    return match.span()


def _spans(item: Sequence[Any]) -> tuple[Span, ...]:
    listed: Sequence[Any] = item if item and isinstance(item[0], Sequence) else [item]
    if not all(len(span) == 2 for span in listed):
        raise GlipError(f"phrase {item!r} is no text and no span: give words, (start, end), or a list of such pairs")
    return tuple((int(start), int(end)) for start, end in listed)


def _check_span(span: Span, caption: str) -> None:
    start, end = span
    if not 0 <= start < end <= len(caption):
        raise GlipError(
            f"span [{start}, {end}) lies outside the caption of {len(caption)} characters: "
            f"a span needs 0 <= start < end <= {len(caption)}"
        )


def _check_phrase(phrase: Phrase, caption: str) -> None:
    if not phrase.spans:
        raise GlipError(f"phrase {phrase.text!r} has no span: say which characters of the caption name it")
    for span in phrase.spans:
        _check_span(span, caption)


@dataclass(frozen=True)
class TarMember:
    """An image inside a tar: the bytes [start, start + length) of the archive, and the member's name."""

    archive: Path
    name: str
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


@dataclass(frozen=True)
class Sample:
    """One annotated image, from a reader to the processor.

    A detection set gives ``vocabulary`` (all its names) and no prompt; phrasing then writes the prompt. A grounding
    set gives the prompt. ``box_phrases[i]`` lists what names box ``i``: indices into the prompt's phrases when there
    is a prompt, else into the vocabulary.

    Args:
        image: a file, a member of an archive, or the loaded image.
        boxes: xyxy in pixels of the image.
        box_phrases: what names each box.
        vocabulary: all names of a detection set.
        prompt: caption and phrases of a grounding set.
        caption: a caption whose phrases nobody has looked for yet; such a sample has no boxes.
        image_id: the image's id in its set.
        size: (width, height) as the annotations state it, when they do.
        crowd: boxes (indices) that mark a group, not a thing; nothing is learned from them.
        absent: names (of the vocabulary) that are surely absent; None where every name without a box is.
        incomplete: names of which more may be in the image than have boxes, so that they cannot be asked for.
        scores: of pseudo-labels, one for each box; empty for boxes that people drew. In training they weigh the losses.
        located: whether the boxes also teach where boxes end, or only what is where.
        kinds: of each phrase of the prompt, the groups of tables, such as Flickr30K's people; empty where unknown.
    """

    image: Path | TarMember | Image.Image
    boxes: Float[Tensor, "box 4"]
    box_phrases: tuple[tuple[int, ...], ...]
    vocabulary: tuple[str, ...] = ()
    prompt: Prompt | None = None
    caption: str = ""
    image_id: int | str = 0
    size: tuple[int, int] | None = None
    crowd: tuple[int, ...] = ()
    absent: tuple[int, ...] | None = None
    incomplete: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    box_loss: bool = True
    kinds: tuple[tuple[str, ...], ...] = ()

    def keep(self, chosen: Sequence[int]) -> "Sample":
        """The sample with only some of its boxes, by index, in that order."""
        place = {index: number for number, index in enumerate(chosen)}
        return replace(
            self,
            boxes=self.boxes[list(chosen)],
            box_phrases=tuple(self.box_phrases[index] for index in chosen),
            crowd=tuple(place[index] for index in self.crowd if index in place),
            scores=tuple(self.scores[index] for index in chosen) if self.scores else (),
        )


@dataclass(frozen=True)
class Target:
    """What should be found in one image: boxes in resized pixels and the tokens that name each.

    ``weights`` scale the losses of each box, None for 1; where ``located`` is False boxes teach their words only.
    """

    boxes: Float[Tensor, "box 4"]
    positive_map: Bool[Tensor, "box tok"]
    weights: Float[Tensor, " box"] | None = None
    box_loss: bool = True

    def to(self, device: torch.device | str) -> "Target":
        """The same target on another device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Target(self.boxes.to(device), self.positive_map.to(device), weights, self.box_loss)


@dataclass(frozen=True)
class TextBatch:
    """Tokenized captions, padded to the longest of the batch, and which tokens name which phrase.

    ``phrase_tokens[i]`` holds for each phrase of caption ``i`` the weight of every token in the phrase's score: rows
    sum to one, so a phrase's score is the (weighted) mean over its tokens.
    """

    input_ids: Int[Tensor, "batch tok"]
    attention_mask: Bool[Tensor, "batch tok"]
    phrase_tokens: tuple[Float[Tensor, "_phrase tok"], ...]
    prompts: tuple[Prompt, ...]

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same captions on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            phrase_tokens=tuple(row.to(device) for row in self.phrase_tokens),
        )


@dataclass(frozen=True)
class ImageBatch:
    """Normalized images, zero-padded right and bottom to one size; sizes are (height, width) in pixels."""

    pixels: Float[Tensor, "batch 3 height width"]
    resized: tuple[tuple[int, int], ...]
    original: tuple[tuple[int, int], ...]

    def to(self, device: torch.device | str) -> "ImageBatch":
        """The same images on another device."""
        return replace(self, pixels=self.pixels.to(device))


@dataclass(frozen=True)
class Batch:
    """All the network reads: images, captions and, in training, one target per image."""

    images: ImageBatch
    text: TextBatch
    targets: tuple[Target, ...] = ()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.images.to(device), self.text.to(device), tuple(t.to(device) for t in self.targets))


@dataclass(frozen=True)
class TextFeatures:
    """What the language model says of each token, before fusion."""

    hidden: Float[Tensor, "batch tok chan"]
    attention_mask: Bool[Tensor, "batch tok"]


@dataclass(frozen=True)
class Outputs:
    """What the network says of each location; levels P3..P7 are flattened (y, x) and concatenated.

    ``level_sizes`` are the (height, width) of each level, so that ``sum(h * w)`` is the length of axis ``loc``.
    """

    token_logits: Float[Tensor, "batch loc tok"]
    box_deltas: Float[Tensor, "batch loc 4"]
    centerness: Float[Tensor, "batch loc"]
    anchors: Float[Tensor, "loc 4"]
    level_sizes: tuple[tuple[int, int], ...]


class Detection(NamedTuple):
    """One found thing, as iteration over Detections yields it."""

    box: tuple[float, float, float, float]
    score: float
    label: int
    phrase: str


@dataclass(frozen=True)
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
    size: tuple[int, int]
    token_scores: Float[Tensor, "det tok"] | None = None
    tokens: tuple[str, ...] = field(default=())

    @property
    def classes(self) -> Int[Tensor, " det"]:
        """The class of each detection, after the prompt's mapping."""
        return torch.tensor(self.prompt.classes, device=self.labels.device)[self.labels]

    @property
    def phrases(self) -> list[Phrase]:
        """The phrase of each detection, with its text and spans."""
        return [self.prompt.phrases[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.phrases, strict=True)
        for box, score, label, phrase in rows:
            yield Detection(tuple(box), score, label, phrase.text)

    def select(self, keep: Tensor) -> "Detections":
        """The detections at the given indices or mask."""
        token_scores = None if self.token_scores is None else self.token_scores[keep]
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            token_scores=token_scores,
        )

    def to(self, device: torch.device | str) -> "Detections":
        """The same detections on another device."""
        token_scores = None if self.token_scores is None else self.token_scores.to(device)
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
            token_scores=token_scores,
        )

    def above(self, threshold: float) -> "Detections":
        """The detections that score at least ``threshold``."""
        return self.select(self.scores >= threshold)
