"""Swin against timm's, where both compute the same function: maps that need no padding and exceed one window.

Elsewhere they differ by design: timm does not shift a map of one window, and treats padding differently.
``start_vision`` loads timm's weights, so its renaming is tested too.
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
from glip.model.weights import start_vision

SIDE, WINDOW = 256, 4  # maps of 64, 32, 16 and 8 places: multiples of the window, and more than one
WIDTHS, DEPTHS, HEADS = (16, 32, 64, 128), (2, 2, 2, 2), (2, 2, 4, 4)


def test_stages_are_timms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights may come from a timm name, a file, or a folder with one; another model's are refused."""
    oracle = SwinTransformer(
        img_size=SIDE, window_size=WINDOW, embed_dim=WIDTHS[0], depths=DEPTHS, num_heads=HEADS, num_classes=0
    ).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # larger than timm's near-zero start
        x = oracle.patch_embed(pixels := torch.randn(2, 3, SIDE, SIDE))
        expected = [F.layer_norm(x := layer(x), x.shape[-1:]).permute(0, 3, 1, 2) for layer in oracle.layers][1:]
    save_file({name: value.contiguous() for name, value in oracle.state_dict().items()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_kwargs: oracle)
    vision = VisionConfig(widths=WIDTHS, depths=DEPTHS, heads=HEADS, window=WINDOW)
    for source in ("swin", tmp_path, tmp_path / "model.safetensors"):
        model = build(replace(SMALL, vision=vision)).eval()
        start_vision(model, source)
        with torch.no_grad():
            for mine, theirs in zip(model.vision(pixels), expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="are not of this model"):
        start_vision(build(SMALL), tmp_path)
