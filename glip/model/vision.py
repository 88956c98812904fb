"""The image encoder: Swin (Liu et al. 2021) or a small ResNet, and the feature pyramid P3..P7 on top of it.

Swin is written here because timm's blocks mask padding and shift windows differently from the 2022 release, and the
ResNet because importing timm takes longer than detecting objects in an image does. timm supplies ImageNet weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from glip.model.products import Linear
from glip.shapes import Float, Tensor

Map = Float[Tensor, "batch _chan _height _width"]  # levels differ in size
NUM_LEVELS = 5
_SHIFT_MASK = -100.0  # added to the attention


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position."""

    relative_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("relative_index", torch.zeros(window**2, window**2, dtype=torch.int64), persistent=False)
        self.number_places()

    def number_places(self) -> None:
        """Give each pair of places in a window its row of the bias table, by their distance."""
        axis = torch.arange(self.window, device=self.relative_index.device)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        dy = y.flatten()[:, None] - y.flatten()[None] + self.window - 1
        dx = x.flatten()[:, None] - x.flatten()[None] + self.window - 1
        self.relative_index.copy_(dy * (2 * self.window - 1) + dx)

    def forward(self, x: Float[Tensor, "window place chan"], mask: Tensor | None) -> Float[Tensor, "window place chan"]:
        windows, places, width = x.shape
        q, k, v = self.qkv(x).view(windows, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.bias_table[self.relative_index].view(places, places, -1).permute(2, 0, 1)[None]
        if mask is not None:  # one mask per window of an image
            bias = (bias + mask[:, None]).repeat(windows // mask.shape[0], 1, 1, 1)
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":  # torch's fused attention takes a third longer here
            mixed = ((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3) + bias.to(q.dtype)).softmax(3) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(mixed.transpose(1, 2).reshape(windows, places, width))


class SwinBlock(nn.Module):
    """Windowed attention and MLP; odd blocks shift the windows by half their side."""

    def __init__(self, width: int, heads: int, *, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch height width chan"], mask: Tensor) -> Float[Tensor, "batch h w chan"]:
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, height, width, chan = x.shape
        window = self.window
        # Padded after the norm and not masked, as in the release: its weights were trained that way.
        rows, columns = (height + window - 1) // window, (width + window - 1) // window
        x = F.pad(x, (0, 0, 0, columns * window - width, 0, rows * window - height))
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        tiles = x.view(batch, rows, window, columns, window, chan).transpose(2, 3).reshape(-1, window * window, chan)
        tiles = self.attn(tiles, mask if self.shift else None)
        x = tiles.view(batch, rows, columns, window, window, chan).transpose(2, 3).reshape(x.shape)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), dims=(1, 2))
        x = x[:, :height, :width]
        # Compiled, the copy keeps "is it contiguous?" from being asked, whose answer differs between sizes.
        return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x


class PatchMerging(nn.Module):
    """Halves the size of a map: four neighbours are concatenated, normalized and projected to twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Float[Tensor, "batch height width chan"]) -> Float[Tensor, "batch h w chan2"]:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        phases = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(phases, -1)))


class SwinStage(nn.Module):
    """Blocks at one resolution, after patch merging except in the first stage."""

    def __init__(self, width: int, heads: int, *, window: int, drop_paths: Sequence[float], merge: bool) -> None:
        super().__init__()
        self.window = window
        self.merge = PatchMerging(width // 2) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window=window, shift=window // 2 if index % 2 else 0, drop_path=rate)
            for index, rate in enumerate(drop_paths)
        )

    def forward(
        self, x: Float[Tensor, "batch height width chan"], checkpointing: bool
    ) -> Float[Tensor, "batch h w chan2"]:
        x = self.merge(x)
        mask = _shift_mask(x.shape[1], x.shape[2], self.window, x.device)
        for block in self.blocks:
            x = checkpoint(block, x, mask, use_reentrant=False) if checkpointing else block(x, mask)
        return x


class Swin(nn.Module):
    """Swin Transformer. Returns C3, C4, C5 (strides 8, 16, 32), each normalized."""

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], *, window: int, drop_path: float
    ) -> None:
        super().__init__()
        self.widths, self._checkpointing = tuple(widths), False
        self.patch = nn.Conv2d(3, widths[0], kernel_size=4, stride=4)
        self.patch_norm = nn.LayerNorm(widths[0])
        ramp = [drop_path * index / max(sum(depths) - 1, 1) for index in range(sum(depths))]
        rates = [ramp[sum(depths[:index]) :][:depth] for index, depth in enumerate(depths)]
        self.stages = nn.ModuleList(
            SwinStage(width, head, window=window, drop_paths=rate, merge=index > 0)
            for index, (width, head, rate) in enumerate(zip(widths, heads, rates, strict=True))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.apply(_init_linear)

    def parts(self) -> list[nn.ModuleList]:
        """What can be frozen, bottom up: the stem, then the blocks of each stage and the merging after them.

        As in the release, where the merging belongs to the finer stage and the norms of the outputs are never frozen.
        """
        merges = [*(stage.get_submodule("merge") for stage in self.stages[1:]), nn.Identity()]
        stages = zip(self.stages, merges, strict=True)
        parts = [nn.ModuleList([stage.get_submodule("blocks"), merge]) for stage, merge in stages]
        return [nn.ModuleList([self.patch, self.patch_norm]), *parts]

    def checkpoint_gradients(self, on: bool) -> None:
        """See ``GLIP.checkpoint_gradients``."""
        self._checkpointing = on

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> list[Map]:
        height, width = pixels.shape[2:]
        pixels = F.pad(pixels, (0, -width % 4, 0, -height % 4))
        x = self.patch_norm(self.patch(pixels).permute(0, 2, 3, 1))
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x, self._checkpointing)
            if index > 0:
                maps.append(self.norms[index - 1](x).permute(0, 3, 1, 2).contiguous())
        return maps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual; where the size changes, the residual is pooled and projected."""

    def __init__(self, channels: int, width: int, *, stride: int, drop_path: float) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(channels, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv3x3(width, width), nn.BatchNorm2d(width)
        self.drop_path, self.downsample = DropPath(drop_path), nn.Sequential()
        if stride > 1 or channels != width:
            pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            project = nn.Conv2d(channels, width, 1, bias=False)
            self.downsample = nn.Sequential(pool, project, nn.BatchNorm2d(width))

    def forward(self, x: Map) -> Map:
        residual = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.drop_path(self.bn2(self.conv2(x)))
        return F.relu(x + residual, inplace=True)


class ResNet(nn.Module):
    """A ResNet-D (He et al. 2019) of basic blocks, for small models. Returns C3, C4, C5.

    Small models learn from few images, and convolutions need far fewer examples than attention. Names of weights and
    initial values are those of timm.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int], *, drop_path: float) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self._recompute: Callable[[nn.Module, Map], Map] | None = None
        stem, channels, block = widths[0] // 2, widths[0] // 2 * 2, 0
        first = [_conv3x3(3, stem, 2), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)]
        second = [_conv3x3(stem, stem), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)]
        parts: dict[str, nn.Module] = {
            "conv1": nn.Sequential(*first, *second, _conv3x3(stem, channels)),
            "bn1": nn.BatchNorm2d(channels),
        }
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for place in range(depth):
                stride, rate = 2 if index > 0 and place == 0 else 1, drop_path * block / max(sum(depths) - 1, 1)
                blocks.append(BasicBlock(channels, width, stride=stride, drop_path=rate))
                channels, block = width, block + 1
            parts[f"layer{index + 1}"] = nn.Sequential(*blocks)
        self.body = nn.ModuleDict(parts)
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def parts(self) -> list[nn.ModuleList]:
        """What can be frozen, bottom up: the stem, then each stage."""
        conv, norm, *stages = self.body.children()
        return [nn.ModuleList([conv, norm]), *(nn.ModuleList([stage]) for stage in stages)]

    def checkpoint_gradients(self, on: bool) -> None:
        """See ``GLIP.checkpoint_gradients``. torch.compile does not support it here: these stages run uncompiled."""
        # Not as a decorator, for which this module would import the compiler, which takes as long as torch itself.
        self._recompute = torch.compiler.disable(_checkpoint_with_batch_norm) if on else None

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> list[Map]:
        conv, norm, *stages = self.body.children()
        x = F.max_pool2d(F.relu(norm(conv(pixels)), inplace=True), 3, stride=2, padding=1)
        maps = []
        for stage in stages:
            x = self._recompute(stage, x) if self._recompute else stage(x)
            maps.append(x)
        return maps[1:]


class DropPath(nn.Module):
    """Skips a residual branch for some images in training (stochastic depth, Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        from torchvision.ops import stochastic_depth  # not at import: torchvision takes as long as torch

        dropped: Tensor = stochastic_depth(x, self.rate, "row")
        return dropped


class DropBlock(nn.Module):
    """Zeroes squares of a map in training (Ghiasi et al. 2018), on the merged P3 and P4 maps as in the release.

    As in the release all channels share one mask; torchvision's DropBlock2d draws one for each channel.
    """

    def __init__(self, rate: float, block: int = 3) -> None:
        super().__init__()
        self.rate, self.block = rate, block

    def forward(self, x: Map) -> Map:
        if not self.training or self.rate == 0.0:
            return x
        seeds = (torch.rand_like(x[:, 0]) < self.rate / self.block**2).to(x.dtype)
        keep = 1 - F.max_pool2d(seeds[:, None], self.block, stride=1, padding=self.block // 2)
        return x * keep * (keep.numel() / keep.sum().clamp(min=1))


class FeaturePyramid(nn.Module):
    """FPN (Lin et al. 2017): P3..P5 from C3..C5, then P6 and P7 by stride-2 convolutions of P5 and ReLU(P6)."""

    def __init__(self, widths: Sequence[int], channels: int, *, drop_block: float) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.drop_block = DropBlock(drop_block)
        for conv in [*self.laterals, *self.outputs, self.p6, self.p7]:
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Map]) -> tuple[Map, ...]:
        merged = self.laterals[-1](maps[-1])
        levels = [self.outputs[-1](merged)]
        for index in range(len(maps) - 2, -1, -1):
            finer = self.laterals[index](maps[index])
            merged = finer + F.interpolate(merged, size=finer.shape[-2:], mode="nearest")
            merged = self.drop_block(merged)
            levels.insert(0, self.outputs[index](merged))
        with torch.autocast(levels[-1].device.type, enabled=False):  # on a CPU the gradient of a bfloat16 convolution
            p6 = self.p6(levels[-1].to(self.p6.weight.dtype))  # over one pixel is uninitialized memory (torch 2.15)
            p7 = self.p7(F.relu(p6))
        return (*levels, p6, p7)


def timm_weights(name: str) -> dict[str, Tensor]:
    """The ImageNet weights of a timm model by its name, downloaded once by timm."""
    import timm

    return timm.create_model(name, pretrained=True).state_dict()


def _checkpoint_with_batch_norm(module: nn.Module, x: Map) -> Map:
    """Checkpointing whose second pass updates copies of the running statistics, so that a step updates them once."""
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _copied_statistics(module)))


@contextmanager
def _copied_statistics(module: nn.Module) -> Iterator[None]:
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    buffers = [(norm, name, value) for norm in norms for name, value in norm.named_buffers()]
    for norm, name, value in buffers:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in buffers:
            setattr(norm, name, value)


def _conv3x3(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _shift_mask(height: int, width: int, window: int, device: torch.device) -> Float[Tensor, "window place place"]:
    """-100 between places that only the shift made neighbours: they come from opposite sides of the map.

    Sizes and comparisons, not slices, so that one compiled program serves every image size.
    """
    rows, columns, shift = (height + window - 1) // window, (width + window - 1) // window, window // 2
    bands = []
    for count in (rows, columns):
        place = torch.arange(count * window, device=device) - count * window
        bands.append(((place >= -window).float() + (place >= -shift).float()).view(count, window))
    tiles = 3 * bands[0][:, None, :, None] + bands[1][None, :, None, :]  # row column window window
    tiles = tiles.view(rows * columns, window**2)
    different = tiles[:, None, :] != tiles[:, :, None]
    return different * _SHIFT_MASK
