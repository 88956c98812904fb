"""Shapes are checked while tests run: a wrong one does not pass a function of glip."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from glip.geometry.boxes import clip, iou
from glip.model.heads import BoxHead
from glip.schema import parse

pytestmark = pytest.mark.skipif(find_spec("beartype") is None, reason="beartype is not installed")


def test_wrong_shapes_and_types_are_errors() -> None:
    import jaxtyping

    with pytest.raises(jaxtyping.TypeCheckError):
        clip(torch.zeros(3, 5), (10, 10))
    with pytest.raises(jaxtyping.TypeCheckError):
        iou(torch.zeros(3, 4), torch.zeros(2, 4, dtype=torch.long), inclusive=True)
    with pytest.raises(jaxtyping.TypeCheckError):
        clip(torch.zeros(3, 4), "10 x 10")  # type: ignore[arg-type]


def test_plain_maps_are_parsed_under_the_checker() -> None:
    assert parse(dict[str, Any], {"a": 1}) == {"a": 1}


def test_levels_of_different_size_are_one_batch() -> None:
    boxes, centerness = BoxHead(4, 2)([torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 3, 4)])
    assert boxes.shape == (2, 60, 4) and centerness.shape == (2, 60)
