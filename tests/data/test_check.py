"""A check names what is wrong with a set, where, and how much there is of everything."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import VOCABULARY

from glip.data.check import CheckReport, check, refuse_wrong_boxes
from glip.data.coco import read_coco
from glip.data.labels import read_labels
from glip.data.sets import SampleSet, SkipCounter
from glip.errors import DataError
from glip.structures import Phrase, Prompt, Sample, TarMember

SIZE = (200, 100)
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def sample(folder: Path, name: str = "a.png", boxes=((10, 20, 60, 70),), phrases=None, **fields: object) -> Sample:
    own = {"vocabulary": ("dog", "cat"), "box_phrases": tuple(phrases or [(0,)] * len(boxes))}
    return Sample(folder / name, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), **(own | fields))


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE).save(tmp_path / name)
    return tmp_path


def checked(*samples: Sample, skipped: SkipCounter | None = None, **options: object) -> CheckReport:
    return check(SampleSet(samples, skipped=skipped or SkipCounter()), **options)


def test_a_clean_set_is_counted(folder):
    boxes = [(0, 0, 10, 10), (0, 0, 50, 50), (0, 0, 200.9, 100), (0, 0, 32, 32)]
    prompt = Prompt.from_caption("a small dog runs", ["a small dog", "runs"])
    report = checked(
        sample(folder, boxes=boxes, phrases=[(0,), (0,), (0, 1), (1,)], crowd=(2,), size=SIZE),
        sample(folder, "b.png", boxes=()),
        sample(folder, "b.png", vocabulary=(), prompt=prompt),
        sample(folder, "b.png", boxes=(), vocabulary=(), caption="two words"),
    )
    assert not report.problems
    assert (report.samples, report.images, report.without_boxes) == (4, 2, 2)
    assert (report.boxes, report.crowd, report.areas, report.phrases) == (5, 1, [1, 3, 1], 2)
    assert report.per_name == {"dog": 3, "cat": 2} and report.words == {4: 1, 2: 1}
    assert report.remarks.counts == {"phrase without a box": 1}


def test_images_missing_and_broken(folder):
    (folder / "broken.png").write_bytes(b"no image")
    whole = (folder / "a.png").read_bytes()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(folder / "half.jpg")
    half = (folder / "half.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(half[: len(half) // 2])
    (folder / "0.tar").write_bytes(whole)
    names = ["missing.png", "broken.png", "half.jpg"]
    given = [sample(folder, name, boxes=(), image_id=name) for name in names]
    tarred = [TarMember(folder / "0.tar", "x", 0, length) for length in (len(whole), len(whole) + 1)]
    tarred.append(TarMember(folder / "1.tar", "x", 0, 9))
    given += [Sample(image, torch.empty(0, 4), (), caption=str(image.length)) for image in tarred]
    report = checked(*given, *given[:1])
    assert report.images == 5, "two members of one name are one image"
    assert report.problems.counts["image that is not there"] == 2
    assert report.problems.counts["image that cannot be read"] == 1, "half an image has a whole header"
    assert "missing.png" in report.problems.places["image that is not there"][0]
    decoded = checked(*given, decode=True).problems
    assert decoded.counts["image that cannot be read"] == 2
    assert any("half.jpg" in place for place in decoded.places["image that cannot be read"])


def rotated(folder: Path, name: str = "turned.png") -> Path:
    """An image of 100 x 200 that is stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(folder / name, exif=exif)
    return folder / name


def test_stated_sizes(folder):
    for stated, reason in (((400, 200), "stated size differs"), ((100, 200), "stated width and height are swapped")):
        ((told, places),) = checked(sample(folder, size=stated)).problems.places.items()
        assert reason in told and f"stated {stated[0]} x {stated[1]}, is 200 x 100" in places[0]
    rotated(folder)
    assert not checked(sample(folder, "turned.png", size=(100, 200))).problems
    [reason] = checked(sample(folder, "turned.png", size=SIZE)).problems.counts
    assert "before the EXIF rotation" in reason


def test_images_listed_twice(folder):
    one, other = (sample(folder, boxes=(), vocabulary=(), caption=caption) for caption in ("a dog", "a cat"))
    assert not checked(one, other).problems, "two captions"
    assert checked(one, other, one).problems.counts == {"image that is listed twice with the same caption": 1}
    assert checked(sample(folder), sample(folder)).problems.counts == {"image that is listed twice": 1}


def test_spans_that_miss_words(folder):
    caption = "The dogs' bowl, 犬の水 – it's empty"
    words = {"The": (0, 3), "dogs'": (4, 9), "dog": (4, 7), "he": (1, 3), "犬": (16, 17), "it": (22, 24), "–": (20, 21)}
    for text, span in words.items():
        assert caption[slice(*span)] == text
        prompt = Prompt(caption, (Phrase(text, (span,)),))
        problems = checked(sample(folder, vocabulary=(), prompt=prompt)).problems
        expected = {"dog": "span that cuts a word", "he": "span that cuts a word", "–": "phrase without a word"}
        assert list(problems.counts) == ([expected[text]] if text in expected else []), text
    prompt = Prompt(caption, (Phrase("he", ((1, 3),)),))
    (place,) = checked(sample(folder, vocabulary=(), prompt=prompt)).problems.places["span that cuts a word"]
    assert place.startswith("'he' in ") and "a.png" in place


def test_names_listed_twice(folder):
    names = ("dog", "cat", "hot dog", "hot dog")
    report = checked(sample(folder, vocabulary=names), sample(folder, "b.png", vocabulary=names))
    assert report.remarks.places["name that is listed twice"] == ["hot dog"]


def test_names_that_a_model_reads_alike(folder):
    names = ("Cat", "cat", "café", "cafe", "แมว", "สุนัข", "dog", "DOG")
    boxes = [(number, 20, 60, 70) for number in range(7)]  # DOG has none, such as the idle classes of some tools
    report = checked(
        sample(folder, vocabulary=names, boxes=boxes, phrases=[(number,) for number in range(7)]),
        tokenizer=VOCABULARY,
    )
    places = report.problems.places["names that a model reads alike"]
    assert places == ["'Cat', 'cat'", "'café', 'cafe'", "'แมว', 'สุนัข'"]
    told = checked(
        sample(folder, vocabulary=names[4:6], boxes=boxes[:2], phrases=[(0,), (1,)]),
        tokenizer=VOCABULARY,
        written={"แมว": "a cat", "สุนัข": "a dog"},
    )
    assert not told.problems


def test_boxes(folder):
    boxes = [(-0.9, -0.9, 200.9, 100.9), (250, 0, 300, 50), (150, 50, 250, 90), (5, 5, 5, 9), *[(0, 0, 9, 9)] * 2]
    problems = checked(sample(folder, boxes=boxes)).problems
    assert problems.counts == {
        "box outside its image": 1,
        "box partly outside its image": 1,
        "box without area": 1,
        "box with the same words twice": 1,
    }
    assert problems.places["box outside its image"] == [f"{folder / 'a.png'} of 200 x 100: 250, 0, 300, 50"]
    assert not checked(sample(folder, boxes=boxes[-2:], phrases=[(0,), (1,)])).problems, "other words"


@pytest.fixture
def coco(tmp_path):
    """A COCO file whose boxes are written by a function of (left, top, right, bottom, width, height of the image)."""

    def make(write) -> SampleSet:
        random = np.random.default_rng(0)
        images, rows = [], []
        for number in range(20):
            width, height = (int(side) for side in random.integers((300, 160), (500, 250)))
            Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png"})
            for _ in range(5):
                left, right = sorted(random.uniform(0, width, 2).round(1).tolist())
                top, bottom = sorted(random.uniform(0, height, 2).round(1).tolist())
                box = write(left, top, right + 1, bottom + 1, width + 1, height + 1)
                rows.append({"image_id": number, "category_id": 1, "bbox": list(box)})
        tree = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "dog"}]}
        (tmp_path / "set.json").write_text(json.dumps(tree))
        return read_coco(tmp_path / "set.json", [tmp_path])

    return make


CORNERS = "like x1, y1, x2, y2 read as x, y, width, height"
CENTRES = "like centre x, centre y, width, height read as"
CONVENTIONS = [
    ("", lambda l, t, r, b, w, h: (l, t, r - l, b - t)),
    (CORNERS, lambda l, t, r, b, w, h: (l, t, r, b)),
    (CENTRES, lambda l, t, r, b, w, h: ((l + r) / 2, (t + b) / 2, r - l, b - t)),
    ("like y, x read as x, y", lambda l, t, r, b, w, h: (t, l, b - t, r - l)),
    ("relative (0..1)", lambda l, t, r, b, w, h: (l / w, t / h, (r - l) / w, (b - t) / h)),
    ("relative (0..1)", lambda l, t, r, b, w, h: (l / w, t / h, r / w, b / h)),
    ("relative (0..1)", lambda l, t, r, b, w, h: ((l + r) / 2 / w, (t + b) / 2 / h, (r - l) / w, (b - t) / h)),
    ("like percentages", lambda l, t, r, b, w, h: (100 * l / w, 100 * t / h, 100 * (r - l) / w, 100 * (b - t) / h)),
    ("like percentages", lambda l, t, r, b, w, h: (100 * l / w, 100 * t / h, 100 * r / w, 100 * b / h)),
    ("like percentages", lambda l, t, r, b, w, h: (100 * l // w, 100 * t // h, 101 * (r - l) // w, 101 * (b - t) // h)),
    ("for images of another size", lambda l, t, r, b, w, h: (3 * l, 3 * t, 3 * r - 3 * l, 3 * b - 3 * t)),
]


@pytest.mark.parametrize(("convention", "write"), CONVENTIONS)
def test_boxes_in_another_convention_are_recognised_and_refused(coco, convention, write, caplog):
    found = coco(write)
    most = [reason for reason in check(found).problems.counts if reason.startswith("most boxes")]
    assert len(most) == bool(convention) and all(convention in reason for reason in most), most
    if not convention:
        assert not refuse_wrong_boxes("dogs", found) and not caplog.records
        return
    with pytest.raises(
        DataError, match=r"^dogs: most boxes \(\d+ of \d+\) .*png of \d+ x \d+: .*: they look "
    ) as refused:
        refuse_wrong_boxes("dogs", found)
    assert most[0] in str(refused.value)


def random_boxes(count: int, start: int, end: int, side: int) -> list[tuple[int, ...]]:
    corners = np.random.default_rng(1).integers(start, end - side, (count, 2))
    return [(x, y, x + side, y + side) for x, y in corners.tolist()]


@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((96, 96), random_boxes(40, 0, 96, 20)),
        ((100, 80), random_boxes(40, 0, 80, 40)),
        ((640, 480), random_boxes(40, 0, 100, 4)),
        ((640, 480), random_boxes(40, 2, 40, 12)),
        ((640, 480), [(20 + n % 3, 30 + n % 2, 85 + n % 3, 90) for n in range(30)]),  # a gauge before a fixed camera
        ((640, 480), random_boxes(5, 0, 99, 20)),
        ((2, 2), [(0, 0, 2, 2)] * 9),
    ],
)
def test_boxes_of_small_images_and_of_corners_are_not_suspected(size, boxes, caplog):
    one = [sample(Path(), boxes=[box], image_id=n) for n, box in enumerate(boxes)]
    found = SampleSet([Sample(**{**vars(each), "image": Image.new("RGB", size)}) for each in one])
    assert not refuse_wrong_boxes("dogs", found) and not caplog.records


@pytest.mark.parametrize(
    ("size", "boxes", "reason"),
    [
        (None, [(10, 20, 60, 70), (300, 300, 340, 350)], "box outside its image"),
        (None, [(10, 20, 60, 70), (50, 120, 120, 180)], "box partly outside its image"),
        (None, [(10, 20, 60, 70), (150, 50, 190, 90)], "box that fits its image only before the EXIF rotation"),
        (SIZE, [(10, 20, 60, 70)], "stated size is that before the EXIF rotation"),
        ((300, 600), [(10, 20, 60, 70)], "stated size differs from the image's"),
    ],
)
def test_doubts_are_told_once(tmp_path, size, boxes, reason, caplog):
    found = SampleSet([sample(tmp_path, rotated(tmp_path).name, boxes=boxes, size=size)])
    doubts = refuse_wrong_boxes("dogs", found)
    [told] = [record.getMessage() for record in caplog.records]
    assert sum(doubts.counts.values()) == 1 and reason in str(doubts) and f"1 x {reason}" in told
    assert told.startswith("dogs: in 1 of 1 samples: ") and "turned.png" in told


def test_sizes_read_as_corners_are_recognised(tmp_path):
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    boxes = [{"box": [100 + i, 50, 30, 20], "phrases": [0]} for i in range(5)]
    boxes.append({"box": [10, 10, 30, 20], "phrases": [0]})
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.png", "names": ["dog"], "boxes": boxes}))
    problems = check(read_labels(tmp_path / "a.jsonl", [tmp_path])).problems
    assert problems.counts["box without area"] == 5
    assert any("like x, y, width, height read as x1, y1, x2, y2" in reason for reason in problems.counts)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_a_real_set_is_clean():
    folder = SHARED / "bccd"
    report = check(read_coco(folder / "annotations/instances_test.json", [folder / "images"]), decode=True)
    assert (report.images, report.boxes) == (59, 757) and not report.problems and not report.remarks


def test_what_the_reader_left_out_is_a_problem(folder):
    skipped = SkipCounter()
    skipped.add("box without area", "annotation 5")
    missing = [sample(folder, f"{number}.png", boxes=((10, 20, 60, 70),)) for number in range(20)]
    problems = checked(*missing, skipped=skipped).problems
    assert problems.counts == {"box without area": 1, "image that is not there": 20}, "not most boxes"
    assert problems.places["box without area"] == ["annotation 5"]


def test_missing_images_do_not_hide_a_wrong_reading(folder):
    missing = [sample(folder, f"{number}.png", boxes=((10, 20, 60, 70),)) for number in range(20)]
    outside = sample(folder, boxes=((190, 90, 380, 180), (180, 80, 360, 160)))
    problems = checked(*missing, outside).problems
    assert any(reason.startswith("most boxes (2 of 2) leave their image") for reason in problems.counts)
    relative = [sample(folder, f"{number}.png", boxes=((0.1, 0.2, 0.6, 0.7),)) for number in range(3)]
    assert any("relative (0..1)" in reason for reason in checked(*relative).problems.counts)
