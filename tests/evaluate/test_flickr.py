"""Flickr30K Entities equal to its official evaluator, from the released files and from MDETR's json."""

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from glip.data.flickr30k import read_flickr30k
from glip.data.grounding import read_mdetr
from glip.data.sets import SkipCounter
from glip.evaluate.phrases import (
    caption_id,
    caption_recall,
    phrase_hits,
    prediction_row,
    ranked_boxes,
    read_predictions,
    scored_phrases,
)
from glip.geometry.boxes import scale
from glip.structures import Detections, Phrase, Prompt, Sample

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "eval"
PROTOCOLS = ("any-box", "merged-boxes")
OFFICIAL = {"any-box": "any_box_separate", "merged-boxes": "merged_boxes"}
IGNORED = {  # of each case's predictions
    "flickr30k": {"second prediction for a sentence": 1, "prediction for an unknown sentence": 6},
    "flickr30k_quirks": {},
}


def case(name):
    folder = GOLDEN / name
    if not folder.is_dir():
        pytest.skip(f"no shared data: {folder}")
    return folder


def read_released(folder, names, tally):
    """The captions of a split of the released files, also phrases whose only boxes have no area."""
    found = read_flickr30k(folder, [folder], names, flat_boxes=True)
    tally.merge(found.skipped)
    return list(found.samples)


@cache
def asked(name):
    """What the official evaluator asks for in a case."""
    folder = case(name)
    return read_released(folder / "annotations", folder / "annotations" / "test.txt", SkipCounter())


@cache
def asked_by_mdetr(ground_truth):
    path = case("flickr30k") / "mdetr_json" / f"final_flickr_{ground_truth}GT_test.json"
    return list(read_mdetr(path, [path.parent]).samples)


@cache
def predicted(name):
    tally = SkipCounter()
    boxes = read_predictions(case(name) / "predictions.json", asked(name), tally)
    assert tally.counts == IGNORED[name]
    return boxes


@cache
def official(name):
    return json.loads((case(name) / "expected.json").read_text(encoding="utf-8"))


@cache
def from_raw_detections():
    """The boxes of every phrase, and their scores, by sentence, made of detections in network pixels."""
    with np.load(case("flickr30k") / "raw_detections.npz") as file:
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


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_golden_recall_from_raw_detections(protocol):
    truths, (boxes, _) = asked("flickr30k"), from_raw_detections()
    recall = recall_of(truths, [boxes[caption_id(sample)] for sample in truths], protocol)
    expected = official("flickr30k")["recall"][f"{OFFICIAL[protocol]}__from_raw_detections"]
    assert figures_of(recall) == exactly(expected)


def test_golden_numbers_of_phrases():
    truths, expected = asked("flickr30k"), official("flickr30k")
    recall = recall_of(truths, predicted("flickr30k"), "any-box")
    counts = {"all": recall.phrases} | {kind: part.phrases for kind, part in recall.kinds.items()}
    assert counts == expected["num_phrases_by_category"]
    assert len(truths) == expected["num_sentences_evaluated"]


def test_golden_every_phrase():
    """Each phrase of each sentence: its kinds, how many boxes it has, and whether it is found at every rank."""
    ours = [
        (*caption_id(sample), index, "/".join(sample.kinds[phrase]), len(own))
        + tuple(hit for protocol in PROTOCOLS for hit in phrase_hits(own, ranked, protocol=protocol))
        for sample, boxes in zip(asked("flickr30k"), predicted("flickr30k"), strict=True)
        for index, ((phrase, own), ranked) in enumerate(zip(scored_phrases(sample).items(), boxes, strict=True))
    ]
    with (case("flickr30k") / "phrases.csv").open(newline="", encoding="utf-8") as file:
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
    with np.load(case("flickr30k") / "expected_postprocess.npz") as file:
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


def quirks(tmp_path, change):
    """The quirks' predictions, changed, read again."""
    rows = json.loads((case("flickr30k_quirks") / "predictions.json").read_text(encoding="utf-8"))
    change(rows)
    (tmp_path / "changed.json").write_text(json.dumps(rows), encoding="utf-8")
    tally = SkipCounter()
    return read_predictions(tmp_path / "changed.json", asked("flickr30k_quirks"), tally), tally


REFUSED = {  # by the official evaluator: a change of the predictions, and our message
    "a sentence without prediction": (
        lambda rows: rows.pop(),
        "1 of 6 sentences have no prediction, such as sentence 1 of image 105: give one for every sentence that has",
    ),
    "wrong number of phrases": (
        lambda rows: rows[0]["boxes"].pop(),
        "sentence 0 of image 101 has boxes for 1 phrases: give a list of boxes for each of its 2 phrases",
    ),
    "a phrase with an empty list of boxes": (
        lambda rows: rows[2]["boxes"][1].clear(),
        r"sentence 0 of image 102 has boxes for 1 phrases: .* where nothing was found, \[\[0, 0, 0, 0\]\]",
    ),
}
PASSED = {
    "unknown image id": (lambda rows: rows.append({**rows[0], "image_id": 999}), "prediction for an unknown sentence"),
    "sentence id as text": (lambda rows: rows[0].update(sentence_id="0"), None),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_golden_refused_predictions(fault, tmp_path):
    change, message = REFUSED[fault]
    with pytest.raises(ValueError, match=message) as caught:
        quirks(tmp_path, change)
    assert "\n" not in str(caught.value)
    assert official("flickr30k_quirks")["errors"][fault] != "no error"


@pytest.mark.parametrize("fault", PASSED)
def test_golden_passed_predictions(fault, tmp_path):
    change, reason = PASSED[fault]
    boxes, tally = quirks(tmp_path, change)
    assert tally.counts == ({reason: 1} if reason else {})
    assert figures_of(recall_of(asked("flickr30k_quirks"), boxes, "any-box")) == exactly(
        official("flickr30k_quirks")["recall"]["any_box_separate"]
    )
    assert official("flickr30k_quirks")["errors"][fault] == "no error"


# ---- our own


MAN = (10, 10, 50, 50)


@pytest.fixture
def released(tmp_path):
    """One image: a man with a box, a wire whose box has no width, in a sentence of their own each and together."""
    for part in ("Annotations", "Sentences"):
        (tmp_path / part).mkdir()
    things = "".join(
        f"<object><name>{chain}</name><bndbox>"
        + "".join(
            f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        + "</bndbox></object>"
        for chain, box in ((1, MAN), (2, (7, 1, 7, 9)))
    )
    (tmp_path / "Annotations" / "7.xml").write_text(f"<annotation>{things}</annotation>")
    man, wire = "[/EN#1/people A man]", "[/EN#2/other a wire]"
    (tmp_path / "Sentences" / "7.txt").write_text(f"{wire}\n{man} near {wire}\n[/EN#3/other fog]\n{man}")
    return tmp_path


def test_released_asks_for_phrases_whose_boxes_have_no_area(released):
    tally = SkipCounter()
    truths = read_released(released, "", tally)
    assert [(*caption_id(one), len(scored_phrases(one))) for one in truths] == [(7, 0, 1), (7, 1, 2), (7, 3, 1)]
    assert scored_phrases(truths[1])[1].tolist() == [[7, 1, 7, 9]] and truths[1].kinds[1] == ("other",)
    assert tally.counts == {"phrase without a box": 1, "caption without a box that can be used": 1}


def test_rows_are_read_back(released, tmp_path):
    truths = read_released(released, "", SkipCounter())
    boxes = [tuple(torch.tensor([[0.1, 2, 3, 4], [0, 0, 0, 0]]) for _ in scored_phrases(one)) for one in truths]
    rows = [prediction_row(truth, listed) for truth, listed in zip(truths, boxes, strict=True)]
    assert rows[1]["image_id"] == 7 and rows[1]["sentence_id"] == 1
    (tmp_path / "rows.json").write_text(json.dumps(rows[::-1]))
    tally = SkipCounter()
    again = read_predictions(tmp_path / "rows.json", truths, tally)
    assert not tally and [[ranked.tolist() for ranked in listed] for listed in again] == [
        [ranked.tolist() for ranked in listed] for listed in boxes
    ]


def read_rows(tmp_path, rows, truths, tally=None):
    (tmp_path / "rows.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return read_predictions(tmp_path / "rows.json", truths, SkipCounter() if tally is None else tally)


ROW = {"image_id": 7, "sentence_id": 0}


@pytest.mark.parametrize(
    "rows",
    ["{}", "[", [7], [ROW], [{**ROW, "boxes": 3}], [{**ROW, "boxes": [7]}]]
    + [
        [{**ROW, "boxes": [[box]]}]
        for box in (7, [1, 2, 3], [1, 2, 3, float("nan")], ["a", 2, 3, 4], [True] * 4, [10**400] * 4)
    ],
)
def test_files_that_are_no_predictions(rows, released, tmp_path):
    with pytest.raises(ValueError, match=r"rows\.json") as caught:
        read_rows(tmp_path, rows, read_released(released, "", SkipCounter()))
    assert "\n" not in str(caught.value)


def test_boxes_of_negative_size_find_nothing_and_are_counted(released, tmp_path):
    [*_, truth] = read_released(released, "", SkipCounter())
    x1, y1, x2, y2 = MAN
    tally = SkipCounter()
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
    samples = read_mdetr(path, [tmp_path]).samples
    assert [caption_id(one) for one in samples] == [(7, 4), (1, 0)]
