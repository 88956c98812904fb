"""Masks by tiny random SAM and SAM 2, by a stub whose masks are known, and in every output."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from pycocotools.coco import COCO

from glip.errors import CheckpointError
from glip.structures import Detections, Prompt

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
sam = pytest.importorskip("glip.integrations.sam")
PROMPT = Prompt.from_names(["a cat", "a dog"])
SIZE = (60, 90)


@pytest.fixture
def found() -> Detections:
    boxes = torch.tensor([[10.0, 5, 40, 30], [50, 20, 89, 59], [0, 0, 20, 59]])
    return Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 1]), PROMPT, SIZE)


def tiny(kind: str):
    """A model of few random weights and its processor."""
    if kind == "sam":
        vision = dict(hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64)
        vision |= dict(patch_size=8, window_size=4, global_attn_indexes=[0], mlp_dim=16, num_pos_feats=8)
        decoder = dict(hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16)
        prompt = dict(hidden_size=16, image_size=64, patch_size=8)
        config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
        images = transformers.SamImageProcessor(
            size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16}
        )
        return transformers.SamModel(config), transformers.SamProcessor(images)
    backbone = dict(hidden_size=8, num_attention_heads=1, image_size=[64, 64], blocks_per_stage=[1, 1, 1, 1])
    backbone |= dict(embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 1, 1])
    backbone |= dict(global_attention_blocks=[], window_size_per_stage=[4, 2, 2, 2])
    vision = dict(backbone_config=backbone | {"model_type": "sam2_hiera_det_model"}, fpn_hidden_size=16)
    vision |= dict(backbone_channel_list=[64, 32, 16, 8], backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]])
    decoder = dict(hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16)
    prompt = dict(hidden_size=16, image_size=64, patch_size=16)
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    size = {"height": 64, "width": 64}
    images = transformers.Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16})
    return transformers.Sam2Model(config), transformers.Sam2Processor(images)


class Filled:
    """Instead of a model: keeps what it is asked, and fills each box it gets, in a grid of the network's side."""

    device = torch.device("cpu")

    def eval(self):
        return self

    def __call__(self, pixel_values, input_boxes, multimask_output):
        self.asked, side = input_boxes, pixel_values.shape[-1]
        y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
        left, top, right, bottom = input_boxes[..., None, None].unbind(2)
        inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        return SimpleNamespace(pred_masks=inside[:, :, None].float() * 2 - 1)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_a_mask_for_each_box(found, kind, tmp_path):
    for part in tiny(kind):
        part.save_pretrained(tmp_path)
    segment = sam.Segmenter.from_pretrained(tmp_path, device="cpu")
    image = Image.effect_noise(SIZE[::-1], 80).convert("RGB")
    masks = segment(image, found).masks
    assert masks.shape == (3, *SIZE) and masks.dtype == torch.bool
    assert segment(image, found[:0]).masks.shape == (0, *SIZE)
    assert torch.equal(segment(image, found[[1]]).masks[0], masks[1]), "each box has its own mask, in order"


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_boxes_reach_the_model_in_its_own_pixels(found, kind):
    model, processor = tiny(kind)
    stub = Filled()
    given = sam.Segmenter(stub, processor)(Image.new("RGB", SIZE[::-1]), found)
    height, width = (43, 64) if kind == "sam" else (64, 64)  # SAM keeps the aspect, SAM 2 does not
    factors = torch.tensor([width / SIZE[1], height / SIZE[0]] * 2)
    assert torch.allclose(stub.asked[0], found.boxes * factors, atol=1e-4)
    for mask, (left, top, right, bottom) in zip(given.masks, found.boxes.int().tolist(), strict=True):
        wanted = torch.zeros(SIZE, dtype=torch.bool)
        wanted[top:bottom, left:right] = True
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.88


def test_masks_in_every_form(found, image):
    box = torch.zeros(3, *SIZE, dtype=torch.bool)
    box[0, 5:30, 10:40], box[1, 20:59, 50:89] = True, True
    masked = sam.replace(found, masks=box)
    rows, truth = masked.to_coco(1, [1, 2]), COCO()
    truth.dataset = {"images": [{"id": 1, "height": 60, "width": 90}], "annotations": []}
    truth.dataset["categories"] = [{"id": 1}, {"id": 2}]
    truth.createIndex()
    read = truth.loadRes(rows)
    assert [int(truth.annToMask(one).sum()) for one in read.loadAnns([1, 2, 3])] == [750, 39 * 39, 0]
    assert np.array_equal(read.annToMask(read.loadAnns(1)[0]).astype(bool), box[0].numpy())
    assert json.loads(json.dumps(masked.to_rle())) == [row["segmentation"] for row in rows] and found.to_rle() == []
    assert torch.equal(masked[[1]].masks, box[[1]]) and "segmentation" not in found.to_coco(1, [1, 2])[0]
    blank = Image.new("RGB", SIZE[::-1], (255, 255, 255))
    plain, drawn = (one.draw(blank, scores=False) for one in (found, masked))
    middle = drawn.width * 25 // 90, drawn.height * 22 // 60
    assert plain.getpixel(middle) == (255, 255, 255) != drawn.getpixel(middle)


def test_docs(run_docs, monkeypatch):
    monkeypatch.setattr(sam.Segmenter, "from_pretrained", lambda name: sam.Segmenter(*tiny("sam")))
    assert len(run_docs("Masks by SAM")["found"].masks) >= 3


@pytest.mark.parametrize(("name", "problem"), [("nowhere", "is no folder, and cannot be"), (".", "is no SAM or SAM 2")])
def test_no_such_model(name, problem, tmp_path, monkeypatch):
    asked = []

    def refuse(name, **_):
        asked.append(name)
        raise LocalEntryNotFoundError("No network.\nSecond sentence.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=f"masks: '{name}' {problem} .*such as facebook/sam-vit-base") as caught:
        sam.Segmenter.from_pretrained(name)
    assert len(asked) == (name == "nowhere") and ("(No network)" in str(caught.value)) == bool(asked)


def test_the_command(tiny_folder, image, tmp_path, monkeypatch, capsys):
    from glip.cli.main import main

    monkeypatch.chdir(tmp_path)
    image.save("a.png")
    for part in tiny("sam"):
        part.save_pretrained("sam")
    command = ["detect", "a.png", "a cat", "--model", str(tiny_folder), "--masks", "sam", "--max-detections", "3"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--format", "coco", "--format", "jsonl", "--device", "cpu"])
    assert not stopped.value.code, capsys.readouterr().err
    tree = json.loads((tmp_path / "out/results/coco.json").read_text())
    line = json.loads((tmp_path / "out/results/detections.jsonl").read_text())
    sizes = [one["segmentation"]["size"] for one in tree["annotations"]]
    assert sizes == [one["mask"]["size"] for one in line["detections"]] == [[110, 150]] * len(sizes) and len(sizes) >= 3
