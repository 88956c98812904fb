"""GLIP (Li et al. 2022, arXiv 2112.03857): images and captions in, alignment and boxes of every location out.

Read downhill: image -> pyramid, caption -> token features, both through the tower (fusion, text layer, dynamic
block; n times), then the heads. ``encode_image`` and ``encode_text`` may be called once and ``fuse_and_predict`` many
times.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from glip.config import HeadConfig, LanguageConfig, ModelConfig, VisionConfig
from glip.errors import CheckpointError
from glip.geometry.anchors import grid_anchors
from glip.model.dyhead import DynamicBlock
from glip.model.fusion import Fusion
from glip.model.heads import BoxHead, TokenHead
from glip.model.language import BertConfig, TextEncoder, TextLayer, bert_config
from glip.model.vision import NUM_LEVELS, FeaturePyramid, ResNet, Swin
from glip.shapes import Float, Tensor
from glip.structures import Batch, Outputs, TextBatch, TextFeatures

Map = Float[Tensor, "batch chan _height _width"]  # levels differ in size


class TowerStage(nn.Module):
    """One step of deep fusion: fusion, one BERT layer on the text, one dynamic block on the image (equation 5)."""

    def __init__(self, image: DynamicBlock, fusion: Fusion | None, text: TextLayer | None) -> None:
        super().__init__()
        self.fusion, self.text, self.image = fusion, text, image

    def forward(self, levels: Sequence[Map], text: TextFeatures) -> tuple[Sequence[Map], TextFeatures]:
        if self.fusion is not None and self.text is not None:
            levels, hidden = _fuse(self.fusion, levels, text)
            text = replace(text, hidden=self.text(hidden, text.attention_mask))
        return self.image(levels), text


class GLIP(nn.Module):
    """The network. Built by ``build``; every size comes from a ModelConfig."""

    def __init__(
        self,
        *,
        vision: Swin | ResNet,
        pyramid: FeaturePyramid,
        language: TextEncoder,
        tower: Sequence[TowerStage],
        boxes: BoxHead,
        tokens: TokenHead,
        prompt_offsets: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.vision, self.pyramid, self.language = vision, pyramid, language
        self.tower = nn.ModuleList(tower)
        self.boxes, self.tokens = boxes, tokens
        self.prompt_offsets = prompt_offsets
        self.checkpointing = False

    def checkpoint_gradients(self, on: bool) -> None:
        """Compute activations of the image encoder and the tower again in the backward pass instead of keeping them.

        Gradients are the same, random layers included; memory is for one stage of the tower at a time, and a step
        takes about one more forward pass.
        """
        self.checkpointing = on
        self.vision.checkpoint_gradients(on)

    def freeze(self, *, stages: int = 0, language: bool = False) -> None:
        """Let parts keep their weights in a training; what is frozen runs in eval mode there.

        Args:
            stages: of the image encoder, from the bottom; with the first goes the stem. 0 freezes none.
            language: the language model; the tower's text layers train on.

        Raises:
            ValueError: fewer than 0 stages, or more than there are.
        """
        parts = self.vision.parts()
        if not 0 <= stages < len(parts):
            raise CheckpointError(
                f"stages: got {stages}: the image encoder has {len(parts) - 1}, so give 0 to {len(parts) - 1}"
            )
        for part in parts[: stages + 1] if stages else []:
            part.requires_grad_(False)
        if language:
            self.language.requires_grad_(False)

    def forward(self, batch: Batch) -> Outputs:
        """Ground each caption of a batch in its image."""
        return self.fuse_and_predict(self.encode_image(batch.images.pixels), self.encode_text(batch.text))

    def encode_image(self, pixels: Float[Tensor, "batch 3 height width"]) -> tuple[Map, ...]:
        """The pyramid P3..P7 of normalized images; it does not depend on the caption."""
        levels: tuple[Map, ...] = self.pyramid(self.vision(pixels))
        return levels

    def encode_text(self, text: TextBatch) -> TextFeatures:
        """Features of each token; they do not depend on the image."""
        features: TextFeatures = self.language(text.input_ids, text.attention_mask)
        return features

    def fuse_and_predict(self, levels: Sequence[Map], text: TextFeatures) -> Outputs:
        """Fuse encoded images with encoded captions and read the heads."""
        if self.prompt_offsets is not None:
            text = replace(text, hidden=text.hidden + self.prompt_offsets[: text.hidden.shape[1]])
        for stage in self.tower:
            levels, text = self._stage(stage, levels, text)
        sizes = tuple((x.shape[2], x.shape[3]) for x in levels)
        deltas, centerness = self.boxes(levels)
        regions = torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2)
        logits = self.tokens(regions, text.hidden)
        return Outputs(logits, deltas, centerness, grid_anchors(sizes, device=regions.device), sizes)

    def _stage(self, stage: nn.Module, levels: Sequence[Map], text: TextFeatures) -> tuple[Sequence[Map], TextFeatures]:
        result: tuple[Sequence[Map], TextFeatures] = (
            checkpoint(stage, levels, text, use_reentrant=False) if self.checkpointing else stage(levels, text)
        )
        return result


def build(config: ModelConfig) -> GLIP:
    """A GLIP with random weights and the sizes of a config."""
    vision = _build_vision(config.vision)
    language, head = config.language, config.head
    offsets = nn.Parameter(torch.zeros(config.max_tokens, language.hidden)) if head.prompt_offsets else None
    return GLIP(
        vision=vision,
        pyramid=FeaturePyramid(vision.widths[1:], head.channels, drop_block=head.drop_block),
        language=TextEncoder(_bert(language), frozen_layers=language.frozen_layers),
        tower=[_build_stage(head, language) for _ in range(head.blocks)],
        boxes=BoxHead(head.channels, NUM_LEVELS),
        tokens=TokenHead(head.channels, language.hidden),
        prompt_offsets=offsets,
    )


def _build_vision(config: VisionConfig) -> Swin | ResNet:
    match config.kind:
        case "swin":
            return Swin(config.widths, config.depths, config.heads, window=config.window, drop_path=config.drop_path)
        case "resnet":
            return ResNet(config.widths, config.depths, drop_path=config.drop_path)


def _build_stage(head: HeadConfig, language: LanguageConfig) -> TowerStage:
    block = DynamicBlock(head.channels, head.groups)
    if not head.fusion:
        return TowerStage(block, None, None)
    fusion = Fusion(
        head.channels,
        language.hidden,
        width=head.fusion_width,
        heads=head.fusion_heads,
        dropout=head.fusion_dropout,
        residual=1.0 / head.blocks,
    )
    return TowerStage(block, fusion, TextLayer(_bert(language)))


def _bert(language: LanguageConfig) -> BertConfig:
    return bert_config(
        hidden=language.hidden,
        layers=language.layers,
        heads=language.heads,
        intermediate=language.intermediate,
        vocabulary=language.vocabulary,
        positions=language.positions,
        dropout=language.dropout,
    )


def _fuse(fusion: Fusion, levels: Sequence[Map], text: TextFeatures) -> tuple[tuple[Map, ...], Tensor]:
    """All levels flattened and concatenated meet the text at once, padded image area included (release quirk 10)."""
    flat = torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2)
    image, hidden = fusion(flat, text.hidden, text.attention_mask)
    pieces = image.transpose(1, 2).split([x.shape[2] * x.shape[3] for x in levels], 2)
    return tuple(piece.reshape(x.shape) for piece, x in zip(pieces, levels, strict=True)), hidden
