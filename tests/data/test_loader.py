"""Step n depends on (seed, n) alone; epochs are whole; what cannot be used is counted, and too much of it stops."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import RELEASED, VOCABULARY, write_coco

from glip.config import DataConfig, DatasetConfig
from glip.data import loader
from glip.data.loader import Draw, MixtureDataset, Schedule, Source, Step, load_steps
from glip.data.mixture import build_sources
from glip.data.phrasing import Phrasing
from glip.data.sets import PackedSamples
from glip.data.transforms import Augmentation
from glip.errors import ImageError
from glip.processor import Processor
from glip.structures import Prompt, Sample
from glip.text.tokens import Tokenizer

DRAWN = DatasetConfig(name="drawn", annotations="instances.json", images=("images",), weight=3.0)
WORLD = DatasetConfig(name="world", weight=1.0)


@pytest.fixture(scope="module")
def processor():
    return Processor(RELEASED, Tokenizer(VOCABULARY))


@pytest.fixture
def root(tmp_path):
    write_coco(tmp_path)
    return tmp_path


def mixture(root, processor, *sets: DatasetConfig, steps=6, batch_size=4, crop=64, seed=5, **changes):
    data = DataConfig(root=str(root), train=sets or (DRAWN, WORLD), crop=crop, short_side=(64, 96))
    sources = build_sources(data, max_tokens=256, max_size=128)
    return MixtureDataset(sources, processor, batch_size=batch_size, steps=steps, seed=seed, **changes)


def steps_of(dataset, start=0, workers=0, max_broken=0.5):
    return load_steps(dataset, start=start, workers=workers, max_broken=max_broken)


def equal(first: Step, second: Step) -> bool:
    pairs = list(zip(first.batches, second.batches, strict=True))
    targets = [pair for a, b in pairs for pair in zip(a.targets, b.targets, strict=True)]
    return (
        all(torch.equal(a.images.pixels, b.images.pixels) and a.text.prompts == b.text.prompts for a, b in pairs)
        and all(torch.equal(a.boxes, b.boxes) and torch.equal(a.positive_map, b.positive_map) for a, b in targets)
        and (first.skipped.counts, first.broken) == (second.skipped.counts, second.broken)
    )


def plain(name: str, sizes: list[tuple[int, int]], weight: float = 1.0) -> Source:
    """A set of which only the images' (width, height) matter."""
    samples = PackedSamples(
        Sample(Image.new("RGB", (1, 1)), torch.zeros(0, 4), (), ("a",), image_id=number, size=size)
        for number, size in enumerate(sizes)
    )
    phrasing = Phrasing(max_negatives=9, max_tokens=99, full_vocabulary=0.5)
    return Source(name, weight, samples, Augmentation((64, 64), 128), phrasing)


# ---- which draws make a step


def test_every_epoch_shows_each_sample_once_in_a_new_order():
    schedule = Schedule([plain("one", [(4, 3)] * 10)], batch_size=4, seed=1, grouped=False)
    seen = [schedule.index(draw) for step in range(10) for draw in schedule.step(step)]
    epochs = [seen[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_sets_share_every_batch_by_their_weights():
    sources = [plain("a", [(4, 3)] * 7, 0.6), plain("b", [(4, 3)] * 5, 0.4)]
    schedule = Schedule(sources, batch_size=5, seed=0, grouped=False)
    for step in range(300):
        assert Counter(draw.source for draw in schedule.step(step)) == {0: 3, 1: 2}, step


def test_shares_that_are_no_whole_numbers_are_exact_over_time():
    sources = [plain("a", [(4, 3)], 0.7), plain("b", [(4, 3)], 0.3)]
    schedule = Schedule(sources, batch_size=2, seed=0, grouped=False)
    counts = Counter(draw.source for step in range(1500) for draw in schedule.step(step))
    assert counts == {0: 2100, 1: 900}


def test_draws_of_a_set_are_numbered_without_gaps():
    sources = [plain("a", [(4, 3)] * 3, 0.37), plain("b", [(4, 3)] * 3, 0.63)]
    schedule = Schedule(sources, batch_size=7, seed=0, grouped=False)
    draws = [draw for step in range(400) for draw in schedule.step(step)]
    for source in (0, 1):
        numbers = [draw.number for draw in draws if draw.source == source]
        assert numbers == list(range(len(numbers)))


def test_wide_and_tall_images_do_not_share_batches():
    sizes = [(40, 30) if number % 3 else (30, 40) for number in range(60)]
    schedule = Schedule([plain("mixed", sizes)], batch_size=4, seed=0, grouped=True)
    steps = [[schedule.index(draw) for draw in schedule.step(step)] for step in range(16)]
    mixed = [step for step in steps if len({sizes[index] for index in step}) > 1]
    assert len(mixed) <= 1, "one batch of a window holds the rest of both"
    ungrouped = Schedule([plain("mixed", sizes)], batch_size=4, seed=0, grouped=False)
    same = sorted(ungrouped.index(draw) for step in range(16) for draw in ungrouped.step(step))
    assert sorted(itertools.chain(*steps)) == same, "grouping changes the company, never the choice"


def test_random_numbers_belong_to_a_draw_of_a_set():
    schedule = Schedule([plain("a", [(4, 3)]), plain("b", [(4, 3)])], batch_size=2, seed=0, grouped=False)
    values = {float(schedule.random(draw).random()) for draw in (Draw(0, 0), Draw(0, 1), Draw(1, 0))}
    assert len(values) == 3
    swapped = Schedule([plain("b", [(4, 3)]), plain("a", [(4, 3)])], batch_size=2, seed=0, grouped=False)
    assert swapped.random(Draw(1, 0)).random() == schedule.random(Draw(0, 0)).random(), "whatever the sets' order"


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0)])
def test_weights_that_share_nothing_out(weights, root, processor):
    with pytest.raises(ValueError, match="give each set a positive one"):
        mixture(root, processor, replace(DRAWN, weight=weights[0]), replace(WORLD, weight=weights[1]))


# ---- what a step holds


def test_steps_depend_on_seed_and_number_alone(root, processor):
    made = mixture(root, processor)
    first, again = [made[step] for step in range(3)], mixture(root, processor)
    assert all(equal(again[step], first[step]) for step in (2, 0, 1))
    assert not equal(first[0], first[1])
    assert not equal(mixture(root, processor, seed=6)[0], first[0])


def test_start_in_the_middle(root, processor):
    whole = list(steps_of(mixture(root, processor)))
    late = list(steps_of(mixture(root, processor), start=4))
    assert len(whole) == 6 and len(late) == 2
    assert all(equal(a, b) for a, b in zip(whole[4:], late, strict=True))


def test_the_models_random_numbers_do_not_depend_on_the_loader(root, processor):
    state = torch.get_rng_state()
    next(steps_of(mixture(root, processor)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_workers_change_nothing(root, processor):
    (root / "images" / "2.png").write_bytes(b"broken")
    alone = steps_of(mixture(root, processor), start=3)
    spread = steps_of(mixture(root, processor), start=3, workers=2)
    assert all(equal(a, b) for a, b in itertools.zip_longest(alone, spread))


def test_processes_and_micro_batches_cut_the_same_step(root, processor):
    whole = mixture(root, processor)[1].batches[0]
    halves = [mixture(root, processor, rank=rank, processes=2, micro_batch=1)[1].batches for rank in (0, 1)]
    assert [len(half) for half in halves] == [2, 2]
    pieces = [*halves[0], *halves[1]]
    assert torch.equal(torch.cat([piece.images.pixels for piece in pieces]), whole.images.pixels)
    assert [piece.text.prompts[0] for piece in pieces] == list(whole.text.prompts)


def test_processes_that_cannot_share_a_batch(root, processor):
    with pytest.raises(ValueError, match="4 images cannot be shared by 3 processes: take a multiple of 3"):
        mixture(root, processor, processes=3)


def test_boxes_lost_on_the_way_are_counted(root, processor):
    made = mixture(root, processor, DRAWN, steps=30)
    lost = sum(sum(step.skipped.counts.values()) for step in steps_of(made))
    boxes = sum(len(target.boxes) for step in steps_of(made) for target in step.batches[0].targets)
    shown = sum(
        len(made.schedule.sources[0].samples[made.schedule.index(draw)].boxes)
        for step in range(30)
        for draw in made.schedule.step(step)
    )
    assert lost > 0 and lost + boxes == shown


# ---- what cannot be used


def test_a_broken_image_is_passed_over(root, processor, caplog):
    (root / "images" / "1.png").write_bytes(b"broken")
    made = mixture(root, processor, DRAWN, steps=12)
    first = list(steps_of(made))
    assert len(first) == 12 and all(len(step.batches[0].targets) == 4 for step in first)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'drawn'" in line and "1.png" in line
    assert sum(step.tried for step in first) == 48 + sum(len(step.broken) for step in first) > 48
    assert equal(mixture(root, processor, DRAWN, steps=12)[9], first[9]), "what comes instead depends on the step alone"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_all_broken_stops_and_names_a_file(workers, root, processor):
    for file in (root / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ImageError, match=r"20 samples in a row cannot be used.*set 'drawn'.*\.png") as told:
        next(steps_of(mixture(root, processor, DRAWN), workers=workers))
    assert "Traceback" not in str(told.value)


def test_too_many_broken_stop(root, processor):
    made = mixture(root, processor, DRAWN, steps=12)
    for number in (0, 1):
        (root / "images" / f"{number}.png").write_bytes(b"broken")
    assert len(list(steps_of(made, max_broken=0.0))) == 12, "a few never stop a run"
    for number in range(2, 6):  # more samples, most of them broken
        (root / "images" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match="cannot be used"):
        list(steps_of(made, max_broken=0.0))


def test_a_share_of_broken_stops(root, processor, monkeypatch):
    monkeypatch.setattr("glip.data.loader._FEW", 0)
    (root / "images" / "0.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"1 of \d+ samples cannot be used, more than data.max_broken = 0.001"):
        list(steps_of(mixture(root, processor, DRAWN, steps=12), max_broken=0.001))


def test_captions_that_do_not_fit_are_left_out_and_not_broken(root, processor):
    made = mixture(root, processor, DRAWN)
    (source,) = made.schedule.sources
    long = replace(source.samples[1], prompt=Prompt.from_caption("red " * 400 + "star", ["star"]), vocabulary=())
    samples = PackedSamples([source.samples[0], replace(long, boxes=long.boxes[:1], box_phrases=((0,),))])
    made.schedule = Schedule([replace(source, samples=samples)], batch_size=4, seed=5, grouped=False)
    step = made[0]
    assert step.broken == () and len(step.batches[0].targets) == 4
    assert step.skipped.counts["sample whose caption cannot be written"] >= 2


def with_sample(root, processor, **changes) -> MixtureDataset:
    """A mixture of two samples: a good one, and one changed."""
    made = mixture(root, processor, DRAWN)
    (source,) = made.schedule.sources
    samples = PackedSamples([source.samples[0], replace(source.samples[1], **changes)])
    made.schedule = Schedule([replace(source, samples=samples)], batch_size=4, seed=5, grouped=False)
    return made


def test_a_image_of_another_size_is_broken(root, processor):
    """Boxes are for the size that the annotations state; on a resized or turned image they lie anywhere."""
    step = with_sample(root, processor, size=(1280, 1200))[0]
    assert len(step.broken) >= 2 and "annotated as 1280 x 1200 pixels, the file has 128 x 120" in step.broken[0]
    assert "1.png" in step.broken[0]


def test_a_phrase_that_the_tokenizer_does_not_read(root, processor):
    silent = Prompt.from_caption("a star \u200b", [(2, 6), (7, 8)])
    made = with_sample(root, processor, prompt=silent, vocabulary=(), box_phrases=((0,), (1,)))
    step = made[0]
    assert step.broken == () and step.skipped.counts["sample whose caption cannot be written"] >= 1


def test_packed_captions_are_of_other_images():
    first, second = (Prompt.from_caption(text, ["star"]) for text in ("a star here", "one star there"))
    paths = ["a.jpg", "a.jpg", "b.jpg"]
    samples = PackedSamples(
        Sample(Path(path), torch.zeros(1, 4), ((0,),), prompt=prompt)
        for path, prompt in zip(paths, (first, second, second), strict=True)
    )
    phrasing = Phrasing(max_negatives=9, max_tokens=99, full_vocabulary=0.5, pack_captions=30)
    source = Source("captions", 1.0, samples, Augmentation((64, 64), 128), phrasing)
    for seed in range(9):
        packed = loader._captions(source, samples[0], np.random.default_rng(seed))
        assert 0 < len(packed) < 30 and set(packed) == {second}


def test_a_weight_that_is_never_drawn_is_an_error():
    with pytest.raises(ValueError, match=r"set 'own': its weight is 0.00029 of all; less than a thousandth"):
        Schedule([plain("big", [(4, 3)], 1.7e6), plain("own", [(4, 3)], 500)], batch_size=4, seed=0, grouped=False)
