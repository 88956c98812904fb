"""Products by oneDNN are those of torch, within the rounding of float32, and are taken only where they help."""

import pytest
import torch
from torch.nn import functional as F

from glip.model import products
from glip.model.products import Linear, by_onednn, linear
from glip.structures import Prompt


@pytest.fixture
def onednn(monkeypatch):
    """As on an AMD processor with AVX-512."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_is_onednn_faster", lambda: True)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (0,)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(onednn, shape, bias):
    layer, x = Linear(48, 32, bias=bias), torch.randn(*shape, 48)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


def test_transposed_views(onednn):
    first, second = torch.randn(300, 64), torch.randn(64, 500)
    with torch.no_grad():
        torch.testing.assert_close(linear(first, second.T), first @ second, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(linear(second.T, first), second.T @ first.T, rtol=1e-5, atol=1e-4)


def test_torch_chooses_where_it_must(onednn):
    x = torch.randn(4, 8)
    assert not by_onednn(x), "gradients are wanted"
    with torch.no_grad():
        assert by_onednn(x) and not by_onednn(x.bfloat16()) and not by_onednn(x.double())
        assert not by_onednn(x.to("meta"))
        with torch.autocast("cpu"):
            assert not by_onednn(x)


def test_a_model_gives_the_same_by_either_library(onednn, tiny_detector, image, monkeypatch):
    batch = tiny_detector.processor([image, image.rotate(180)], [Prompt.parse("a red bus. a dog")] * 2)
    with torch.no_grad():
        ours = tiny_detector.model(batch)
        monkeypatch.setattr(products, "_is_onednn_faster", lambda: False)
        theirs = tiny_detector.model(batch)
    for name in ("token_logits", "box_deltas", "centerness"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-3, atol=1e-4)
