"""The text side against transformers' BertModel with its attention written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glip.config import LanguageConfig
from glip.model.language import TextEncoder, TextLayer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
HIDDEN, LAYERS, HEADS, INTERMEDIATE, VOCABULARY = 32, 3, 4, 64, 100


def oracle_model() -> torch.nn.Module:
    """BERT as transformers documents it, with attention written out, at unit-sized random weights."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 2 else 0.1))
    return model


def our_config() -> LanguageConfig:
    return LanguageConfig(
        hidden=HIDDEN, layers=LAYERS, heads=HEADS, intermediate=INTERMEDIATE, vocabulary=VOCABULARY, positions=64
    )


def captions() -> tuple[Tensor, Tensor]:
    """Token ids and mask of three captions of 9, 5 and 2 tokens."""
    torch.manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (3, 9))
    mask = torch.arange(9)[None] < torch.tensor([9, 5, 2])[:, None]
    return ids * mask, mask


def test_encoder_is_transformers_bert() -> None:
    oracle = oracle_model()
    ours = TextEncoder(our_config()).eval()
    ours.bert.load_state_dict(oracle.state_dict())
    ids, mask = captions()
    with torch.no_grad():
        expected = oracle(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        found = ours(ids, mask)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_text_layers_one_after_the_other_are_transformers_encoder() -> None:
    oracle = oracle_model()
    ids, mask = captions()
    with torch.no_grad():
        hidden = oracle.embeddings(input_ids=ids)
        for source in oracle.encoder.layer:
            ours = TextLayer(our_config()).eval()
            ours.layer.load_state_dict(source.state_dict())
            hidden = ours(hidden, mask)
        expected = oracle(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(hidden[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", [1, 20])
def test_padding_changes_nothing(extra: int) -> None:
    """The release pads to 256, we to the longest caption of the batch."""
    encoder = TextEncoder(our_config()).eval()
    layer = TextLayer(our_config()).eval()
    ids, mask = captions()
    wide_ids, wide_mask = F.pad(ids, (0, extra), value=7), F.pad(mask, (0, extra))
    with torch.no_grad():
        narrow, wide = encoder(ids, mask), encoder(wide_ids, wide_mask)
        torch.testing.assert_close(narrow[mask], wide[wide_mask], rtol=1e-5, atol=1e-5)
        narrow, wide = layer(narrow, mask), layer(wide, wide_mask)
        torch.testing.assert_close(narrow[mask], wide[wide_mask], rtol=1e-5, atol=1e-5)
