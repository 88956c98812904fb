"""The options of a call of the Detector: how boxes are chosen, checked once."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import torch

from glip.config import InferenceConfig, Share
from glip.errors import GlipError
from glip.schema import did_you_mean, parse
from glip.shapes import Float, Tensor
from glip.text.prompt import Prompt

Thresholds = float | Sequence[float] | Mapping[str, float]


class DetectOptions(TypedDict, total=False):
    """How boxes are chosen, the keyword arguments of a call.

    Args:
        threshold: lowest score returned, 0..1; or one for each phrase, in order or by its text, such as
            ``{"a cat": 0.3}``. Default, also for phrases that are not named: the task's, else the one stored with the
            model for the phrase (``ModelConfig.thresholds``), else the model's one for all.
        nms: IoU above which the lower-scored of two boxes of a class is removed; 1 keeps all.
        max_detections: maximum detections per image, 0 for no limit.
        batch_size: images (or chunks of a long list of names) computed at once; default 4.
        token_scores: also give each box's alignment with every token of its caption.
    """

    threshold: Thresholds | None
    nms: float | None
    max_detections: int | None
    batch_size: int
    token_scores: bool


def read_thresholds(
    given: Thresholds | None, prompt: Prompt, usual: float | Sequence[float], stored: Mapping[str, float]
) -> Float[Tensor, " phrase"]:
    """The lowest score of each phrase: as given, else as ``stored`` for its text, else the ``usual`` one.

    Letter case does not count in stored texts, since the model does not see it.

    Raises:
        GlipError: another count than the prompt's, a phrase that it does not have, or a score outside 0..1.
    """
    texts, own = prompt.texts, torch.tensor(usual).expand(len(prompt.phrases))
    if stored:
        known = {text.lower(): value for text, value in stored.items()}
        own = torch.tensor([known.get(text.lower(), value) for text, value in zip(texts, own.tolist(), strict=True)])
    if given is None:
        return own
    values: Any = parse(object, given)
    if isinstance(values, dict):
        for phrase in values.keys() - set(texts):
            hint = did_you_mean(phrase, texts) or f": it has {', '.join(map(repr, texts[:10]))}"
            raise GlipError(f"threshold: {phrase!r} is no phrase of the prompt{hint}")
        values = [values.get(text, value) for text, value in zip(texts, own.tolist(), strict=True)]
    elif not isinstance(values, list):
        values = [parse(Share, values, at="threshold")] * len(texts)
    if len(values) != len(texts):
        raise GlipError(f"threshold: got {len(values)} for {len(texts)} phrases: give one number, or one per phrase")
    return torch.tensor(parse(tuple[Share, ...], values, at="threshold"))


def with_options(config: InferenceConfig, **given: Any) -> InferenceConfig:
    """The model's inference options with those of a call; None leaves the model's.

    Raises:
        GlipError: a value out of range.
    """
    changed = {name: value for name, value in given.items() if value is not None}
    return parse(InferenceConfig, asdict(config) | changed) if changed else config
