"""Recall of phrases: Flickr30K Entities equal to its official evaluator, then cases worked by hand, and bad files."""

import csv
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scored import captioned, detections, sample, shared_case

from glip.data.flickr30k import read_flickr30k
from glip.data.grounding import read_mdetr
from glip.data.sets import SkipCounter
from glip.evaluate.phrases import (
    caption_id,
    caption_recall,
    phrase_hits,
    phrase_recall,
    prediction_row,
    ranked_boxes,
    read_predictions,
    scored_phrases,
)
from glip.geometry.boxes import scale
from glip.structures import Detections, Phrase, Prompt, Sample

PROTOCOLS = ("any-box", "merged-boxes")
OFFICIAL = {"any-box": "any_box_separate", "merged-boxes": "merged_boxes"}
IGNORED = {  # of each case's predictions
    "flickr30k": {"second prediction for a sentence": 1, "prediction for an unknown sentence": 6},
    "flickr30k_quirks": {},
}


def read_released(folder, names, tally):
    """The captions of a split of the released files, also phrases whose only boxes have no area."""
    found = read_flickr30k(folder, [folder], names, flat_boxes=True)
    tally.merge(found.skipped)
    return list(found.samples)


@cache
def asked(name):
    """What the official evaluator asks for in a case."""
    folder = shared_case(name)
    return read_released(folder / "annotations", folder / "annotations" / "test.txt", SkipCounter())


@cache
def asked_by_mdetr(ground_truth):
    path = shared_case("flickr30k") / "mdetr_json" / f"final_flickr_{ground_truth}GT_test.json"
    return list(read_mdetr(path, [path.parent]).samples)


@cache
def predicted(name):
    tally = SkipCounter()
    boxes = read_predictions(shared_case(name) / "predictions.json", asked(name), tally)
    assert tally.counts == IGNORED[name]
    return boxes


@cache
def official(name):
    return json.loads((shared_case(name) / "expected.json").read_text(encoding="utf-8"))


@cache
def from_raw_detections():
    """The boxes of every phrase, and their scores, by sentence, made of detections in network pixels."""
    with np.load(shared_case("flickr30k") / "raw_detections.npz") as file:
        arrays = dict(file)
    boxes, scores = {}, {}
    for index, key in enumerate(zip(arrays["image_id"].tolist(), arrays["sentence_id"].tolist(), strict=True)):
        sample, found = detections_of(arrays, index)
        boxes[key] = ranked_boxes(sample, found)
        scores[key] = [found.scores[found.labels == label].tolist() for label in range(len(boxes[key]))]
    return boxes, scores


def detections_of(arrays, index):
    """A sentence's detections as a detector gives them: in pixels of the image, best first."""
    rows, count = slice(*arrays["det_offset"][index : index + 2]), int(arrays["num_phrases"][index])
    boxes, scores = (torch.from_numpy(arrays[key][rows]) for key in ("boxes", "scores"))
    width, height = arrays["net_size_wh"][index].tolist()
    size = tuple(arrays["orig_size_hw"][index].tolist())
    prompt = Prompt("x" * count, tuple(Phrase("x", ((i, i + 1),)) for i in range(count)))
    sample = Sample(Path("x.jpg"), torch.ones(count, 4), tuple((i,) for i in range(count)), prompt=prompt)
    order = scores.argsort(descending=True, stable=True)
    labels = torch.from_numpy(arrays["labels"][rows])[order] - 1
    return sample, Detections(scale(boxes, (height, width), size)[order], scores[order], labels, prompt, size)


def recall_of(truths, boxes, protocol):
    return caption_recall(zip(truths, boxes, strict=True), protocol=protocol)


def figures_of(recall):
    """Under the official evaluator's names."""
    parts = {"all": recall} | recall.kinds
    figures = {f"Upper_bound_{kind}": part.upper_bound for kind, part in parts.items()}
    return figures | {f"Recall@{rank}_{kind}": share for kind, part in parts.items() for rank, share in part.at.items()}


def exactly(figures):
    return pytest.approx(figures, abs=1e-9, rel=0)


# ---- golden


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", IGNORED)
def test_golden_recall(name, protocol):
    """All figures, those of the kinds too, and no others; the quirks hold phrases that boxes without area spoil."""
    recall = recall_of(asked(name), predicted(name), protocol)
    assert figures_of(recall) == exactly(official(name)["recall"][OFFICIAL[protocol]])


def test_golden_every_phrase():
    """Each phrase of each sentence: its kinds, how many boxes it has, and whether it is found at every rank."""
    ours = [
        (*caption_id(sample), index, "/".join(sample.kinds[phrase]), len(own))
        + tuple(hit for protocol in PROTOCOLS for hit in phrase_hits(own, ranked, protocol=protocol))
        for sample, boxes in zip(asked("flickr30k"), predicted("flickr30k"), strict=True)
        for index, ((phrase, own), ranked) in enumerate(zip(scored_phrases(sample).items(), boxes, strict=True))
    ]
    with (shared_case("flickr30k") / "phrases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [f"{protocol}_{limit}" for protocol in ("any", "merged") for limit in ("at1", "at5", "at10", "ub")]
    theirs = [
        (int(row["image_id"]), int(row["sentence_id"]), int(row["eval_phrase_index"]), row["types"])
        + (int(row["num_boxes"]), *(row[column] == "1" for column in columns))
        for row in rows
    ]
    assert ours == theirs


def test_golden_boxes_dealt_to_phrases():
    """Step 5 of the release's road: resized, sorted, dealt to the phrases, closed by a box of nothing."""
    with np.load(shared_case("flickr30k") / "expected_postprocess.npz") as file:
        expected = dict(file)
    boxes, scores = from_raw_detections()
    phrases = [ranked for listed in boxes.values() for ranked in listed]
    assert np.array_equal(np.cumsum([0, *map(len, boxes.values())]), expected["phrase_offset"])
    assert np.array_equal(np.cumsum([0, *map(len, phrases)]), expected["box_offset"])
    np.testing.assert_allclose(torch.cat(phrases), expected["boxes"], rtol=0, atol=1e-9)
    closed = [score for listed in scores.values() for phrase in listed for score in [*phrase, np.nan]]
    np.testing.assert_allclose(closed, expected["scores"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("ground_truth", "protocol", "same"),
    [
        ("separate", "any-box", "any_box_separate"),
        ("separate", "merged-boxes", "merged_boxes"),
        ("merged", "any-box", "merged_boxes"),
        ("merged", "merged-boxes", "merged_boxes"),
    ],
)
def test_golden_recall_from_mdetr_json(ground_truth, protocol, same):
    """The figures over all phrases; the json does not say the kinds. Its boxes that overlap by 0.95 are one box."""
    truths, asked_for = asked_by_mdetr(ground_truth), asked("flickr30k")
    for one, other in zip(truths, asked_for, strict=True):
        assert (caption_id(one), len(scored_phrases(one))) == (caption_id(other), len(scored_phrases(other)))
    recall = recall_of(truths, predicted("flickr30k"), protocol)
    expected = official("flickr30k")["recall"][same]
    assert figures_of(recall) == exactly({key: value for key, value in expected.items() if key.endswith("_all")})
    assert recall.kinds == {}


# ---- golden: what is refused and what is passed over


CHANGES = {  # of the quirks' predictions, and our message; None: the official evaluator passes it over
    "a sentence without prediction": (
        lambda rows: rows.pop(),
        "1 of 6 sentences have no prediction of their own, such as sentence 1 of image 105: give one for every",
    ),
    "wrong number of phrases": (
        lambda rows: rows[0]["boxes"].pop(),
        "sentence 0 of image 101 has boxes for 1 phrases: give a list of boxes for each of its 2 phrases",
    ),
    "a phrase with an empty list of boxes": (
        lambda rows: rows[2]["boxes"][1].clear(),
        r"sentence 0 of image 102 has boxes for 1 phrases: .* where nothing was found, \[\[0, 0, 0, 0\]\]",
    ),
    "unknown image id": (lambda rows: rows.append({**rows[0], "image_id": 999}), None),
    "sentence id as text": (lambda rows: rows[0].update(sentence_id="0"), None),
}


@pytest.mark.parametrize("fault", CHANGES)
def test_golden_changed_predictions(fault, tmp_path):
    (change, message), name = CHANGES[fault], "flickr30k_quirks"
    rows = json.loads((shared_case(name) / "predictions.json").read_text(encoding="utf-8"))
    change(rows)
    tally = SkipCounter()
    assert (official(name)["errors"][fault] == "no error") is (message is None)
    if message:
        with pytest.raises(ValueError, match=message) as caught:
            read_rows(tmp_path, rows, asked(name), tally)
        assert "\n" not in str(caught.value)
        return
    recall = recall_of(asked(name), read_rows(tmp_path, rows, asked(name), tally), "any-box")
    assert tally.counts == ({"prediction for an unknown sentence": 1} if fault == "unknown image id" else {})
    assert figures_of(recall) == exactly(official(name)["recall"]["any_box_separate"])


# ---- files of one's own


MAN, WIRE = (10, 10, 50, 50), (7, 1, 7, 9)
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def released(tmp_path):
    """One image: a man with a box, a wire whose box has no width, in a sentence of their own each and together."""
    for part in ("Annotations", "Sentences"):
        (tmp_path / part).mkdir()
    things = OBJECT.format(1, *MAN) + OBJECT.format(2, *WIRE)
    (tmp_path / "Annotations" / "7.xml").write_text(f"<annotation>{things}</annotation>")
    man, wire = "[/EN#1/people A man]", "[/EN#2/other a wire]"
    (tmp_path / "Sentences" / "7.txt").write_text(f"{wire}\n{man} near {wire}\n[/EN#3/other fog]\n{man}")
    return tmp_path


def test_released_asks_for_phrases_whose_boxes_have_no_area(released):
    tally = SkipCounter()
    truths = read_released(released, "", tally)
    assert [(*caption_id(one), len(scored_phrases(one))) for one in truths] == [(7, 0, 1), (7, 1, 2), (7, 3, 1)]
    assert scored_phrases(truths[1])[1].tolist() == [[*WIRE]] and truths[1].kinds[1] == ("other",)
    assert tally.counts == {"phrase without a box": 1, "caption without a box that can be used": 1}


def read_rows(tmp_path, rows, truths, tally=None):
    (tmp_path / "rows.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return read_predictions(tmp_path / "rows.json", truths, SkipCounter() if tally is None else tally)


def test_rows_are_read_back(released, tmp_path):
    truths = read_released(released, "", SkipCounter())
    boxes = [tuple(torch.tensor([[0.1, 2, 3, 4], [0, 0, 0, 0]]) for _ in scored_phrases(one)) for one in truths]
    rows = [prediction_row(truth, listed) for truth, listed in zip(truths, boxes, strict=True)]
    assert rows[1]["image_id"] == 7 and rows[1]["sentence_id"] == 1
    tally = SkipCounter()
    again = read_rows(tmp_path, rows[::-1], truths, tally)
    assert not tally and [[ranked.tolist() for ranked in listed] for listed in again] == [
        [ranked.tolist() for ranked in listed] for listed in boxes
    ]
    with pytest.raises(ValueError, match="1 of 4 sentences have no prediction of their own"):
        read_rows(tmp_path, rows, [*truths, truths[0]])


ROW = {"image_id": 7, "sentence_id": 0}
NO_BOXES = (7, [1, 2, 3], [1, 2, 3, float("nan")], ["a", 2, 3, 4], [True] * 4, [10**400] * 4)


@pytest.mark.parametrize("rows", ["{}", "[", [7], [ROW], *([{**ROW, "boxes": [[box]]}] for box in NO_BOXES)])
def test_files_that_are_no_predictions(rows, released, tmp_path):
    with pytest.raises(ValueError, match=r"rows\.json") as caught:
        read_rows(tmp_path, rows, read_released(released, "", SkipCounter()))
    assert "\n" not in str(caught.value)


def test_long_ids_that_begin_alike_are_two_captions(tmp_path):
    one = captioned("a cat", ["a cat"], [(A, 0)])
    truths = [replace(one, image_id=f"{'folder/' * 9}{number}.jpg") for number in (1, 2)]
    rows = [prediction_row(truth, [torch.tensor([[number, 0.0, 9, 9]])]) for number, truth in enumerate(truths)]
    assert [boxes[0][0, 0] for boxes in read_rows(tmp_path, rows, truths)] == [0, 1]


def test_boxes_of_negative_size_find_nothing_and_are_counted(released, tmp_path):
    [*_, truth] = read_released(released, "", SkipCounter())
    (x1, y1, x2, y2), tally = MAN, SkipCounter()
    rows = [{"image_id": 7, "sentence_id": 3, "boxes": [[[x2, y2, x1, y1], [x2, y1, x1, 49], [x1, y1, x2, y2]]]}]
    boxes = read_rows(tmp_path, rows, [truth], tally)
    assert tally.counts == {"box of negative size": 2}
    assert recall_of([truth], boxes, "any-box").at == {1: 0.0, 5: 1.0, 10: 1.0}


def test_ids_of_the_release_where_the_json_states_them(tmp_path):
    image = {"file_name": "7.jpg", "height": 9, "width": 9, "caption": "a man"}
    box = {"bbox": [1, 1, 5, 5], "tokens_positive": [[2, 5]]}
    tree = {
        "images": [{**image, "id": 0, "original_img_id": 7, "sentence_id": 4}, {**image, "id": 1}],
        "annotations": [{**box, "id": i, "image_id": i} for i in (0, 1)],
    }
    path = tmp_path / "mdetr.json"
    path.write_text(json.dumps(tree))
    assert [caption_id(one) for one in read_mdetr(path, [tmp_path]).samples] == [(7, 4), (1, 0)]


# ---- by hand


A, B, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0), (0.0, 80.0, 15.0, 99.0)
AROUND, NOTHING = (10.0, 10.0, 90.0, 90.0), (0.0, 0.0, 0.0, 0.0)


def hits(ranked, *boxes, protocol="any-box"):
    return phrase_hits(torch.tensor(boxes), torch.tensor(ranked), protocol=protocol)


def test_by_hand():
    """ "a cat" is found second, "two dogs" by one of its boxes at once, "the sky" has no box and does not count."""
    one = captioned("a cat and two dogs under the sky", ["a cat", "two dogs", "the sky"], [(A, 0), (A, 1), (B, 1)])
    found = detections(one, [(FAR, 0.9, 0), (A, 0.8, 0), (B, 0.7, 1), (A, 0.99, 2)])
    recall = phrase_recall([(one, found)])
    assert recall.phrases == 2
    assert recall.at == {1: 0.5, 5: 1.0, 10: 1.0} and recall.upper_bound == 1.0
    assert recall.kinds == {}


def test_merged_boxes_ask_for_the_box_around_all():
    one = captioned("a cat and two dogs", ["a cat", "two dogs"], [(A, 0), (A, 1), (B, 1)])
    found = detections(one, [(A, 0.9, 0), (B, 0.8, 1), (AROUND, 0.7, 1)])
    assert phrase_recall([(one, found)]).at[1] == 1.0
    assert phrase_recall([(one, found)], protocol="merged-boxes").at == {1: 0.5, 5: 1.0, 10: 1.0}


def test_a_phrase_counts_in_each_of_its_kinds():
    one = captioned("a cat and a dog in a car", ["a cat", "a dog", "a car"], [(A, 0), (B, 1), (FAR, 2)])
    one = replace(one, kinds=(("animals",), ("animals", "other"), ("vehicles", "vehicles")))
    recall = phrase_recall([(one, detections(one, [(A, 0.9, 0), (FAR, 0.8, 2)]))])
    assert (recall.phrases, recall.upper_bound) == (3, 2 / 3), "a phrase counts once over all"
    assert {kind: (part.phrases, part.at[1]) for kind, part in recall.kinds.items()} == {
        "animals": (2, 0.5),
        "other": (1, 0.0),
        "vehicles": (2, 1.0),
    }


def test_half_of_the_union_is_a_hit():
    assert all(hits([(0.0, 0.0, 10.0, 5.0)], (0.0, 0.0, 10.0, 10.0)))
    assert not any(hits([(0.0, 0.0, 10.0, 4.99)], (0.0, 0.0, 10.0, 10.0)))


@pytest.mark.parametrize(("rank", "expected"), [(1, "1111"), (2, "0111"), (5, "0111"), (6, "0011"), (11, "0001")])
def test_ranks(rank, expected):
    ranked = [FAR] * (rank - 1) + [A, NOTHING]
    assert "".join(str(int(hit)) for hit in hits(ranked, A, B)) == expected


def test_two_boxes_without_area_spoil_a_phrase_from_that_rank_on():
    flat = (20.0, 20.0, 20.0, 80.0)
    assert hits([A, NOTHING], A, flat) == (True, False, False, False)
    assert hits([A, *[FAR] * 4, NOTHING], A, flat) == (True, True, False, False)
    assert hits([A, FAR], A, flat) == (True, True, True, True)
    assert hits([A, NOTHING], A, flat, protocol="merged-boxes") == (True, True, True, True), "the flat box lies inside"


def test_ranked_boxes_are_sorted_dealt_and_closed():
    one = captioned("a cat, a dog and fog", ["a cat", "a dog", "fog"], [(A, 0), (B, 1)])
    found = detections(one, [(FAR, 0.5, 0), (B, 0.9, 0), (A, 0.7, 2)])
    backwards = found.select(torch.tensor([2, 1, 0]))
    for boxes in (ranked_boxes(one, found), ranked_boxes(one, backwards)):
        assert [ranked.tolist() for ranked in boxes] == [[list(B), list(FAR), list(NOTHING)], [list(NOTHING)]]


def test_ids():
    one = captioned("a cat", ["a cat"], [(A, 0)])
    for image_id, expected in {
        "36979:3": (36979, 3),
        36979: (36979, 0),
        "a:b.jpg": ("a:b.jpg", 0),
        "007:1": ("007", 1),
        ":1": (":1", 0),
        "9" * 5000 + ":1": ("9" * 5000, 1),
    }.items():
        assert caption_id(replace(one, image_id=image_id)) == expected


def test_nothing_to_score_is_an_error():
    cat, dog = (captioned(f"a {name}", [f"a {name}"], [(A, 0)]) for name in ("cat", "dog"))
    listed = sample(["cat"], [(A, 0)])
    for one, other in ((listed, listed), (cat, dog)):
        with pytest.raises(ValueError, match=r"the words to score are .* or with its own caption for recall"):
            phrase_recall([(one, detections(other, []))])
    for one in (captioned("a cat", ["a cat"], []), replace(cat, crowd=(0,))):
        with pytest.raises(ValueError, match="no phrase has a box"):
            phrase_recall([(one, detections(one, []))])
