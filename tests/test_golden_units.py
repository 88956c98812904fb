"""Single pieces against the 2022 release: coder, suppression, convolution, norms, losses, text, resize, names."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from golden import weights
from golden_cases import GOLDEN, LAYOUTS, config_of, loaded_model, release_entries
from torch import Tensor
from torchvision.ops import deform_conv2d

from glip.geometry.anchors import decode, encode, grid_anchors
from glip.geometry.boxes import giou_loss, suppress
from glip.loss import centerness_targets, token_focal_loss
from glip.model.deform import deform_conv
from glip.model.dyhead import _reinterpret_at_size
from glip.model.glip import build
from glip.model.release import from_foreign, infer_config, our_name
from glip.processor import resized_size
from glip.structures import Prompt
from glip.text.prompt import clean_name
from glip.text.tokens import Tokenizer, phrase_tokens, span_tokens

ARRAYS = np.load(GOLDEN / "units.npz")
RECORDS = json.loads((GOLDEN / "units.json").read_text(encoding="utf-8"))
NORMS = [key.split(":")[1] for key in ARRAYS.files if key.startswith("norm:") and key.endswith(":in")]
MAX_TOKENS = 256
PARAMETERS = {  # of the release; ours has no cls_logits
    "glip_t_a": 151_430_526,
    "glip_t_b": 231_780_222,
    "glip_t_c": 231_780_222,
    "glip_l": 430_422_384,
}
CLS_LOGITS = 80 * 256 + 80


def array(name: str) -> Tensor:
    return torch.from_numpy(ARRAYS[name])


def test_box_coder() -> None:
    anchors = array("coder_anchors")
    torch.testing.assert_close(decode(array("coder_deltas"), anchors), array("coder_decoded"), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(encode(array("coder_gt"), anchors), array("coder_encoded"), rtol=1e-6, atol=1e-6)


def test_suppression_counts_pixels_inclusively() -> None:
    boxes, scores, labels = (array(f"nms_{name}") for name in ("boxes", "scores", "labels"))
    kept = suppress(boxes, scores, labels, 0.6)
    assert torch.equal(kept.sort().values, array("nms_keep_sorted_by_index"))
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)


@pytest.mark.parametrize("kernel", ["ours", "torchvision"])
@pytest.mark.parametrize("case", ["same", "finer_stride2", "coarser_stride1"])
def test_deformable_convolution(case: str, kernel: str) -> None:
    """With one level's offsets on inputs of equal, finer and coarser size; the coarser reads the leading floats."""
    x, golden = array(f"dcn_{case}_in"), array(f"dcn_{case}_out")
    raw = array("dcn_offset_mask")
    offset, modulation = (_reinterpret_at_size(maps, golden.shape[2:]) for maps in (raw[:, :18], raw[:, 18:].sigmoid()))
    weight, bias, stride = array("dcn_weight"), array("dcn_bias"), 2 if case == "finer_stride2" else 1
    if kernel == "ours":
        moved = deform_conv(x, offset, modulation, weight, bias, stride)
    else:
        moved = deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=modulation)
    torch.testing.assert_close(moved, golden, rtol=1e-5, atol=1e-5)


def test_cell_anchors() -> None:
    anchors = grid_anchors([(1, 1)] * 5)
    golden = torch.cat([array(f"cell_anchor_p{level}") for level in range(3, 8)])
    torch.testing.assert_close(anchors, golden, rtol=0, atol=1e-4)


def test_focal_loss() -> None:
    mask = array("focal_mask").bool()
    loss = token_focal_loss(array("focal_logits"), array("focal_targets"), mask)
    assert loss.item() == pytest.approx(float(ARRAYS["focal_sum"]), rel=1e-6)


def test_giou_loss() -> None:
    anchors = array("coder_anchors")
    losses = giou_loss(decode(array("giou_pred"), anchors), decode(array("coder_encoded"), anchors))
    assert losses.sum().item() == pytest.approx(float(ARRAYS["giou_sum"]), rel=1e-6)
    weighted = (losses * array("giou_weight")).sum()
    assert weighted.item() == pytest.approx(float(ARRAYS["giou_wsum"]), rel=1e-6)


def test_centerness_targets() -> None:
    anchors = array("coder_anchors")
    boxes = decode(encode(array("centerness_gt"), anchors), anchors)
    torch.testing.assert_close(centerness_targets(boxes, anchors), array("centerness_targets"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", NORMS)
def test_norm_and_its_eps(path: str) -> None:
    """Inputs of standard deviation 0.003, so that a wrong eps shows."""
    name = our_name(f"{path}.weight", fused=True).removesuffix(".weight")
    norm = loaded_model("tiny").model.get_submodule(name)
    with torch.no_grad():
        torch.testing.assert_close(norm(array(f"norm:{path}:in")), array(f"norm:{path}:out"), rtol=1e-5, atol=1e-5)


def test_resize_rule() -> None:
    for record in RECORDS["resize"]:
        ours = resized_size(record["height"], record["width"], record["min_size"], record["max_size"])
        assert ours == (record["out_height"], record["out_width"]), record


def test_clean_name() -> None:
    for record in RECORDS["clean_name"]:
        assert clean_name(record["name"]) == record["clean"]


@pytest.mark.parametrize("record", RECORDS["detection"], ids=lambda record: f"{len(record['classes'])}-classes")
def test_prompt_of_class_names(record: dict[str, Any], tokenizer: Tokenizer) -> None:
    prompt = Prompt.from_names([clean_name(name) for name in record["classes"]])
    tokens = tokenizer(prompt.caption)
    assert prompt.caption == record["prompt"]
    assert list(tokens.ids) == record["input_ids"]
    assert phrase_tokens(tokens, prompt) == by_label(record["positive_map"])


@pytest.mark.parametrize("record", RECORDS["spans"], ids=lambda record: record["caption"][:20])
def test_tokens_of_spans(record: dict[str, Any], tokenizer: Tokenizer) -> None:
    tokens = tokenizer(record["caption"])
    ours = [[token for span in spans for token in span_tokens(tokens, tuple(span))] for spans in record["char_spans"]]
    assert ours == by_label(record["tokens"])


@pytest.mark.parametrize("record", RECORDS["tokenize"], ids=lambda record: record["text"][:20] or "empty")
def test_tokenizer(record: dict[str, Any], tokenizer: Tokenizer) -> None:
    """The release truncates at 256; we refuse longer captions, so only their beginning can agree."""
    tokens = tokenizer(record["text"])
    length = len(record["input_ids"])
    if len(tokens.ids) > MAX_TOKENS:
        length = MAX_TOKENS - 1  # where the release puts its [SEP]
    assert list(tokens.ids)[:length] == record["input_ids"][:length]
    assert [list(span) for span in tokens.offsets][:length] == record["offsets"][:length]
    special = [int(start == end) for start, end in tokens.offsets]
    assert special[:length] == record["special"][:length]
    assert len(tokens.ids) == record["n"] or len(tokens.ids) > MAX_TOKENS


def by_label(record: dict[str, list[int]]) -> list[list[int]]:
    """Tokens of labels 1, 2, ... in order."""
    return [record[str(label)] for label in range(1, len(record) + 1)]


@pytest.mark.parametrize(
    ("key", "shape", "first"),
    [
        ("backbone.body.patch_embed.proj.weight", (96, 3, 4, 4), (0.22546005, -0.34327698, -0.30637741)),
        ("rpn.head.bias0", (1,), (-3.3770926,)),
        ("rpn.head.dyhead_tower.0.b_attn.gamma_v", (256,), (0.19379771, 0.21955542, 0.47236463)),
        ("rpn.head.dyhead_tower.2.offset.weight", (27, 256, 3, 3), (-0.03111134, -0.02899426, -0.02322558)),
    ],
)
def test_weight_rule(key: str, shape: tuple[int, ...], first: tuple[float, ...]) -> None:
    """The synthetic weights are those that the release was run with."""
    drawn = weights.param(key, shape).ravel()[: len(first)]
    assert drawn.tolist() == pytest.approx(list(first), rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_name_of_a_checkpoint_converts(layout: str, prefix: str) -> None:
    """Name by name and shape by shape, nothing missing and nothing extra; buffers and cls_logits are dropped."""
    state = {prefix + entry.key: torch.empty(entry.shape, device="meta") for entry in release_entries(layout)}
    ours = from_foreign(state)
    config = config_of(layout)
    model = build_without_memory(config)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(value.numel() for value in ours.values()) == PARAMETERS[layout] - CLS_LOGITS
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[layout] - CLS_LOGITS
    inferred = infer_config(ours, layout)
    assert replace(inferred.vision, pretrained=config.vision.pretrained) == config.vision
    assert replace(inferred.language, pretrained=config.language.pretrained) == config.language
    assert inferred.head == config.head


def test_training_trains_what_the_release_trains() -> None:
    """All parameters of GLIP-T C but those of cls_logits, which ours does not have."""
    lines = (GOLDEN / "trainable.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t")[:2] == ["key", "full"]
    names = [line.split("\t")[0] for line in lines[1:] if line.split("\t")[1] == "1"]
    model = build_without_memory(config_of("glip_t_c"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {re.sub(r"^boxes\.scales\.\d$", "boxes.scales", our_name(name, fused=True)) for name in names} == trained


def build_without_memory(config: Any) -> torch.nn.Module:
    """The model's names and shapes."""
    with torch.device("meta"):
        return build(config)
