"""Small things for tests: a GLIP of few weights, four drawn images, a COCO set of them, a checkpoint as released."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from drawn_world.scenes import Thing, draw_scene
from golden.weights import param
from PIL import Image

from glip.config import HeadConfig, ImageConfig, LanguageConfig, ModelConfig, VisionConfig
from glip.model.glip import GLIP, build
from glip.model.release import our_name
from glip.model.weights import ASSETS, BUNDLED
from glip.structures import Sample
from glip.train.start import load_config

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ASSETS / BUNDLED
TINY = load_config("tiny").model
QUICK = replace(  # of small images, and any box is a detection
    TINY,
    image=replace(TINY.image, min_size=96, max_size=128),
    inference=replace(TINY.inference, threshold=0.0, candidate_threshold=0.0, max_detections=20),
)
NAMES = ("red circle", "blue star", "green square", "yellow heart")

# Sizes of a model in the release's layout, where BERT's heads are 64 wide and no shape says so.
RELEASED = ModelConfig(
    name="released",
    vision=VisionConfig(widths=(16, 32, 64, 128), depths=(2, 1, 1, 1), heads=(1, 1, 2, 2), window=4),
    language=LanguageConfig(hidden=128, layers=2, heads=2, intermediate=64, positions=256),
    head=HeadConfig(channels=32, blocks=2, fusion_width=64),
    image=ImageConfig(min_size=64, max_size=96),
)
SMALL = replace(RELEASED, language=replace(RELEASED.language, vocabulary=300))  # for tests that read no words


def seeded(config: ModelConfig, seed: int = 0) -> GLIP:
    """A model in eval mode whose random weights depend on the seed alone."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = build(config).eval()
    torch.set_rng_state(state)
    return model


def scenes() -> list[tuple[Image.Image, list[Thing]]]:
    """Four drawn images with two or three things each."""
    kinds = [name.split()[1] for name in NAMES]
    colours = [name.split()[0] for name in NAMES]
    layouts = [
        [(0, (8, 10, 52, 54)), (1, (70, 40, 120, 92))],
        [(2, (14, 50, 60, 96)), (3, (76, 12, 122, 60)), (0, (84, 76, 120, 112))],
        [(1, (10, 12, 62, 60)), (2, (72, 66, 120, 114))],
        [(3, (12, 64, 60, 112)), (0, (70, 14, 118, 62))],
    ]
    drawn = []
    for seed, layout in enumerate(layouts):
        things = [Thing(kinds[k], colours[k], "plain", tuple(map(float, box))) for k, box in layout]
        drawn.append((draw_scene(things, (128, 120), seed), things))
    return drawn


def write_coco(folder: Path) -> Path:
    """The four images as a COCO set below ``folder``: images/ and instances.json, whose path is given."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    tree: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    tree["categories"] = [{"id": 10 * (number + 1), "name": name} for number, name in enumerate(NAMES)]
    for index, (image, things) in enumerate(scenes()):
        image.save(images / f"{index}.png")
        tree["images"].append({"id": index, "file_name": f"{index}.png", "width": image.width, "height": image.height})
        for thing in things:
            x1, y1, x2, y2 = thing.box
            number = 10 * (NAMES.index(f"{thing.colour} {thing.kind}") + 1)
            tree["annotations"].append(
                {"image_id": index, "category_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            )
    file = folder / "instances.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    return file


def release_state(config: ModelConfig = RELEASED) -> dict[str, torch.Tensor]:
    """The state dict of a model of such sizes as the 2022 release stores it: its keys, buffers and dead weights too."""
    name = "glip_t_c" if config.head.fusion else "glip_t_a"
    shapes = {key: value.shape for key, value in build(config).state_dict().items()}
    state = {}
    for line in (Path(__file__).parent / "golden" / "state_dict" / f"{name}.tsv").read_text().splitlines()[1:]:
        key, shape, _, kind = line.split("\t")
        ours = our_name(key, fused=config.head.fusion)
        if re.search(r"head\.scales\.\d", key):
            state[key] = torch.from_numpy(param(key, (1,)))
        elif kind == "buffer" or "cls_logits" in key:
            size = tuple(int(side) for side in shape.split(","))
            state[key] = torch.zeros(size, dtype=torch.int64 if "rpn" not in key else torch.float32)
        elif ours in shapes:
            state[key] = torch.from_numpy(param(key, tuple(shapes[ours])))
    return state


def without_fusion(config: ModelConfig) -> ModelConfig:
    """The same sizes in the form of GLIP-T (A)."""
    return replace(config, head=replace(config.head, fusion=False))


def to_mmdet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What mmdetection's converter makes of the release's names and of Swin's merging (glip_to_mmdet.py, 3.3)."""
    pyramid = {"fpn_inner": ("lateral_convs", 2), "fpn_layer": ("fpn_convs", 2), "top_blocks.p": ("fpn_convs", 3)}
    renamed = {}
    for key, value in state.items():
        if any(part in key for part in ("anchor_generator", "cls_logits", "pooler")):
            continue
        if ".downsample." in key:
            value = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
        new = key.replace("backbone.body.", "backbone.", 1) if key.startswith("backbone.body.") else key
        new = new.replace("backbone.layers.", "backbone.stages.").replace("embed.proj.", "embed.projection.")
        new = new.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
        if new.startswith("backbone."):
            new = new.replace(".attn.", ".attn.w_msa.")
        for part, (place, first) in pyramid.items():
            stem = f"backbone.fpn.{part}"
            if new.startswith(stem):
                number, kind = new.removeprefix(stem).split(".")
                new = f"neck.{place}.{int(number) - first}.conv.{kind}"
        if new.startswith("language_backbone."):
            new = f"language_model.{new}"
        if new.startswith("rpn."):
            new = "bbox_head." + new.removeprefix("rpn.")
        renamed[new.replace("DyConv", "dyconvs").replace("AttnConv", "attnconv")] = value.contiguous()
    return renamed


def saved(tree: object, folder: Path, name: str = "glip.pth") -> Path:
    torch.save(tree, folder / name)
    return folder / name


def same_samples(first: Iterable[Sample], second: Iterable[Sample], ignore: Sequence[str] = ()) -> None:
    """Samples are equal in every field but those to ignore."""
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        for key, value in one.__dict__.items():
            assert key in ("boxes", *ignore) or value == other.__dict__[key], key
