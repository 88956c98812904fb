"""Our own label files: every key is read, and a bad line or box costs only itself."""

import json

import pytest
import torch

from glip.data.labels import read_labels
from glip.structures import Phrase, TarMember

GOOD = {
    "image": "a.jpg",
    "width": 640,
    "height": 480,
    "caption": "a dog and a cat",
    "phrases": [{"text": "a dog", "spans": [[0, 5]]}, {"spans": [[10, 15]]}],
    "boxes": [{"box": [1, 2, 30.5, 40], "phrases": [1, 0], "score": 0.9}, {"box": [0, 0, 9, 9], "phrases": [0]}],
}


def read(tmp_path, *rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    return read_labels(tmp_path / "a.jsonl", [tmp_path])


def test_a_caption(tmp_path):
    found = read(tmp_path, GOOD, b"", GOOD | {"id": 17, "boxes": [], "phrases": [], "width": None})
    first, second = found.samples
    assert first.image == tmp_path / "a.jpg" and first.image_id == "a.jpg" and first.size == (640, 480)
    assert first.prompt.caption == "a dog and a cat" and first.caption == "" and not first.prompt.is_list
    assert first.prompt.phrases == (Phrase("a dog", ((0, 5),)), Phrase("a cat", ((10, 15),)))
    assert torch.equal(first.boxes, torch.tensor([[1, 2, 30.5, 40], [0, 0, 9, 9]]))
    assert first.box_phrases == ((1, 0), (0,)) and first.scores == (0.9, 1.0), "without a score: drawn by people"
    assert (second.image_id, second.caption, second.prompt, second.size) == (17, "a dog and a cat", None, None)
    assert second.scores == () and found.skipped.counts == {}


def test_names_hold_until_others_are_given(tmp_path):
    box = {"box": [1, 2, 3, 4], "phrases": [1], "crowd": True}
    found = read(
        tmp_path,
        {"image": "a.jpg", "names": ["dog", "cat"], "boxes": [box], "absent": [0, 7], "incomplete": [1]},
        {"image": "b.jpg", "boxes": []},
        GOOD,
        {"image": "c.jpg", "boxes": [box | {"phrases": [0]}]},
    )
    first, second, third, fourth = found.samples
    assert first.vocabulary == second.vocabulary == fourth.vocabulary == ("dog", "cat") and third.vocabulary == ()
    assert (first.crowd, first.absent, first.incomplete) == ((0,), (0,), (1,)) and second.absent is None
    assert first.box_phrases == ((1,),) and fourth.box_phrases == ((0,),) and first.prompt is None
    assert found.vocabulary == (), "not one list of names for all"
    assert read(tmp_path, {"image": "a.jpg", "names": ["dog"], "boxes": []}).vocabulary == ("dog",)


def test_images_in_archives(tmp_path):
    row = {"image": "0.tar", "member": "7.jpg", "start": 512, "length": 99, "caption": "a dog"}
    found = read(tmp_path, row, row | {"start": -1}, row | {"length": 1 << 40}, row | {"member": 5})
    assert [sample.image for sample in found.samples] == [TarMember(tmp_path / "0.tar", "7.jpg", 512, 99)]
    assert found.skipped.counts == {"member of an archive without start and length": 3}


@pytest.mark.parametrize("spans", [[[0, 99]], None])
def test_a_bad_phrase_takes_only_its_own_boxes_along(tmp_path, spans):
    found = read(tmp_path, GOOD | {"phrases": [{"text": "x", "spans": spans}, GOOD["phrases"][1]]})
    (sample,) = found.samples
    assert sample.prompt.texts == ("a cat",) and sample.box_phrases == ((0,),)
    assert found.skipped.counts["box of an unknown phrase"] == 1 and sum(found.skipped.counts.values()) == 2


def test_lists_and_classes_of_a_prompt(tmp_path):
    found = read(tmp_path, GOOD | {"list": True, "classes": [3, -1]}, GOOD | {"classes": [3]})
    assert found.samples[0].prompt.is_list and found.samples[0].prompt.classes == (3, -1)
    assert found.samples[1].prompt.classes == (0, 1)


@pytest.mark.parametrize("bad", [{"image": "b.jpg", "names": ["owl", 5], "boxes": []}, b'{"names": ["owl"', b"7"])
def test_names_do_not_hold_beyond_a_line_that_may_have_had_others(tmp_path, bad):
    row = {"image": "c.jpg", "boxes": [{"box": [1, 2, 3, 4], "phrases": [0]}]}
    found = read(tmp_path, row | {"names": ["dog"]}, bad, row, row | {"names": ["cat"], "image": "../a.jpg"}, row)
    assert [sample.vocabulary for sample in found.samples] == [("dog",), ("cat",)], "a bad image takes no names along"
    assert found.skipped.counts["line with neither a caption nor names"] == 1
