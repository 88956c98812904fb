"""What is written is read back the same; what a format cannot say is an error that names one that can, or counted."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from small import same_samples

from glip.data.captions import read_captions
from glip.data.coco import read_coco, read_lvis
from glip.data.grounding import read_mdetr, read_odvg, read_silver
from glip.data.labels import read_labels
from glip.data.sets import SampleSet
from glip.data.writers import label_map_of, write_coco, write_labels, write_mdetr, write_odvg
from glip.structures import Phrase, Prompt, Sample, TarMember

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
NAMES = ("dog", "cat", "owl")
PROMPT = Prompt("a dog, two cats", (Phrase("a dog", ((0, 5),)), Phrase("two cats", ((7, 10), (11, 15)))))
BOXES = torch.tensor([[0.1, 1 / 3, 20.7, 30], [5, 6, 99.99, 79.123456]])


def detection(folder: Path, name: str = "a.jpg", **fields: object) -> Sample:
    own = {"boxes": BOXES, "box_phrases": ((2,), (0,)), "vocabulary": NAMES, "image_id": name, "size": (100, 80)}
    return Sample(folder / name, **(own | fields))


def grounding(folder: Path, name: str = "a.jpg", **fields: object) -> Sample:
    own = {"boxes": BOXES, "box_phrases": ((0,), (1,)), "prompt": PROMPT, "image_id": name, "size": (100, 80)}
    return Sample(folder / name, **(own | fields))


def caption(folder: Path, name: str = "a.jpg", **fields: object) -> Sample:
    return Sample(folder / name, torch.empty(0, 4), (), caption="a dog", image_id=name, **fields)


def all_same(first: SampleSet, second: SampleSet, ignore: tuple[str, ...] = ()) -> None:
    assert len(first.samples) == len(second.samples) > 0 and first.vocabulary == second.vocabulary
    assert not second.skipped, str(second.skipped)
    same_samples(first.samples, second.samples, ignore)


def test_coco(tmp_path):
    empty = detection(tmp_path, "sub/c.jpg", boxes=torch.empty(0, 4), box_phrases=())
    given = [detection(tmp_path), detection(tmp_path, "b.jpg", crowd=(1,), image_id=7), empty]
    samples = SampleSet(given, NAMES, ids=(3, 5, 90))
    assert not write_coco(samples, tmp_path / "out.json", [tmp_path])
    found = read_coco(tmp_path / "out.json", [tmp_path])
    all_same(samples, found)
    assert found.ids == (3, 5, 90)
    tree = json.loads((tmp_path / "out.json").read_text())
    assert [row["id"] for row in tree["annotations"]] == [1, 2, 3, 4]
    assert tree["annotations"][1]["bbox"] == pytest.approx([5, 6, 94.99, 73.123456], abs=1e-5)
    assert tree["images"][2]["file_name"] == "sub/c.jpg"
    write_coco(samples, tmp_path / "deep/er/out.json", [tmp_path / "sub", tmp_path])
    tree = json.loads((tmp_path / "deep/er/out.json").read_text())
    assert [row["file_name"] for row in tree["images"]] == ["a.jpg", "b.jpg", "c.jpg"], "of the first that has it"


def test_a_federated_set_is_written_with_lvis_fields(tmp_path):
    given = [detection(tmp_path, absent=(1,), incomplete=(0,)), detection(tmp_path, "b.jpg", absent=())]
    samples = SampleSet(given, NAMES)
    assert not write_coco(samples, tmp_path / "out.json", [tmp_path])
    found = read_lvis(tmp_path / "out.json", [tmp_path])
    all_same(samples, found)
    assert found.ids == (1, 2, 3), "ids are given where the set has none"


def test_mdetr(tmp_path):
    both = grounding(tmp_path, "b.jpg", box_phrases=((0, 1), (1,)), crowd=(1,), image_id=3)
    samples = SampleSet([grounding(tmp_path), both])
    words = tuple(Phrase(" ".join(PROMPT.caption[s:e] for s, e in p.spans), p.spans) for p in PROMPT.phrases)
    assert not write_mdetr(samples, tmp_path / "out.json", [tmp_path])
    found = read_mdetr(tmp_path / "out.json", [tmp_path])
    all_same(samples, found, ignore=("prompt",))
    assert found.samples[0].prompt.phrases == words and found.samples[0].prompt.caption == PROMPT.caption


def test_odvg(tmp_path):
    samples = SampleSet([detection(tmp_path), grounding(tmp_path, "b.jpg")], NAMES)
    lost = write_odvg(samples, tmp_path / "out.jsonl", [tmp_path])
    assert lost.counts == {"id of an image (its line number takes its place)": 2}
    assert json.loads((tmp_path / "out_label_map.json").read_text()) == {"0": "dog", "1": "cat", "2": "owl"}
    all_same(
        samples, read_odvg(tmp_path / "out.jsonl", [tmp_path], label_map_of(tmp_path / "out.jsonl")), ("image_id",)
    )


def test_labels_say_everything(tmp_path):
    listed = Prompt.from_names(["dog", "cat"], negatives=["owl"], classes=[4, 4])
    archived = TarMember(tmp_path / "shards" / "0.tar", "x/7.jpg", 512, 99)
    other = detection(tmp_path, "c.jpg", vocabulary=("ant", "bee", "wasp"), crowd=(0,), absent=(1,), incomplete=(0, 2))
    given = [
        grounding(tmp_path, scores=(0.9, 0.123456789)),
        detection(tmp_path),
        caption(tmp_path, "sub/é.jpg", size=(5, 4)),
        detection(tmp_path, "b.jpg", size=None),
        other,
        detection(tmp_path, image_id=12),
        grounding(tmp_path, prompt=listed, box_phrases=((0, 2), (1,))),
        Sample(archived, torch.empty(0, 4), (), caption="日本語 \U0001f408", image_id="x/7.jpg"),
    ]
    assert not write_labels(SampleSet(given), tmp_path / "out.jsonl", [tmp_path])
    found = read_labels(tmp_path / "out.jsonl", [tmp_path])
    all_same(SampleSet(given), found)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["names" in line for line in lines] == [False, True, False, False, True, True, False, False]


@real
def test_real_sets_come_back_whole(tmp_path):
    images = [SHARED / "coco_mini/images"]
    boxes = read_coco(SHARED / "coco_mini/annotations/instances_val.json", images)
    silver = read_silver(SHARED / "coco_mini/annotations/grounding_silver_val.json", images)
    captions = read_captions(SHARED / "coco_mini/annotations/captions_val.json", images)
    assert not write_coco(boxes, tmp_path / "coco.json", images)
    all_same(boxes, read_coco(tmp_path / "coco.json", images))
    assert not write_mdetr(silver, tmp_path / "mdetr.json", images)
    all_same(silver, read_mdetr(tmp_path / "mdetr.json", images))
    write_odvg(silver, tmp_path / "silver.jsonl", images)
    all_same(silver, read_odvg(tmp_path / "silver.jsonl", images, ""), ("image_id",))
    for number, samples in enumerate((boxes, silver, captions)):
        assert not write_labels(samples, tmp_path / f"{number}.jsonl", images)
        all_same(samples, read_labels(tmp_path / f"{number}.jsonl", images))


OTHER = {"vocabulary": ("dog", "cat", "ant")}


@pytest.mark.parametrize(
    ("write", "make", "fields", "message"),
    [
        (write_coco, grounding, {}, "has a caption, which COCO cannot say: write --to mdetr, odvg or labels"),
        (write_mdetr, detection, {}, "has a list of names, which MDETR json .*: write --to coco, odvg or labels"),
        *[(write, caption, {}, "has a caption without phrases, .* labels") for write in (write_coco, write_mdetr)],
        *[(write, detection, OTHER, "has a list of names of its own, .* labels") for write in (write_coco, write_odvg)],
        (write_odvg, caption, {}, "has a caption without phrases, which ODVG cannot say: write --to labels"),
        (write_odvg, detection, {"absent": (1,)}, r"absent or incomplete, .* --to coco \(LVIS's fields\) or labels"),
    ],
)
def test_what_is_refused(tmp_path, write, make, fields, message):
    with pytest.raises(ValueError, match=f"Image 'a.jpg' .*{message}"):
        write(SampleSet([make(tmp_path, **fields)], NAMES), tmp_path / "out.json", [tmp_path])
    assert not list(tmp_path.iterdir()), "whole or not at all"


@pytest.mark.parametrize("write", [write_coco, write_odvg, write_mdetr, write_labels])
def test_images_without_a_name(tmp_path, write):
    make = grounding if write is write_mdetr else detection
    for image, message in (
        (Image.new("RGB", (4, 3)), "save it and put its path in the sample"),
        (tmp_path.parent / "elsewhere.jpg", "is not in the image folders .*: give its folder"),
        (TarMember(tmp_path / "0.tar", "a", 0, 9), "is in an archive, which .* cannot say: write --to labels"),
    ):
        if isinstance(image, TarMember) and write is write_labels:
            continue
        sample = Sample(**{**make(tmp_path).__dict__, "image": image})
        with pytest.raises(ValueError, match=message):
            write(SampleSet([sample], NAMES), tmp_path / "o", [tmp_path])


def test_what_mdetr_cannot_say_is_counted(tmp_path):
    listed = Prompt.from_names(["dog", "cat", "owl"])
    given = [
        grounding(tmp_path, scores=(0.5, 0.6), prompt=listed),
        grounding(tmp_path, "b.jpg", boxes=torch.empty(0, 4), box_phrases=()),
    ]
    lost = write_mdetr(SampleSet(given), tmp_path / "out.json", [tmp_path])
    assert lost.counts == {
        "caption without a box": 1,
        "phrase without a box": 1,
        "that a caption is a list of names, or its classes": 1,
        "score": 2,
    }
    assert len(read_mdetr(tmp_path / "out.json", [tmp_path]).samples) == 1


def test_what_coco_and_odvg_cannot_say_is_counted(tmp_path):
    given = [detection(tmp_path, scores=(0.5, 0.6), box_phrases=((0, 1), (2,)), crowd=(1,)), detection(tmp_path)]
    samples = SampleSet(given, NAMES)
    lost = write_coco(samples, tmp_path / "out.json", [tmp_path])
    several = "that several names are of one box (it is written once for each)"
    assert lost.counts == {several: 1, "id of an image (another has it too)": 1}
    found = read_coco(tmp_path / "out.json", [tmp_path]).samples
    assert [sample.image_id for sample in found] == ["a.jpg", "a.jpg#2"]
    written = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert [box.get("score") for box in written] == [0.5, 0.5, 0.6, None, None], "as in COCO's results"
    assert [sample.box_phrases for sample in found] == [((0,), (1,), (2,)), ((2,), (0,))]
    lost = write_odvg(samples, tmp_path / "out.jsonl", [tmp_path])
    assert lost.counts["box of a crowd"] == 1 and lost.counts["score"] == 2 and lost.counts[several] == 1


def test_sizes_come_from_the_image_when_they_are_not_stated(tmp_path):
    Image.new("RGB", (9, 7)).save(tmp_path / "a.jpg")
    given = [detection(tmp_path, size=None), detection(tmp_path, "missing.jpg", size=None)]
    lost = write_coco(SampleSet(given, NAMES), tmp_path / "out.json", [tmp_path])
    assert lost.counts == {"size of an image that cannot be read": 1}
    assert [sample.size for sample in read_coco(tmp_path / "out.json", [tmp_path]).samples] == [(9, 7), None]


def test_names_that_coco_cannot_tell_apart_are_counted(tmp_path):
    names = ("bat_(animal)", "dog", "bat_(stick)", "bat")
    samples = SampleSet([detection(tmp_path, vocabulary=names)], names)
    lost = write_coco(samples, tmp_path / "set.json", [tmp_path])
    reason = "name written twice, the two cannot be kept apart"
    assert lost.counts == {reason: 2} and lost.places == {reason: ["bat"]}
