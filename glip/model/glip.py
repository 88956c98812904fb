"""GLIP (Li et al. 2022, arXiv 2112.03857): images and captions in, alignment and box of every location out.

Image -> pyramid, caption -> token features, both through the tower (fusion, text layer, dynamic block; n times), then
the heads. Encoded images and captions can be reused: ``encode_image`` and ``encode_text`` once, ``fuse_and_predict``
for every pair.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from glip.config import HeadConfig, LanguageConfig, ModelConfig, VisionConfig
from glip.errors import ConfigError
from glip.geometry.anchors import grid_anchors
from glip.model.dyhead import DynamicBlock, Map
from glip.model.fusion import Fusion, Gate
from glip.model.heads import BoxHead, TokenHead
from glip.model.language import Hidden, Mask, TextEncoder, TextLayer
from glip.model.vision import NUM_LEVELS, FeaturePyramid, ResNet, Swin
from glip.shapes import Float, Tensor
from glip.structures import Batch, Outputs, TextBatch


class TowerStage(nn.Module):
    """One step of deep fusion: fusion, one BERT layer on the text, one dynamic block on the image (equation 5)."""

    def __init__(self, image: DynamicBlock, fusion: Fusion | None, text: TextLayer | None, *, gated: bool) -> None:
        super().__init__()
        self.fusion, self.text, self.image = fusion, text, image
        self.gate_image = Gate() if gated else None
        self.gate_text = Gate() if gated else None

    def forward(self, levels: Sequence[Map], hidden: Hidden, attention_mask: Mask) -> tuple[Sequence[Map], Hidden]:
        if self.fusion is not None and self.text is not None:
            # All levels at once, flattened and concatenated, padding included (docs/parity.md, quirk 10).
            image, words = self.fusion(_flatten(levels), hidden, attention_mask)
            pieces = image.transpose(1, 2).split([x.shape[2] * x.shape[3] for x in levels], 2)
            maps = [piece.reshape(x.shape) for piece, x in zip(pieces, levels, strict=True)]
            words = self.text(words, attention_mask)
            if self.gate_image is not None and self.gate_text is not None:
                maps = [self.gate_image(x, y) for x, y in zip(levels, maps, strict=True)]
                words = self.gate_text(hidden, words)
            levels, hidden = maps, words
        return self.image(levels), hidden


class GLIP(nn.Module):
    """The network. Built by ``build``; every size comes from a ModelConfig."""

    fingerprint = ""  # of weights that it does not hold itself, as an exported model's

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
        """Recompute activations of the image encoder and the tower in the backward pass instead of keeping them.

        Gradients stay the same, random layers included. Memory holds one stage of the tower at a time, and a step
        takes about one more forward pass.
        """
        self.checkpointing = on
        self.vision.checkpoint_gradients(on)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.pyramid.p6.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in; see ``cast``."""
        return self.pyramid.p6.weight.dtype

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in another type, such as bfloat16, for inference: weights are rounded and activations stay in it.

        Sampling places, boxes, centerness and scores are computed in float32, and so are the sums of norms and of
        softmax. For mixed precision in training use autocast instead, which keeps the weights in float32.
        """
        norms = (module for module in self.modules() if isinstance(module, nn.BatchNorm2d))
        offsets = (block.offset for block in self.modules() if isinstance(block, DynamicBlock))
        exact = [self.boxes, self.tokens, *norms, *offsets]
        kept = {id(tensor) for module in exact for tensor in (*module.parameters(), *module.buffers())}
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point() and id(tensor) not in kept:
                tensor.data = tensor.data.to(dtype)

    def freeze(self, *, stages: int = 0, language: bool = False) -> None:
        """Keep the first stages of the image encoder (with its stem) and the language model fixed in training.

        The text layers of the tower are not part of the language model. More stages than there are: ConfigError.
        """
        parts = self.vision.parts()
        if stages >= len(parts):
            raise ConfigError(f"frozen_stages: got {stages}: the image encoder has {len(parts) - 1} stages: give fewer")
        for part in parts[: stages + 1] if stages else []:
            part.requires_grad_(False)
        if language:
            self.language.requires_grad_(False)

    def forward(self, batch: Batch) -> Outputs:
        """Predict boxes and token alignment for each image and its caption."""
        levels, hidden = self.encode_image(batch.images.pixels), self.encode_text(batch.text)
        return self.fuse_and_predict(levels, hidden, batch.text.attention_mask)

    def encode_image(self, pixels: Float[Tensor, "batch 3 height width"]) -> tuple[Map, ...]:
        """The pyramid P3..P7 of normalized images; it does not depend on the caption."""
        return self.pyramid(self.vision(pixels.to(self.dtype)))

    def encode_text(self, text: TextBatch) -> Hidden:
        """Features of each token; they do not depend on the image."""
        return self.language(text.input_ids, text.attention_mask)

    def fuse_and_predict(self, levels: Sequence[Map], hidden: Hidden, attention_mask: Mask) -> Outputs:
        """Fuse encoded images with encoded captions and apply the heads."""
        if self.prompt_offsets is not None:
            hidden = hidden + self.prompt_offsets[: hidden.shape[1]]
        for stage in self.tower:
            if self.checkpointing:
                levels, hidden = checkpoint(stage, levels, hidden, attention_mask, use_reentrant=False)
            else:
                levels, hidden = stage(levels, hidden, attention_mask)
        sizes = tuple((x.shape[2], x.shape[3]) for x in levels)
        deltas, centerness = self.boxes(levels)
        logits = self.tokens(_flatten(levels), hidden)
        return Outputs(logits, deltas, centerness, grid_anchors(sizes, device=logits.device), sizes)


def build(config: ModelConfig) -> GLIP:
    """A GLIP with random weights and the sizes of a config."""
    language, head, vision = config.language, config.head, _build_vision(config.vision)
    offsets = nn.Parameter(torch.zeros(config.max_tokens, language.hidden)) if head.prompt_offsets else None
    return GLIP(
        vision=vision,
        pyramid=FeaturePyramid(vision.widths[1:], head.channels, drop_block=head.drop_block),
        language=TextEncoder(language),
        tower=[_build_stage(head, language) for _ in range(head.blocks)],
        boxes=BoxHead(head.channels, NUM_LEVELS),
        tokens=TokenHead(head.channels, language.hidden),
        prompt_offsets=offsets,
    )


def _build_vision(config: VisionConfig) -> Swin | ResNet:
    if config.kind == "resnet":
        return ResNet(config.widths, config.depths, drop_path=config.drop_path)
    return Swin(config.widths, config.depths, config.heads, window=config.window, drop_path=config.drop_path)


def _build_stage(head: HeadConfig, language: LanguageConfig) -> TowerStage:
    block = DynamicBlock(head.channels, head.groups)
    if not head.fusion:
        return TowerStage(block, None, None, gated=False)
    fusion = Fusion(
        head.channels,
        language.hidden,
        width=head.fusion_width,
        heads=head.fusion_heads,
        dropout=head.fusion_dropout,
        residual=1.0 / head.blocks,
    )
    return TowerStage(block, fusion, TextLayer(language), gated=head.fusion_gate == "tanh")


def add_fusion(model: GLIP, config: ModelConfig) -> tuple[GLIP, ModelConfig]:
    """A trained model without fusion, and its config, with a gated fusion in every block: same outputs until trained.

    The fusions have random weights, always the same; each text layer starts as a copy of the encoder's last layer.
    A model with fusion: ConfigError.
    """
    if config.head.fusion:
        raise ConfigError(f"model {config.name!r} has fusion already: give a model without it (head.fusion false)")
    config = replace(config, head=replace(config.head, fusion=True, fusion_gate="tanh"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fused = build(config)
    last = model.language.bert.encoder.get_submodule("layer").get_submodule(str(config.language.layers - 1))
    texts = (module for module in fused.tower.modules() if isinstance(module, TextLayer))
    for text in texts:
        text.get_submodule("layer").load_state_dict(last.state_dict())
    fused.load_state_dict({**fused.state_dict(), **model.state_dict()})
    return fused.train(model.training), config


def _flatten(levels: Sequence[Map]) -> Float[Tensor, "batch loc chan"]:
    return torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2)
