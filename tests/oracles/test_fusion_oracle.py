"""Fusion against two cross attentions written with full projections, as the paper's equations 4-6 print them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glip.model.fusion import Fusion, _dropout_unscaled, _round_rate

CHANNELS, HIDDEN, WIDTH, HEADS = 12, 20, 32, 4
CLAMP = 50000.0


def fusion(dropout: float) -> Fusion:
    """Random weights large enough for sharp attention, biases and norms that are not their neutral start."""
    torch.manual_seed(0)
    module = Fusion(CHANNELS, HIDDEN, width=WIDTH, heads=HEADS, dropout=dropout, residual=0.2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Two images of 15 places with captions of 7 and 4 tokens."""
    torch.manual_seed(1)
    image = torch.randn(2, 15, CHANNELS, requires_grad=True)
    text = torch.randn(2, 7, HIDDEN, requires_grad=True)
    return image, text, torch.arange(7)[None] < torch.tensor([7, 4])[:, None]


def fuse_by_hand(module: Fusion, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """With every query, key, value and output projected in full, and the release's masks and clamps."""
    image = F.layer_norm(image, (CHANNELS,), module.norm_image.weight, module.norm_image.bias, 1e-5)
    text = F.layer_norm(text, (HIDDEN,), module.norm_text.weight, module.norm_text.bias, 1e-5)

    def split(x: Tensor) -> Tensor:
        return x.view(2, -1, HEADS, WIDTH // HEADS).transpose(1, 2)  # batch head place part

    query = split(module.query(image) * (WIDTH // HEADS) ** -0.5)
    scores = (query @ split(module.key(text)).transpose(2, 3)).clamp(-CLAMP, CLAMP)  # batch head loc tok
    bias = torch.where(mask, 1.0, -9e15)[:, None, None, :]
    to_image = (scores + bias).softmax(-1)
    turned = scores.transpose(2, 3)
    to_text = (turned - turned.amax(-1, keepdim=True)).clamp(-CLAMP, CLAMP).softmax(-1)
    if module.training:  # drawn in the order and layout of the module: token rows of locations, for both
        rate = _round_rate(module.dropout)
        to_image = _dropout_unscaled(to_image.transpose(2, 3).contiguous(), rate).transpose(2, 3) / (1 - rate)
        to_text = _dropout_unscaled(to_text, rate) / (1 - rate)
    mixed_text = (to_image @ split(module.value_text(text))).transpose(1, 2).flatten(2)
    mixed_image = (to_text @ split(module.value_image(image))).transpose(1, 2).flatten(2)
    fused_image = image + module.gamma_image * module.out_image(mixed_text)
    return fused_image, text + module.gamma_text * module.out_text(mixed_image)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_output_and_gradients_are_those_of_two_attentions(dropout: float) -> None:
    """Also with dropout, whose rows no longer sum to one: the biases of the values must follow."""
    module = fusion(dropout).train()
    oracle = copy.deepcopy(module)
    image, text, mask = inputs()
    torch.manual_seed(2)
    ours = module(image, text, mask)
    torch.manual_seed(2)
    expected = fuse_by_hand(oracle, image, text, mask)
    directions = [torch.randn_like(part) for part in expected]
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    found = gradients(module, (image, text), ours, directions)
    wanted = gradients(oracle, (image, text), expected, directions)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def gradients(
    module: Fusion, leaves: tuple[Tensor, ...], outputs: tuple[Tensor, ...], directions: list[Tensor]
) -> tuple[Tensor, ...]:
    total = sum((part * direction).sum() for part, direction in zip(outputs, directions, strict=True))
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, [*leaves, *module.parameters()])


@pytest.mark.parametrize("shape", [(401, 997), (1,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_or_blanks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """By chance, and for each entry anew, though one draw decides several."""
    torch.manual_seed(0)
    x = torch.rand(shape, dtype=dtype) + 1
    dropped = _dropout_unscaled(x, _round_rate(0.3))
    assert ((dropped == 0) | (dropped == x)).all()
    if x.numel() < 1000:
        return
    gone = (dropped == 0).flatten().float()
    for place in range(4):
        assert gone[place::4].mean().item() == pytest.approx(0.3, abs=0.01)
    for distance in range(1, 9):
        assert (gone[distance:] * gone[:-distance]).mean().item() == pytest.approx(0.09, abs=0.005)


def test_dropout_is_off_in_evaluation_and_at_rate_zero() -> None:
    image, text, mask = inputs()
    strong, none = fusion(0.9).eval(), fusion(0.0).train()
    for one, other in zip(strong(image, text, mask), none(image, text, mask), strict=True):
        assert torch.equal(one, other)
    assert _round_rate(0.1) == pytest.approx(0.1, abs=1e-5)


def test_masked_tokens_do_not_reach_the_image() -> None:
    module = fusion(0.0).eval()
    image, text, mask = inputs()
    changed = torch.where(mask[..., None], text, text + 5)
    assert torch.equal(module(image, text, mask)[0], module(image, changed, mask)[0])
    before, after = (module(image, words, mask)[1][mask] for words in (text, changed))
    assert torch.equal(before, after)


def test_training_keeps_the_score_matrix_twice() -> None:
    """As the two softmaxes; the guard against overflow keeps no third copy, yet acts."""
    module, (image, text, mask) = fusion(0.0), inputs()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = module(image, text, mask)
    scores = 2 * HEADS * text.shape[1] * image.shape[1]
    assert list(kept.values()).count(scores) == 2
    assert all(part.requires_grad for part in outputs)


def test_scores_are_guarded_against_overflow() -> None:
    """As in the release: all tokens beyond the guard weigh the same. What is guarded keeps its gradient."""
    module, (image, text, mask) = fusion(0.0).eval(), inputs()
    with torch.no_grad():
        module.query.weight.mul_(1e4)
    ours = module(image, text, mask)
    for mine, theirs in zip(ours, fuse_by_hand(module, image, text, mask), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(ours[0].square().sum(), image)
    assert gradient.isfinite().all()
