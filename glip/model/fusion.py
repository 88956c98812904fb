"""Early fusion: image and text attend to each other (paper section 3.2, equations 4-6).

One score matrix S between locations and tokens serves both ways: softmax over tokens for the image, over locations
for the text. With few tokens it is far cheaper to multiply the text side into the projection weights first:
S_h = (v W_q) (l W_k)^T = v (W_q (l W_k)^T), and likewise both outputs; the numbers are the same.
"""

import math

import torch
from torch import nn

from glip.model.products import Linear, by_onednn, linear
from glip.shapes import Bool, Float, Tensor

_CLAMP = 50000.0  # the release's guard against overflow in half precision
_CHANCES = 2**16  # dropout draws one of this many numbers for each entry
_SCORES = 4_000_000  # scores computed at once, 16 MB: all heads of a short caption, one head of 80 names


class Gate(nn.Module):
    """``old + tanh(g) * (new - old)`` with g 0 at the start: what makes ``new`` then has no effect, and g learns first.

    As Flamingo adds new layers to a trained model (Alayrac et al. 2022, arXiv 2204.14198, section 2.2).
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, old: Float[Tensor, "*any"], new: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return old + self.value.tanh() * (new - old)


class Fusion(nn.Module):
    """Two-way cross attention; the residuals start from the *normalized* inputs, as in the release."""

    def __init__(self, channels: int, hidden: int, *, width: int, heads: int, dropout: float, residual: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.scale = 1.0 / math.sqrt(width // heads)
        self.norm_image = nn.LayerNorm(channels)
        self.norm_text = nn.LayerNorm(hidden)
        self.query = Linear(channels, width)  # of the image
        self.key = Linear(hidden, width)  # of the text
        self.value_image = Linear(channels, width)
        self.value_text = Linear(hidden, width)
        self.out_image = Linear(width, channels)
        self.out_text = Linear(width, hidden)
        self.gamma_image = nn.Parameter(torch.full((channels,), residual))
        self.gamma_text = nn.Parameter(torch.full((hidden,), residual))
        for projection in (self.query, self.key, self.value_image, self.value_text, self.out_image, self.out_text):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        image: Float[Tensor, "batch loc chan"],
        text: Float[Tensor, "batch tok hidden"],
        attention_mask: Bool[Tensor, "batch tok"],
    ) -> tuple[Float[Tensor, "batch loc chan"], Float[Tensor, "batch tok hidden"]]:
        if not by_onednn(image) or len(image) == 1:  # in this order: an exported length would be fixed
            return self._fuse(image, text, attention_mask)
        each = zip(image.split(1), text.split(1), attention_mask.split(1), strict=True)  # it multiplies no batches
        images, texts = zip(*(self._fuse(*one) for one in each), strict=True)
        return torch.cat(images), torch.cat(texts)

    def _fuse(
        self, image: Tensor, text: Tensor, attention_mask: Tensor
    ) -> tuple[Float[Tensor, "batch loc chan"], Float[Tensor, "batch tok hidden"]]:
        image, text = self.norm_image(image), self.norm_text(text)
        rate = _round_rate(self.dropout) if self.training else 0.0
        keys = self._split(self.key(text)) * self.scale
        values = self._split(self.value_text(text)) / (1 - rate)
        # A few heads at a time: S then stays in the processor's cache, and no large temporaries are made, whose memory
        # the system must clear page by page. S of all heads is 112 MB for 80 names and an image of 800 x 1088.
        together = self.heads  # compiled: a loop would compile anew for each size
        if not torch.compiler.is_compiling():
            together = max(1, _SCORES // (image.shape[0] * image.shape[1] * text.shape[1]))
        read_image: list[Tensor] = []
        read_text: Tensor = self.out_image.bias
        for first in range(0, self.heads, together):
            heads = slice(first, first + together)
            to_image, to_text = self._attention(heads, keys[:, heads], image, attention_mask)
            to_image, to_text = _dropout_unscaled(to_image, rate), _dropout_unscaled(to_text, rate)
            read_text = read_text + self._read_text(heads, to_image, values[:, heads])
            read_image.append(self._read_image(heads, to_text, image))
        gathered = torch.cat(read_image, 1) / (1 - rate)
        fused_image = image + self.gamma_image * read_text
        fused_text = text + self.gamma_text * self.out_text(gathered.transpose(1, 2).flatten(2))
        return fused_image, fused_text

    def _attention(
        self, heads: slice, keys: Tensor, image: Tensor, attention_mask: Tensor
    ) -> tuple[Float[Tensor, "batch head tok loc"], Float[Tensor, "batch head tok loc"]]:
        """Softmax over tokens, for the image, and over locations, for the text.

        Before the softmax over locations the release subtracts each row's maximum and clamps at -50000. Softmax
        subtracts the maximum itself, and e^-50000 is 0 with or without the clamp.
        """
        scores = self._scores(heads, keys, image)
        to_text = scores.softmax(3)
        # In place: nothing reads the unmasked scores again, not even the backward pass of softmax.
        to_image = scores.masked_fill_(~attention_mask[:, None, :, None], -torch.inf).softmax(2)
        return to_image.to(image.dtype), to_text.to(image.dtype)

    def _scores(self, heads: slice, keys: Tensor, image: Tensor) -> Float[Tensor, "batch head tok loc"]:
        """S for some heads, in the type of the weights: float32 under autocast too."""
        weight = self.query.weight.view(self.heads, -1, image.shape[-1])[heads]  # head part chan
        bias = self.query.bias.view(self.heads, -1, 1)[heads]
        folded = keys @ weight  # batch head tok chan
        constant = (keys @ bias).flatten(1, 2).to(weight.dtype)  # batch (head tok) 1
        with torch.autocast(image.device.type, enabled=False):
            flat = folded.flatten(1, 2).to(weight.dtype)
            scores = _times(flat, image.to(weight.dtype).transpose(1, 2), constant)
        # Without its gradient, for which torch would keep a copy of all scores, a third of this layer's memory, though
        # such large scores occur only in a broken run.
        scores.detach().clamp_(-_CLAMP, _CLAMP)
        return scores.view(*folded.shape[:3], -1)

    def _read_text(self, heads: slice, attention: Tensor, values: Tensor) -> Float[Tensor, "batch loc chan"]:
        """What some heads add to the image, without the bias of the output."""
        weight = self.out_image.weight.view(-1, self.heads, values.shape[-1]).permute(1, 2, 0)[heads]  # head part chan
        folded = (values @ weight).flatten(1, 2)  # batch (head tok) chan
        return _times(folded.transpose(1, 2), attention.flatten(1, 2)).transpose(1, 2)

    def _read_image(self, heads: slice, attention: Tensor, image: Tensor) -> Float[Tensor, "batch head tok part"]:
        gathered = _times(attention.flatten(1, 2), image)  # batch (head tok) chan
        gathered = gathered.view(*attention.shape[:3], -1)
        weight = self.value_image.weight.view(self.heads, -1, image.shape[-1])[heads].transpose(1, 2)  # head chan part
        # After dropout the rows no longer sum to one: the bias is weighted by their sums.
        bias = attention.sum(-1, keepdim=True) * self.value_image.bias.view(self.heads, 1, -1)[heads]
        return gathered @ weight + bias

    def _split(self, x: Tensor) -> Float[Tensor, "batch head tok part"]:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _times(
    first: Float[Tensor, "batch row mid"], second: Float[Tensor, "batch mid col"], added: Tensor | None = None
) -> Float[Tensor, "batch row col"]:
    """``first @ second + added``, with one value of ``added`` for each row."""
    if by_onednn(first) and len(first) == 1:
        product = linear(first[0], second[0].T)[None]
        return product if added is None else product.add_(added)
    return first @ second if added is None else torch.baddbmm(added, first, second)


def _round_rate(rate: float) -> float:
    """The nearest rate that ``_dropout_unscaled`` can draw."""
    return round(rate * _CHANCES) / _CHANCES


def _dropout_unscaled(x: Tensor, rate: float) -> Tensor:
    """Dropout without the division by 1 - rate, which is cheaper on the small products than on ``x``.

    On a CPU torch's own dropout draws entry by entry, a quarter of the forward pass, and keeps floats for the backward
    pass. Here one draw of 64 bits decides four entries, and bytes are kept.
    """
    if rate == 0.0:
        return x
    draws = torch.randint(-(2**63), 2**63 - 1, (x.numel() // 4 + 1,), device=x.device)
    chances = draws.view(torch.int16)[: x.numel()].view_as(x)
    return x.masked_fill(chances < rate * _CHANCES - _CHANCES // 2, 0)
