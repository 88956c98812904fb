"""The text encoder: transformers' BERT without pooler, and its layer, which the head uses between fusions."""

import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from glip.shapes import Bool, Float, Int, Tensor

__all__ = ["BertConfig", "TextEncoder", "TextLayer", "quantize_rows"]


class TextEncoder(nn.Module):
    """Token ids -> features: the last layer's output at every position, [CLS] and [SEP] included."""

    def __init__(self, config: BertConfig, *, frozen_layers: int = 0) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.frozen_layers = frozen_layers
        if frozen_layers:
            self.bert.embeddings.requires_grad_(False)
            for layer in self.bert.encoder.layer[:frozen_layers]:
                layer.requires_grad_(False)

    def forward(
        self, input_ids: Int[Tensor, "batch tok"], attention_mask: Bool[Tensor, "batch tok"]
    ) -> Float[Tensor, "batch tok chan"]:
        hidden: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state
        return hidden

    def round_weights(self) -> None:
        """Round every row of the matrices to 8 bits, so that storing them as int8 loses nothing."""
        with torch.no_grad():
            for weight in (parameter for parameter in self.parameters() if parameter.ndim == 2):
                rows, scales = quantize_rows(weight)
                weight.copy_(rows.float() * scales[:, None])


class TextLayer(nn.Module):
    """One BERT layer inside the head. The release's clamps at +-50000 never take effect and are left out."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = BertLayer(config)

    def forward(
        self, hidden: Float[Tensor, "batch tok chan"], attention_mask: Bool[Tensor, "batch tok"]
    ) -> Float[Tensor, "batch tok chan"]:
        length = hidden.shape[1]
        mask = attention_mask[:, None, None, :].expand(-1, 1, length, -1)
        out = self.layer(hidden, attention_mask=mask)
        return out[0] if isinstance(out, tuple) else out  # transformers 4 returned a tuple


def quantize_rows(weight: Float[Tensor, "row chan"]) -> tuple[Tensor, Float[Tensor, " row"]]:
    """Int8 rows and their scales, so that ``rows * scales`` approximates the weight.

    Scales keep 12 bits, so that 127 * scale is exact in float32 and rounding a rounded weight changes nothing.
    """
    mantissa, exponent = torch.frexp((weight.abs().amax(1) / 127).clamp(min=1e-12))
    scales = torch.ldexp((mantissa * 4096).round() / 4096, exponent)
    return (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales
