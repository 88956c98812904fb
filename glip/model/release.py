"""Parameter names and shapes of other code bases, and ours: the 2022 release (microsoft/GLIP) and mmdetection 3.

Pure renaming of dictionaries; reading files is weights.py's work. mmdetection's layout is turned into the release's
first, so that each of our names is written down once.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from glip.config import HeadConfig, InferenceConfig, LanguageConfig, ModelConfig, VisionConfig
from glip.errors import CheckpointError
from glip.experiment import read_yaml, to_dict
from glip.schema import parse
from glip.shapes import Tensor

State = dict[str, Tensor]
T = TypeVar("T")

# Stored by the release but computed by us (index tables, anchors), or without influence on any result (cls_logits).
_DROPPED = re.compile(r"relative_position_index|anchor_generator|position_ids|cls_logits|attn_mask|pooler")

_RENAMED = [  # pattern, replacement; all that match are applied, in order
    (r"^backbone\.body\.patch_embed\.proj\.", "vision.patch."),
    (r"^backbone\.body\.patch_embed\.norm\.", "vision.patch_norm."),
    (r"^backbone\.body\.layers\.(\d+)\.blocks\.(\d+)\.(?:mlp\.)?", r"vision.stages.\1.blocks.\2."),
    (r"relative_position_bias_table$", "bias_table"),
    (r"^language_backbone\.body\.model\.", "language.bert."),
    (r"^rpn\.head\.bbox_pred\.", "boxes.box."),
    (r"^rpn\.head\.centerness\.", "boxes.centerness."),
    (r"^rpn\.head\.scales\.(\d+)\.scale$", r"boxes.scales.\1"),
    (r"^rpn\.head\.dot_product_projection_text\.", "tokens.project."),
    (r"^rpn\.head\.log_scale$", "tokens.log_scale"),
    (r"^rpn\.head\.bias_lang$", "tokens.bias_text"),
    (r"^rpn\.head\.bias0$", "tokens.bias"),
    (r"^rpn\.tunable_linear\.weight$", "prompt_offsets"),
    (r"^backbone\.fpn\.top_blocks\.", "pyramid."),
]
_NUMBERED = [  # pattern with one number, replacement, what is added to the number
    (r"^backbone\.body\.layers\.(\d+)\.downsample\.", "vision.stages.{}.merge.", 1),
    (r"^backbone\.body\.norm(\d+)\.", "vision.norms.{}.", -1),
    (r"^backbone\.fpn\.fpn_inner(\d+)\.", "pyramid.laterals.{}.", -2),
    (r"^backbone\.fpn\.fpn_layer(\d+)\.", "pyramid.outputs.{}.", -2),
]
_TOWER = [  # inside one module of the release's dyhead_tower
    (r"^b_attn\.attn\.v_proj\.", "fusion.query."),
    (r"^b_attn\.attn\.l_proj\.", "fusion.key."),
    (r"^b_attn\.attn\.values_v_proj\.", "fusion.value_image."),
    (r"^b_attn\.attn\.values_l_proj\.", "fusion.value_text."),
    (r"^b_attn\.attn\.out_v_proj\.", "fusion.out_image."),
    (r"^b_attn\.attn\.out_l_proj\.", "fusion.out_text."),
    (r"^b_attn\.layer_norm_v\.", "fusion.norm_image."),
    (r"^b_attn\.layer_norm_l\.", "fusion.norm_text."),
    (r"^b_attn\.gamma_v$", "fusion.gamma_image"),
    (r"^b_attn\.gamma_l$", "fusion.gamma_text"),
    (r"^(attention|intermediate|output)\.", r"text.layer.\1."),
    (r"^DyConv\.0\.(?:conv\.)?", "image.coarser."),
    (r"^DyConv\.1\.(?:conv\.)?", "image.same."),
    (r"^DyConv\.2\.(?:conv\.)?", "image.finer."),
    (r"^(image\.\w+)\.bn\.", r"\1.norm."),
    (r"^AttnConv\.1\.", "image.importance."),
    (r"^offset\.", "image.offset."),
    (r"^relu\.fc\.0\.", "image.relu.squeeze."),
    (r"^relu\.fc\.2\.", "image.relu.expand."),
]
_MMDET = [  # mmdetection's names -> the release's (its converter glip_to_mmdet.py, read backwards)
    (r"^backbone\.patch_embed\.projection\.", "backbone.body.patch_embed.proj."),
    (r"^backbone\.(patch_embed\.norm|norm\d)\.", r"backbone.body.\1."),
    (r"^backbone\.stages\.", "backbone.body.layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^neck\.lateral_convs\.0\.conv\.", "backbone.fpn.fpn_inner2."),
    (r"^neck\.lateral_convs\.1\.conv\.", "backbone.fpn.fpn_inner3."),
    (r"^neck\.lateral_convs\.2\.conv\.", "backbone.fpn.fpn_inner4."),
    (r"^neck\.fpn_convs\.0\.conv\.", "backbone.fpn.fpn_layer2."),
    (r"^neck\.fpn_convs\.1\.conv\.", "backbone.fpn.fpn_layer3."),
    (r"^neck\.fpn_convs\.2\.conv\.", "backbone.fpn.fpn_layer4."),
    (r"^neck\.fpn_convs\.3\.conv\.", "backbone.fpn.top_blocks.p6."),
    (r"^neck\.fpn_convs\.4\.conv\.", "backbone.fpn.top_blocks.p7."),
    (r"^language_model\.language_backbone\.", "language_backbone."),
    (r"^bbox_head\.head\.scales\.", "rpn.head.scales."),
    (r"^bbox_head\.", "rpn."),
    (r"\.dyconvs\.", ".DyConv."),
    (r"\.attnconv\.", ".AttnConv."),
]


def is_foreign(state: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of the release or of mmdetection rather than ours."""
    return any(key.removeprefix("module.").startswith(("rpn.", "bbox_head.")) for key in state)


def from_foreign(state: Mapping[str, Tensor], *, max_tokens: int = 256) -> State:
    """Weights of the 2022 release or of mmdetection under our names; what has no influence is dropped."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("bbox_head.") for key in state):
        state = _from_mmdet(state)
    fused = any(".b_attn." in key for key in state)
    renamed = {our_name(key, fused=fused): value.float() for key, value in state.items() if not _DROPPED.search(key)}
    scales = [renamed.pop(f"boxes.scales.{level}", None) for level in range(5)]
    present = [scale for scale in scales if scale is not None]
    if present:
        renamed["boxes.scales"] = torch.cat([scale.flatten() for scale in present])
    if "prompt_offsets" in renamed:
        renamed["prompt_offsets"] = renamed["prompt_offsets"][:max_tokens].clone()
    return renamed


def our_name(key: str, *, fused: bool) -> str:
    """Our name of one of the release's parameters; ``fused`` models have three tower modules to each of our stages."""
    tower = re.match(r"^rpn\.head\.dyhead_tower\.(\d+)\.(.*)$", key)
    if tower:
        stage = int(tower[1]) // 3 if fused else int(tower[1])
        return f"tower.{stage}.{_apply(_TOWER, tower[2])}"
    for pattern, replacement, step in _NUMBERED:
        match = re.match(pattern, key)
        if match:
            key = replacement.format(int(match[1]) + step) + key[match.end() :]
    return _apply(_RENAMED, key)


def infer_config(state: Mapping[str, Tensor], name: str) -> ModelConfig:
    """The sizes of a model of the release, read off its (renamed) weights.

    BERT's head width (64) and the eight fusion heads leave no trace in the shapes; they are the release's constants.

    Raises:
        ValueError: a parameter that every such model has is missing or of an odd shape.
    """
    width = _size(state, "vision.patch.weight", 0)
    tables = [
        [key for block in range(64) if (key := f"vision.stages.{stage}.blocks.{block}.attn.bias_table") in state]
        or [f"vision.stages.{stage}.blocks.0.attn.bias_table"]
        for stage in range(4)
    ]
    vision = VisionConfig(
        widths=tuple(width * 2**stage for stage in range(4)),
        depths=tuple(len(keys) for keys in tables),
        heads=tuple(_size(state, keys[0], 1) for keys in tables),
        window=(math.isqrt(_size(state, tables[0][0], 0)) + 1) // 2,
        drop_path=0.4 if width >= 192 else 0.2,
    )
    bert = "language.bert."
    hidden = _size(state, f"{bert}embeddings.word_embeddings.weight", 1)
    language = LanguageConfig(
        hidden=hidden,
        layers=len({key.split(".")[4] for key in state if key.startswith(f"{bert}encoder.layer.")}),
        heads=max(hidden // 64, 1),
        intermediate=_size(state, f"{bert}encoder.layer.0.intermediate.dense.weight", 0),
        vocabulary=_size(state, f"{bert}embeddings.word_embeddings.weight", 0),
        positions=_size(state, f"{bert}embeddings.position_embeddings.weight", 0),
    )
    fusion = "tower.0.fusion.query.weight"
    head = HeadConfig(
        channels=_size(state, "pyramid.p6.weight", 0),
        blocks=len({key.split(".")[1] for key in state if key.startswith("tower.")}),
        fusion=fusion in state,
        fusion_width=_size(state, fusion, 0) if fusion in state else 2048,
        prompt_offsets="prompt_offsets" in state,
    )
    return ModelConfig(
        name=name, vision=vision, language=language, head=head, inference=InferenceConfig(inclusive=True)
    )


def _size(state: Mapping[str, Tensor], key: str, axis: int) -> int:
    if key not in state:
        raise CheckpointError(f"no {key} in them")
    if state[key].ndim <= axis or state[key].numel() == 0:
        raise CheckpointError(f"{key} has shape {tuple(state[key].shape)}")
    return int(state[key].shape[axis])


def _from_mmdet(state: Mapping[str, Tensor]) -> State:
    renamed = {}
    for key, value in state.items():
        if ".downsample.reduction." in key and value.ndim == 2 and value.shape[1] % 4 == 0:
            value = _phases(value.T, value.shape[1] // 4).T
        elif ".downsample.norm." in key and value.ndim == 1 and len(value) % 4 == 0:
            value = _phases(value, value.shape[0] // 4)
        renamed[_apply(_MMDET, key)] = value
    return renamed


def _phases(value: Tensor, width: int) -> Tensor:
    """mmdetection's ``unfold`` keeps channels together; the release keeps the four phases (0,0) (1,0) (0,1) (1,1)."""
    apart = value.reshape(width, 4, *value.shape[1:]).transpose(0, 1)
    return apart[[0, 2, 1, 3]].reshape(value.shape).contiguous()


def _apply(rules: list[tuple[str, str]], key: str) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def load_yacs(path: Path, config: ModelConfig) -> ModelConfig:
    """What a config of the 2022 release (yacs YAML) says beyond the weights: image sizes and decoding.

    Raises:
        ConfigError: broken YAML, or a value of another kind than the release's.
    """
    tree = read_yaml(path)

    def read(dotted: str, default: T) -> T:
        value = tree
        for key in dotted.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return default
            value = value[key]
        return parse(type(default), value, at=f"{path}: {dotted}")

    image = replace(
        config.image,
        min_size=read("INPUT.MIN_SIZE_TEST", config.image.min_size),
        max_size=read("INPUT.MAX_SIZE_TEST", config.image.max_size),
    )
    aggregate = read("MODEL.DYHEAD.SCORE_AGG", config.inference.aggregate.upper()).lower()
    inference = {
        **to_dict(config.inference),
        "aggregate": aggregate,
        "candidate_threshold": read("MODEL.ATSS.INFERENCE_TH", config.inference.candidate_threshold),
        "candidates_per_level": read("MODEL.ATSS.PRE_NMS_TOP_N", config.inference.candidates_per_level),
        "nms": read("MODEL.ATSS.NMS_TH", config.inference.nms),
        "max_detections": read("MODEL.ATSS.DETECTIONS_PER_IMG", config.inference.max_detections),
    }
    max_tokens = read("MODEL.LANGUAGE_BACKBONE.MAX_QUERY_LEN", config.max_tokens)
    return replace(
        config, image=image, inference=parse(InferenceConfig, inference, at=str(path)), max_tokens=max_tokens
    )
