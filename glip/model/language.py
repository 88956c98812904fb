"""BERT (Devlin et al. 2019) without pooler: the text encoder, and the layer that the head uses between fusions.

Written here because importing transformers takes longer than detecting objects in an image does. Names of weights are
those of transformers' ``BertModel``; tests/oracles/test_bert_oracle.py compares the numbers.
"""

import torch
import torch.nn.functional as F
from torch import nn

from glip.config import LanguageConfig
from glip.model.products import Linear
from glip.shapes import Bool, Float, Int, Tensor

Hidden = Float[Tensor, "batch tok hidden"]  # token features
Mask = Bool[Tensor, "batch tok"]  # True: a token, not padding

_EPS = 1e-12
_STD = 0.02  # of the initial weights


class BertLayer(nn.Module):
    """Self-attention and a feed-forward part, each with a residual and a norm after it."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        width, inner = config.hidden, config.intermediate
        self.heads, self.dropout = config.heads, nn.Dropout(config.dropout)
        projections = nn.ModuleDict({name: Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": projections, "output": _output(width, width)})
        self.intermediate = nn.ModuleDict({"dense": Linear(width, inner)})
        self.output = _output(inner, width)

    def forward(self, hidden: Hidden, attention_mask: Mask) -> Hidden:
        batch, length, _ = hidden.shape
        projections = self.attention.get_submodule("self").children()
        q, k, v = (project(hidden).view(batch, length, self.heads, -1).transpose(1, 2) for project in projections)
        mask = attention_mask[:, None, None, :].expand(-1, 1, length, -1)
        rate = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        hidden = self._add(self.attention["output"], mixed.transpose(1, 2).flatten(2), hidden)
        return self._add(self.output, F.gelu(self.intermediate["dense"](hidden)), hidden)

    def _add(self, output: nn.Module, x: Tensor, residual: Hidden) -> Hidden:
        dense, norm = output.children()
        added: Tensor = norm(self.dropout(dense(x)) + residual)
        return added


class Bert(nn.Module):
    """Embeddings and layers; the sum of word, position and sentence embeddings is normalized."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        tables = {
            "word_embeddings": nn.Embedding(config.vocabulary, config.hidden, padding_idx=0),
            "position_embeddings": nn.Embedding(config.positions, config.hidden),
            "token_type_embeddings": nn.Embedding(2, config.hidden),
        }
        after = {"LayerNorm": nn.LayerNorm(config.hidden, eps=_EPS), "dropout": nn.Dropout(config.dropout)}
        self.embeddings = nn.ModuleDict({**tables, **after})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer(config) for _ in range(config.layers))})
        self.apply(_init)

    def forward(self, input_ids: Int[Tensor, "batch tok"], attention_mask: Mask) -> Hidden:
        words, positions, sentences, norm, dropout = self.embeddings.children()
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = words(input_ids) + sentences(torch.zeros_like(places)) + positions(places)
        hidden = dropout(norm(hidden))
        for layer in self.encoder.get_submodule("layer").children():
            hidden = layer(hidden, attention_mask)
        return hidden


class TextEncoder(nn.Module):
    """Token ids -> features: the last layer's output at every position, [CLS] and [SEP] included."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.bert, self.num_layers = Bert(config), config.layers
        if config.frozen_layers:
            self.bert.embeddings.requires_grad_(False)
            for layer in list(self.bert.encoder.get_submodule("layer").children())[: config.frozen_layers]:
                layer.requires_grad_(False)

    def forward(self, input_ids: Int[Tensor, "batch tok"], attention_mask: Mask) -> Hidden:
        hidden: Tensor = self.bert(input_ids, attention_mask)
        return hidden

    def round_weights(self) -> None:
        """Round every row of the matrices to 8 bits, so that storing them as int8 loses nothing."""
        with torch.no_grad():
            for weight in (parameter for parameter in self.parameters() if parameter.ndim == 2):
                rows, scales = quantize_rows(weight)
                weight.copy_(rows.float() * scales[:, None])


class TextLayer(nn.Module):
    """One BERT layer inside the head. The release's clamps at +-50000 never take effect and are left out."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.layer = BertLayer(config)

    def forward(self, hidden: Hidden, attention_mask: Mask) -> Hidden:
        hidden = self.layer(hidden, attention_mask)
        return hidden


def quantize_rows(weight: Float[Tensor, "row chan"]) -> tuple[Tensor, Float[Tensor, " row"]]:
    """Int8 rows and their scales, so that ``rows * scales`` approximates the weight.

    Scales keep 12 bits, so that 127 * scale is exact in float32 and rounding a rounded weight changes nothing.
    """
    mantissa, exponent = torch.frexp((weight.abs().amax(1) / 127).clamp(min=1e-12))
    scales = torch.ldexp((mantissa * 4096).round() / 4096, exponent)
    return (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def _output(width: int, hidden: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": Linear(width, hidden), "LayerNorm": nn.LayerNorm(hidden, eps=_EPS)})


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
