"""LVIS equal to its official evaluator and to GLIP's Fixed AP: golden cases, the lvis package itself, odd files."""

import csv
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scored import shared_case

from glip.data.coco import parse_coco
from glip.data.sets import SkipCounter
from glip.evaluate import lvis
from glip.evaluate.columns import UNKNOWN, Results, concatenate, read_results, read_truth
from glip.evaluate.lvis import BestOfCategories, fixed_ap, standard_ap
from glip.geometry.boxes import scale

CASES = ("val100_plain", "val100_stress", "synth_v1_chunked")
FROM_NETWORK = "synth_v1_from_network_boxes"
CHUNK = 40  # names in a prompt of the chunked cases


# ---- the stored cases


def folder(case):
    return shared_case(f"lvis/{case}")


def truth_in(file, tally=None):
    return read_truth(parse_coco(file), SkipCounter() if tally is None else tally, lvis=True)


@cache
def truth_of(case):
    tally = SkipCounter()
    truth = truth_in(folder(case) / "annotations.json", tally)
    assert not tally
    return truth


def columns(truth, images, categories, boxes, scores):
    """Results from ids as the stored files have them."""
    place = {number: index for index, number in enumerate(truth.images)}
    label = {number: index for index, number in enumerate(truth.categories)}
    return Results(
        np.array([place[number] for number in images.tolist()], dtype=np.int64),
        np.array([label.get(number, UNKNOWN) for number in categories.tolist()], dtype=np.int64),
        boxes,
        scores,
    )


@cache
def results_of_case(case):
    with np.load(folder(case) / "predictions.npz") as rows:
        return columns(truth_of(case), rows["image_id"], rows["category_id"], rows["bbox"], rows["score"])


@cache
def expected(case):
    return json.loads((folder(case) / "expected.json").read_text(encoding="utf-8"))


def check(score, figures):
    assert list(score.figures) == list(figures)
    assert score.figures == pytest.approx(dict(figures), abs=1e-9)


def check_table(case, score, file):
    with file.open(encoding="utf-8") as stream:
        rows = {int(row["category_id"]): row for row in csv.DictReader(stream)}
    for number, line in zip(truth_of(case).categories, score.categories, strict=True):
        row = rows.pop(number, None)
        if row is None:  # categories without box and result are not in the file
            assert [line[key] for key in ("boxes", "detections", "AP", "AR")] == [0, 0, -1, -1]
            continue
        assert (line["frequency"], line["boxes"]) == (row["frequency"], int(row["num_gt"]))
        assert line["detections"] == int(row["num_dt_kept"])
        figures = {key: float(row[key]) for key in ("AP", "AP50", "AP75", "AR")}
        assert {key: line[key] for key in figures} == pytest.approx(figures, abs=1e-9), line
    assert not rows


@pytest.mark.parametrize("case", CASES)
def test_golden_standard_ap(case):
    score = standard_ap(truth_of(case), results_of_case(case))
    check(score, expected(case)["lvis_api_standard_ap"])
    check_table(case, score, folder(case) / "per_category_standard.csv")


@pytest.mark.parametrize("case", CASES)
def test_golden_fixed_ap(case):
    """The small limits are there because 10,000 never binds on small sets."""
    for kind, figures in expected(case)["glip_fixed_ap"].items():
        score = fixed_ap(truth_of(case), results_of_case(case), per_category=int(kind.removeprefix("topk=")))
        check(score, figures)
    score = fixed_ap(truth_of(case), results_of_case(case))
    check(score, expected(case)["lvis_api_unlimited_dets"])
    check_table(case, score, folder(case) / "per_category_fixed.csv")


def test_golden_fixed_ap_of_three_processes():
    """The release strings the processes together, image i of process i mod 3: the same as images in that order."""
    for case in CASES:
        [key] = [key for key in expected(case) if key.startswith("glip_fixed_ap_3_ranks")]
        truth, results, limit = truth_of(case), results_of_case(case), int(key.split("=")[1])
        order = np.argsort(np.arange(len(truth.images)) % 3, kind="stable")
        best = BestOfCategories(len(truth.categories), per_category=limit)
        best.add(replace(results, images=np.argsort(order)[results.images]))
        kept = best.results()
        kept = replace(kept, images=order[kept.images])
        check(fixed_ap(truth, kept, per_category=limit), expected(case)[key])


def test_golden_normal_ap():
    """The release's normal AP: of equal scores at place 300 that of the earlier prompt is kept."""
    for case in CASES:
        results = results_of_case(case)
        if case == "synth_v1_chunked":
            chunk = np.where(results.categories == UNKNOWN, len(results), results.categories // CHUNK)
            results = results.select(np.argsort(chunk, kind="stable"))
        check(standard_ap(truth_of(case), results), expected(case)["glip_normal_ap"])


@cache
def blocks_from_network():
    """What the network found in each image and chunk, in pixels of the image."""
    path, truth = folder(FROM_NETWORK), truth_of(FROM_NETWORK)
    tree = json.loads((path / "annotations.json").read_text(encoding="utf-8"))
    sizes = {record["id"]: (record["height"], record["width"]) for record in tree["images"]}
    with np.load(path / "network_detections.npz") as stored:
        found = dict(stored)
    blocks, ends = [], found["det_offset"].tolist()
    for row, start, end in zip(found["image_chunk_netw_neth"].tolist(), ends, ends[1:], strict=False):
        corners = scale(torch.tensor(found["boxes_xyxy"][start:end]), (row[3], row[2]), sizes[row[0]]).numpy()
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float64)
        images, labels = np.full(end - start, row[0]), found["labels"][start:end]
        blocks.append(columns(truth, images, labels, boxes, found["scores"][start:end].astype(np.float64)))
    return blocks


@pytest.mark.parametrize("limit", [10_000, 30])
def test_golden_fixed_ap_from_network_boxes(limit):
    truth = truth_of(FROM_NETWORK)
    best = BestOfCategories(len(truth.categories), per_category=limit)
    for block in blocks_from_network():
        best.add(block)
    score = fixed_ap(truth, best.results(), per_category=limit)
    check(score, expected(FROM_NETWORK)[f"glip_fixed_ap_topk={limit}"])


def test_golden_normal_ap_from_network_boxes():
    score = standard_ap(truth_of(FROM_NETWORK), concatenate(blocks_from_network()))
    check(score, expected(FROM_NETWORK)["glip_normal_ap"])


# ---- the package itself


def written(folder, tree):
    path = folder / "annotations.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def drawn_set(rng):
    """A crowded set on a coarse grid: equal scores, equal overlaps, empty boxes, every list of the federation."""
    numbers = rng.permutation(np.arange(1, 8)).tolist()
    lists = {"neg_category_ids": 2, "not_exhaustive_category_ids": 1}
    images = [
        {"id": number} | {key: rng.choice(numbers, size).tolist() for key, size in lists.items()}
        for number in rng.permutation(np.arange(1, 7)).tolist()
    ]
    annotations = []
    for number in range(60):
        box, outline = drawn_box(rng), {"segmentation": [[0, 0, 1, 1]], "ignore": int(rng.random() < 0.1)}
        own = {"id": number + 1, "image_id": int(rng.integers(1, 7)), "category_id": int(rng.integers(1, 6))}
        area = box[2] * box[3] * float(rng.choice([0.5, 1.0]))
        annotations.append({**own, "bbox": box, "area": area, **outline})
    categories = [{"id": number, "name": f"name {number}", "frequency": "rcf"[number % 3]} for number in numbers]
    return {"images": images, "annotations": annotations, "categories": categories}


def drawn_box(rng):
    return [float(number) for number in 16 * rng.integers([0, 0, 0, 1], [4, 3, 8, 7])]


def drawn_rows(rng):
    rows = []
    for _ in range(400):
        own = {"image_id": int(rng.integers(1, 7)), "category_id": int(rng.integers(1, 8))}
        rows.append({**own, "bbox": drawn_box(rng), "score": float(rng.choice([0.2, 0.4, 0.6, 0.8]))})
    return rows


@pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")
@pytest.mark.parametrize("seed", range(6))
def test_the_package_agrees(seed, tmp_path, monkeypatch):
    from lvis import LVIS, LVISEval, LVISResults

    monkeypatch.setattr(np, "float", float, raising=False)  # the package's own counting needs it
    rng = np.random.default_rng(seed)
    tree, rows = drawn_set(rng), drawn_rows(rng)
    path, file = written(tmp_path, tree), tmp_path / "results.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    official = LVISEval(LVIS(str(path)), LVISResults(LVIS(str(path)), rows, max_dets=50), "bbox")
    official.params.max_dets = 50
    official.run()
    truth = truth_in(path)
    score = standard_ap(truth, read_results(file, truth.images, truth.categories, SkipCounter()), max_dets=50)
    check(score, official.results)
    assert score.categories[0]["AP"] == pytest.approx(official.eval["precision"][:, :, 0, 0].mean(), abs=1e-9)


# ---- by hand


BOX, FAR = [10.0, 10.0, 40.0, 40.0], [100.0, 100.0, 40.0, 40.0]
CAT, DOG, BIRD = 0, 1, 2  # in the order of their ids; images likewise: 4, 9
FIRST, SECOND = 0, 1
FOUND = (FIRST, CAT, BOX, 0.5)


def small_tree():
    """Two images: a cat in the first, which has surely no dog; nothing is known of birds."""
    return {
        "images": [
            {"id": 9, "neg_category_ids": [1], "not_exhaustive_category_ids": []},
            {"id": 4, "neg_category_ids": [2], "not_exhaustive_category_ids": []},
        ],
        "annotations": [{"id": 0, "image_id": 4, "category_id": 1, "bbox": BOX, "area": 1600.0}],
        "categories": [
            {"id": 3, "name": "bird", "frequency": "r"},
            {"id": 1, "name": "cat", "frequency": "f"},
            {"id": 2, "name": "dog", "frequency": "c"},
        ],
    }


@pytest.fixture
def read(tmp_path):
    return lambda tree, tally=None: truth_in(written(tmp_path, tree), tally)


def results(*rows):
    """From (image, category, box, score)."""
    images, categories, boxes, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Results(
        np.array(images, dtype=np.int64),
        np.array(categories, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(scores, dtype=np.float64),
    )


def test_what_counts_in_a_federated_set(read):
    """A cat where cats are absent is wrong; where nothing is known of cats it is not counted. Ids may be 0."""
    wrong = results((SECOND, CAT, BOX, 0.9), FOUND)
    assert standard_ap(read(small_tree()), results(FOUND)).ap == pytest.approx(1.0)
    assert standard_ap(read(small_tree()), wrong).ap == pytest.approx(0.5)
    unknown = small_tree()
    unknown["images"][0]["neg_category_ids"] = []
    score = standard_ap(read(unknown), wrong)
    assert score.ap == pytest.approx(1.0) and score.categories[CAT]["detections"] == 1


def test_where_boxes_may_be_missing_only_matches_count(read):
    more, tree = results((FIRST, CAT, FAR, 0.9), FOUND), small_tree()
    assert standard_ap(read(tree), more).ap == pytest.approx(0.5)
    tree["images"][1]["not_exhaustive_category_ids"] = [1]
    assert standard_ap(read(tree), more).ap == pytest.approx(1.0)


def test_unknown_categories_take_up_places(read):
    """As in the lvis package; of equal scores the earlier row is kept."""
    found = results((FIRST, UNKNOWN, BOX, 0.5), FOUND)
    for limit, ap in ((2, 1.0), (1, 0.0)):
        assert standard_ap(read(small_tree()), found, max_dets=limit).ap == pytest.approx(ap)
    assert fixed_ap(read(small_tree()), found, per_category=1).ap == pytest.approx(1.0)


def test_nothing_found(read):
    for score in (standard_ap(read(small_tree()), results()), fixed_ap(read(small_tree()), results())):
        assert score.ap == 0.0 and [*score.figures.values()][9] == 0.0 and score.figures["APr"] == -1.0
        assert [line["AP"] for line in score.categories] == [0.0, -1.0, -1.0]


def test_counted_not_scored(read):
    """What is missing or odd in a file is counted, and the rest scored without it."""
    tree, tally = small_tree(), SkipCounter()
    del tree["categories"][0]["frequency"], tree["images"][0]["neg_category_ids"]
    tree["images"][1]["not_exhaustive_category_ids"] = [77]
    tree["annotations"].append({**tree["annotations"][0], "area": None, "bbox": FAR})
    truth = read(tree, tally)
    assert tally.counts == {
        "annotation without an area (that of its box is taken)": 1,
        "category without a frequency (r, c or f)": 1,
        "image without neg_category_ids": 1,
        "unknown category in not_exhaustive_category_ids": 1,
    }
    assert truth.frequencies == ("f", "c", "") and truth.boxes.areas.tolist() == [1600.0, 1600.0]
    score = standard_ap(truth, results(FOUND, (FIRST, CAT, FAR, 0.4)))
    assert score.figures["AP"] == score.figures["APf"] == pytest.approx(1.0)


# ---- the best of each category


def as_rows(results):
    """Sorted, since images may come in any order."""
    return sorted(zip(results.images, results.categories, results.scores, map(tuple, results.boxes), strict=True))


def test_the_best_piece_by_piece_are_the_best_at_once(monkeypatch):
    rng, number = np.random.default_rng(0), 1200
    labels, scores = rng.integers(-1, 4, number), rng.integers(1, 6, number) / 5
    every = Results(np.repeat(np.arange(20), 60), labels, rng.random((number, 4)), scores)
    by_hand = []
    for category in range(4):
        places = np.flatnonzero(every.categories == category)
        by_hand += sorted(places, key=lambda place: (-every.scores[place], place))[:25]
    expected = as_rows(every.select(np.array(by_hand)))
    monkeypatch.setattr(lvis, "_PENDING", 150)  # so that it chooses many times
    for order in (range(20), rng.permutation(20)):
        best = BestOfCategories(4, per_category=25)
        for image in order:
            own = every.select(every.images == image)
            best.add(own.select(np.arange(0, 20)))
            best.add(own.select(np.arange(20, 60)))
        assert as_rows(best.results()) == expected and len(expected) == 100
