"""Parameter names and sizes of other code bases and ours: the 2022 release (microsoft/GLIP), mmdetection 3 and timm.

Only dictionaries are renamed here; weights.py reads the files. The layouts of mmdetection and timm are first turned
into the release's, so that each of our names is written down once. Weights of anything else are a CheckpointError.
"""

import math
import re
from collections.abc import Mapping, Sequence

import torch

from glip.config import ModelConfig
from glip.errors import CheckpointError
from glip.schema import parse
from glip.shapes import Tensor

State = dict[str, Tensor]
Rules = Sequence[tuple[str, str]]  # pattern, replacement; {+1} in it stands for the pattern's first number plus 1

# What the release stores and we compute (index tables, anchors), or what influences no result (cls_logits).
_DROPPED = re.compile(r"relative_position_index|anchor_generator|position_ids|cls_logits|attn_mask|pooler")
_SHIFT = re.compile(r"\{([+-]\d)\}")

_RELEASE: Rules = [
    (r"^backbone\.body\.patch_embed\.proj\.", "vision.patch."),
    (r"^backbone\.body\.patch_embed\.norm\.", "vision.patch_norm."),
    (r"^backbone\.body\.layers\.(\d+)\.blocks\.(\d+)\.(?:mlp\.)?", r"vision.stages.\1.blocks.\2."),
    (r"^backbone\.body\.layers\.(\d+)\.downsample\.", "vision.stages.{+1}.merge."),
    (r"^backbone\.body\.norm(\d+)\.", "vision.norms.{-1}."),
    (r"relative_position_bias_table$", "bias_table"),
    (r"^backbone\.fpn\.fpn_inner(\d+)\.", "pyramid.laterals.{-2}."),
    (r"^backbone\.fpn\.fpn_layer(\d+)\.", "pyramid.outputs.{-2}."),
    (r"^backbone\.fpn\.top_blocks\.", "pyramid."),
    (r"^language_backbone\.body\.model\.", "language.bert."),
    (r"^rpn\.head\.bbox_pred\.", "boxes.box."),
    (r"^rpn\.head\.centerness\.", "boxes.centerness."),
    (r"^rpn\.head\.scales\.(\d+)\.scale$", r"boxes.scales.\1"),
    (r"^rpn\.head\.dot_product_projection_text\.", "tokens.project."),
    (r"^rpn\.head\.log_scale$", "tokens.log_scale"),
    (r"^rpn\.head\.bias_lang$", "tokens.bias_text"),
    (r"^rpn\.head\.bias0$", "tokens.bias"),
    (r"^rpn\.tunable_linear\.weight$", "prompt_offsets"),
]
_RELEASE_TOWER: Rules = [  # inside one module of the release's dyhead_tower
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
_MMDET: Rules = [  # to the release's names: mmdetection's converter glip_to_mmdet.py backwards
    (r"^backbone\.patch_embed\.projection\.", "backbone.body.patch_embed.proj."),
    (r"^backbone\.(patch_embed\.norm|norm\d)\.", r"backbone.body.\1."),
    (r"^backbone\.stages\.", "backbone.body.layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", "backbone.fpn.fpn_inner{+2}."),
    (r"^neck\.fpn_convs\.([0-2])\.conv\.", "backbone.fpn.fpn_layer{+2}."),
    (r"^neck\.fpn_convs\.([34])\.conv\.", "backbone.fpn.top_blocks.p{+3}."),
    (r"^language_model\.language_backbone\.", "language_backbone."),
    (r"^bbox_head\.head\.scales\.", "rpn.head.scales."),
    (r"^bbox_head\.", "rpn."),
    (r"\.dyconvs\.", ".DyConv."),
    (r"\.attnconv\.", ".AttnConv."),
]
_TIMM: Rules = [  # to the release's names: timm's merging belongs to the later stage; its four phases are the same
    (r"^layers\.(\d+)\.downsample\.", "layers.{-1}.downsample."),
    (r"^", "backbone.body."),
]
_PROMPT_ROWS = 256  # of the release's table of prompt offsets, of which it uses no more


def from_foreign(state: Mapping[str, Tensor]) -> State:
    """Weights of the 2022 release or of mmdetection under our names, without those that influence no result."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("bbox_head.") for key in state):
        state = _from_mmdet(state)
    if not any(key.startswith("rpn.") for key in state):
        raise CheckpointError("no weights named rpn.* or bbox_head.*")
    fused = any(".b_attn." in key for key in state)
    renamed = {our_name(key, fused=fused): value.float() for key, value in state.items() if not _DROPPED.search(key)}
    scales = [renamed.pop(key) for level in range(5) if (key := f"boxes.scales.{level}") in renamed]
    if scales:
        renamed["boxes.scales"] = torch.cat([scale.flatten() for scale in scales])
    if "prompt_offsets" in renamed:
        renamed["prompt_offsets"] = renamed["prompt_offsets"][:_PROMPT_ROWS].clone()
    return renamed


def from_timm(state: Mapping[str, Tensor]) -> State:
    """Weights of a timm Swin under the names of our ``Swin``, without ``norms``, which timm does not have."""
    kept = {key: value for key, value in state.items() if not key.startswith(("norm.", "head."))}
    named = {_rename(_TIMM, key): value for key, value in kept.items() if not _DROPPED.search(key)}
    return {our_name(key, fused=False).removeprefix("vision."): value for key, value in named.items()}


def our_name(key: str, *, fused: bool) -> str:
    """Our name of a parameter of the release; ``fused`` models have three tower modules for each of our stages."""
    tower = re.match(r"^rpn\.head\.dyhead_tower\.(\d+)\.(.*)$", key)
    if tower:
        stage = int(tower[1]) // 3 if fused else int(tower[1])
        return f"tower.{stage}.{_rename(_RELEASE_TOWER, tower[2])}"
    return _rename(_RELEASE, key)


def infer_config(state: Mapping[str, Tensor], name: str) -> ModelConfig:
    """The sizes of a model of the release, inferred from the shapes of its (renamed) weights.

    The head width of BERT (64) and the eight fusion heads do not show in the shapes; they are the release's constants.
    """

    def size(key: str, axis: int) -> int:
        if key not in state or state[key].ndim <= axis:
            raise CheckpointError(f"{key}: {'no such weight' if key not in state else tuple(state[key].shape)}")
        return state[key].shape[axis]

    def count(pattern: str) -> int:
        return len({match[1] for key in state if (match := re.match(pattern, key))})

    width = size("vision.patch.weight", 0)
    tables = [f"vision.stages.{stage}.blocks.0.attn.bias_table" for stage in range(4)]
    bert, fusion = "language.bert.", "tower.0.fusion.query.weight"
    hidden = size(f"{bert}embeddings.word_embeddings.weight", 1)
    tree = {
        "name": name,
        "vision": {
            "widths": [width * 2**stage for stage in range(4)],
            "depths": [count(rf"vision\.stages\.{stage}\.blocks\.(\d+)\.attn\.bias_table") for stage in range(4)],
            "heads": [size(table, 1) for table in tables],
            "window": (math.isqrt(size(tables[0], 0)) + 1) // 2,
            "drop_path": 0.4 if width >= 192 else 0.2,
        },
        "language": {
            "hidden": hidden,
            "layers": count(r"language\.bert\.encoder\.layer\.(\d+)"),
            "heads": max(hidden // 64, 1),
            "intermediate": size(f"{bert}encoder.layer.0.intermediate.dense.weight", 0),
            "vocabulary": size(f"{bert}embeddings.word_embeddings.weight", 0),
            "positions": size(f"{bert}embeddings.position_embeddings.weight", 0),
        },
        "head": {
            "channels": size("pyramid.p6.weight", 0),
            "blocks": count(r"tower\.(\d+)\."),
            "fusion": fusion in state,
            **({"fusion_width": size(fusion, 0)} if fusion in state else {}),
            "prompt_offsets": "prompt_offsets" in state,
        },
        "inference": {"inclusive": True},
    }
    return parse(ModelConfig, tree, error=CheckpointError)


def _from_mmdet(state: Mapping[str, Tensor]) -> State:
    renamed = {}
    for key, value in state.items():
        if ".downsample." in key and value.ndim and value.shape[-1] % 4 == 0:
            # mmdetection's merging keeps channels together, the release's the four phases (0,0) (1,0) (0,1) (1,1)
            apart = value.unflatten(-1, (value.shape[-1] // 4, 4))
            value = apart[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2)
        renamed[_rename(_MMDET, key)] = value
    return renamed


def _rename(rules: Rules, key: str) -> str:
    """Apply all rules whose pattern matches, in order."""
    for pattern, replacement in rules:
        match = re.search(pattern, key)
        if match:
            new = match.expand(replacement)
            shift = _SHIFT.search(new)
            if shift:
                new = new.replace(shift[0], str(int(match[1]) + int(shift[1])))
            key = key[: match.start()] + new + key[match.end() :]
    return key
