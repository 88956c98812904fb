"""Early fusion: image and text attend to each other (paper section 3.2, equations 4-6).

One score matrix S between locations and tokens serves both ways: softmax over tokens for the image, over locations
for the text. With few tokens it is far cheaper to multiply the text side into the projection weights first:
S_h = (v W_q) (l W_k)^T = v (W_q (l W_k)^T), and likewise both outputs; the numbers are the same.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from glip.shapes import Bool, Float, Tensor

_CLAMP = 50000.0  # the release's guard against overflow in half precision


class Fusion(nn.Module):
    """Two-way cross attention; the residuals start from the *normalized* inputs, as in the release."""

    def __init__(self, channels: int, hidden: int, *, width: int, heads: int, dropout: float, residual: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.scale = 1.0 / math.sqrt(width // heads)
        self.norm_image = nn.LayerNorm(channels)
        self.norm_text = nn.LayerNorm(hidden)
        self.query = nn.Linear(channels, width)  # of the image
        self.key = nn.Linear(hidden, width)  # of the text
        self.value_image = nn.Linear(channels, width)
        self.value_text = nn.Linear(hidden, width)
        self.out_image = nn.Linear(width, channels)
        self.out_text = nn.Linear(width, hidden)
        self.gamma_image = nn.Parameter(torch.full((channels,), residual))
        self.gamma_text = nn.Parameter(torch.full((hidden,), residual))
        for linear in (self.query, self.key, self.value_image, self.value_text, self.out_image, self.out_text):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        image: Float[Tensor, "batch loc chan"],
        text: Float[Tensor, "batch tok hidden"],
        attention_mask: Bool[Tensor, "batch tok"],
    ) -> tuple[Float[Tensor, "batch loc chan"], Float[Tensor, "batch tok hidden"]]:
        image, text = self.norm_image(image), self.norm_text(text)
        scores = self._scores(image, text)  # batch head tok loc, in float32
        to_image = scores.masked_fill(~attention_mask[:, None, :, None], -torch.inf).softmax(2)
        to_text = (scores - scores.amax(3, keepdim=True)).clamp(min=-_CLAMP).softmax(3)
        to_image = F.dropout(to_image, self.dropout, self.training).to(image.dtype)
        to_text = F.dropout(to_text, self.dropout, self.training).to(image.dtype)
        fused_image = image + self.gamma_image * self._read_text(to_image, text)
        fused_text = text + self.gamma_text * self._read_image(to_text, image)
        return fused_image, fused_text

    def _scores(self, image: Tensor, text: Tensor) -> Float[Tensor, "batch head tok loc"]:
        keys = self._split(self.key(text)) * self.scale  # batch head tok part
        weight = self.query.weight.view(self.heads, -1, image.shape[-1])  # head part chan
        bias = self.query.bias.view(self.heads, -1, 1)
        folded = keys @ weight  # batch head tok chan
        constant = (keys @ bias).flatten(1, 2).float()  # batch (head tok) 1
        with torch.autocast(image.device.type, enabled=False):
            flat = folded.flatten(1, 2).float()
            scores = flat @ image.float().transpose(1, 2) + constant
        return scores.view(*folded.shape[:3], -1).clamp(-_CLAMP, _CLAMP)

    def _read_text(self, attention: Tensor, text: Tensor) -> Float[Tensor, "batch loc chan"]:
        values = self._split(self.value_text(text))  # batch head tok part
        weight = self.out_image.weight.view(-1, self.heads, values.shape[-1]).permute(1, 2, 0)  # head part chan
        folded = (values @ weight).flatten(1, 2)  # batch (head tok) chan
        return attention.flatten(1, 2).transpose(1, 2) @ folded + self.out_image.bias

    def _read_image(self, attention: Tensor, image: Tensor) -> Float[Tensor, "batch tok hidden"]:
        gathered = attention.flatten(1, 2) @ image  # batch (head tok) chan
        gathered = gathered.view(*attention.shape[:3], -1)
        weight = self.value_image.weight.view(self.heads, -1, image.shape[-1]).transpose(1, 2)  # head chan part
        # Dropout leaves rows that no longer sum to one, so the bias is weighted by what is left.
        bias = attention.sum(-1, keepdim=True) * self.value_image.bias.view(self.heads, 1, -1)
        values = gathered @ weight + bias  # batch head tok part
        out: Tensor = self.out_text(values.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Float[Tensor, "batch head tok part"]:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
