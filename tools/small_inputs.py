"""Small drawn inputs for every verb: a model of random weights, a COCO set, captioned images, labels, a config.

For tools that run verbs many times (``torture.py``); the folder has fixed names, and ``warm_up`` does the imports.
"""

import codecs
import json
import os
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from draw_world import write_world
from drawn_world.scenes import Thing, World, draw_scene

from glip.cli.arguments import build_parser
from glip.config import VisionConfig
from glip.data.image import load_image
from glip.data.video import write_video
from glip.model.glip import build
from glip.model.weights import ASSETS, BUNDLED, save_pretrained
from glip.text.phrases import noun_phrases
from glip.train.start import load_config

SIDE, IMAGES = 64, 6
NAMES = ("red circle", "blue star")
LABEL = ("--threshold=0", "--max-detections=5", "--min-bytes=0", "--min-side=0", "--same-image=-1", "--per-shard=3")
SELECT = ("--min-score=0", "--min-best-score=0")
_CONFIG = """
extends: tiny
model:
  vision: {{widths: [16, 32, 64, 128], depths: [1, 1, 1, 1], heads: [1, 1, 2, 2]}}
  language: {{hidden: 32, heads: 2, layers: 1, intermediate: 32}}
  head: {{blocks: 1, channels: 32, fusion_width: 32, fusion_heads: 2}}
  image: {{min_size: {side}, max_size: {side}}}
  inference: {{threshold: 0.0, candidate_threshold: 0.0, candidates_per_level: 20}}
data:
  root: {root}
  crop: {side}
  short_side: [{side}, {side}]
  workers: 0
  train: [{{name: drawn, annotations: coco/instances.json, images: [coco/images]}}]
train: {{steps: 6, batch_size: 2, warmup: 0, drops: [], save_every: 2, log_every: 1}}
"""


def make(folder: Path) -> None:
    """Write all of them: model/, coco/, clip.mp4 (where PyAV is installed), world/, labels/ and train.yaml."""
    folder.mkdir(parents=True)
    write_coco(folder / "coco")
    if find_spec("av"):
        with write_video(folder / "clip.mp4", rate=10) as add:
            for number in range(12):
                for image in (folder / "coco" / "images").glob(f"{number % 6}.png"):
                    add(load_image(image), number / 10)
    write_world(folder / "world", World("train", sides=(SIDE, SIDE + 16)), 10, format="png")
    (folder / "train.yaml").write_text(_CONFIG.format(side=SIDE, root=folder))
    config = load_config(folder / "train.yaml").model
    torch.manual_seed(0)
    save_pretrained(folder / "model", build(config).eval(), config, ASSETS / BUNDLED)
    vision = VisionConfig(kind="resnet", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))  # exporters take Swin a minute
    config = replace(config, vision=vision)
    save_pretrained(folder / "resnet", build(config).eval(), config, ASSETS / BUNDLED)
    rows = [
        {
            "image": f"{number}.png",
            "id": number,
            "width": SIDE,
            "height": SIDE,
            "caption": "a dog and a cat",
            "phrases": [{"text": "dog", "spans": [[2, 5]]}, {"text": "cat", "spans": [[12, 15]]}],
            "boxes": [{"box": [1.0, 2.0, 30.0, 40.0 - number % 9], "phrases": [number % 2], "score": 0.5}],
        }
        for number in range(2_000)
    ]
    (folder / "labels").mkdir()
    for shard in range(4):
        lines = "".join(json.dumps(row) + "\n" for row in rows[shard::4])
        (folder / "labels" / f"{shard}.jsonl").write_text(lines)
        (folder / "labels" / f"{shard}.report.json").write_text(json.dumps({"shard": str(shard)}))
    (folder / "labels" / "manifest.json").write_text(json.dumps({"images": [str(folder)]}))


def write_coco(folder: Path) -> None:
    """Images of two things each, and their boxes."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(IMAGES):
        boxes = [(4.0 + number, 6.0, 28.0 + number, 30.0), (34.0, 30.0 + number, 58.0, 54.0 + number)]
        named = zip(NAMES, boxes, strict=True)
        things = [Thing(*reversed(name.split()), "plain", box) for name, box in named]  # type: ignore[call-arg, arg-type]
        draw_scene(things, (SIDE, SIDE), number).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        for label, (x1, y1, x2, y2) in enumerate(boxes):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({"image_id": number, "category_id": label + 1, "bbox": box, "iscrowd": 0})
    tree = {"images": images, "annotations": annotations}
    tree["categories"] = [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)]
    (folder / "instances.json").write_text(json.dumps(tree))


def warm_up() -> None:
    """Import what the verbs import late, once for all processes that are forked afterwards."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "RAY_DISABLE_IMPORT_WARNING": "1"}
    torch.set_num_threads(1)
    build_parser()
    for verb in ("train", "tune", "evaluate", "label", "select", "self_train", "detect", "export", "serve"):
        import_module(f"glip.cli.{verb}")
    for module in ("integrations.export", *(["integrations.serve"] if find_spec("uvicorn") else [])):
        import_module(f"glip.{module}")
    for module in ("recipes.tune", "recipes.detect_files", "recipes.self_training", "evaluate.evaluation", "train.run"):
        import_module(f"glip.{module}")
    for module in ("matplotlib.figure", "matplotlib.font_manager", "torch.utils.tensorboard", "pycocotools.cocoeval"):
        import_module(module)
    noun_phrases("a cat on a mat")
    codecs.lookup("utf-8-sig")  # a user without rights may be unable to read Python's own files
