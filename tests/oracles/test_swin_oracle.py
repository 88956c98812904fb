"""Swin against timm's, where both compute the same function: maps that need no padding and exceed one window.

Elsewhere they differ by design: timm does not shift a map of one window, and treats padded places differently.
``timm_weights`` is what carries timm's weights over, so its renaming is tested too.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small import SMALL
from timm.models.swin_transformer import SwinTransformer

from glip.config import VisionConfig
from glip.errors import CheckpointError
from glip.model.glip import build
from glip.model.vision import Swin, timm_weights
from glip.model.weights import start_vision

SIDE, WINDOW = 256, 4  # maps of 64, 32, 16 and 8 places: multiples of the window, and more than one
WIDTHS, DEPTHS, HEADS = (16, 32, 64, 128), (2, 2, 2, 2), (2, 2, 4, 4)


@pytest.fixture
def oracle() -> SwinTransformer:
    """timm's Swin with random weights of some size in place of its near-zero start."""
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=SIDE, window_size=WINDOW, embed_dim=WIDTHS[0], depths=DEPTHS, num_heads=HEADS, num_classes=0
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_stages_are_timms(oracle: SwinTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_kwargs: oracle)
    ours = Swin(WIDTHS, DEPTHS, HEADS, window=WINDOW, drop_path=0.0).eval()
    missing, unexpected = ours.load_state_dict(timm_weights("swin"), strict=False)
    assert not unexpected
    assert all(name.startswith("norms.") for name in missing)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = ours(pixels)
        x = oracle.patch_embed(pixels)
        expected = []
        for layer in oracle.layers:
            x = layer(x)
            expected.append(F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))
    for mine, theirs in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_weights_of_timm_may_be_a_file(oracle: SwinTransformer, tmp_path: Path) -> None:
    """Whatever can be downloaded can be given: a file, or a folder with one; another model's is refused."""
    save_file({name: value.contiguous() for name, value in oracle.state_dict().items()}, tmp_path / "model.safetensors")
    vision = VisionConfig(widths=WIDTHS, depths=DEPTHS, heads=HEADS, window=WINDOW)
    model = build(replace(SMALL, vision=vision))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        torch.nn.init.zeros_(model.vision.patch.weight)
        start_vision(model, source)
        assert torch.equal(model.vision.patch.weight, oracle.patch_embed.proj.weight)
    with pytest.raises(CheckpointError, match="are not of this model"):
        start_vision(build(SMALL), tmp_path)
