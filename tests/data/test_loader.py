"""Step n depends on (seed, n) alone; epochs are complete; what cannot be used is counted, and too much of it stops."""

import itertools
import multiprocessing
import os
import signal
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from small import RELEASED, VOCABULARY, write_coco

from glip.config import DataConfig, DatasetConfig, TrainConfig
from glip.data.loader import MixtureDataset, Source, Step, _started, draws, draws_by_shape, load_steps
from glip.data.mixture import build_sources
from glip.data.sets import PackedSamples
from glip.errors import ImageError
from glip.processor import Processor
from glip.structures import Prompt, Sample
from glip.text.tokens import Tokenizer

DRAWN = DatasetConfig(name="drawn", annotations="instances.json", images=("images",), weight=3.0)
WORLD = DatasetConfig(name="world", annotations="instances.json", images=("images",), weight=1.0)
UNWRITTEN = "sample whose caption cannot be written"


@pytest.fixture(scope="module")
def processor():
    return Processor(replace(RELEASED, image=replace(RELEASED.image, max_size=128)), Tokenizer(VOCABULARY))


@pytest.fixture
def mixture(tmp_path, processor):
    """Makes mixtures of the drawn COCO set, or of it and the drawn world."""
    write_coco(tmp_path)

    def make(*sets: DatasetConfig, steps=6, seed=5, micro_batch=0, change=None, rank=0, processes=1, **options):
        how = {"crop": 64, "short_side": (64, 96), "max_broken": 0.5, **options}
        data = DataConfig(root=str(tmp_path), train=sets or (DRAWN, WORLD), **how)
        train = TrainConfig(batch_size=4, steps=steps, seed=seed, micro_batch=micro_batch, warmup=0)
        sources = build_sources(data)
        if change is not None:
            sources = [replace(sources[0], samples=PackedSamples(change(sources[0].samples)))]
        return MixtureDataset(sources, processor, data, train, rank=rank, processes=processes)

    make.images = tmp_path / "images"
    return make


def steps_of(dataset, start=0) -> list[Step]:
    return list(load_steps(dataset, start=start))


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
    return Source(DatasetConfig(name=name, weight=weight), samples)


def drawn(sources, steps, batch_size, choose=draws) -> list[list]:
    return [choose(sources, step, batch_size=batch_size, seed=1) for step in range(steps)]


def test_every_epoch_shows_each_sample_once_in_a_new_order():
    seen = [draw.index for step in drawn([plain("one", [(4, 3)] * 10)], 10, 4) for draw in step]
    epochs = [seen[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize(("weights", "batch_size"), [((0.6, 0.4), 5), ((0.7, 0.3), 2), ((0.37, 0.63), 7)])
def test_sets_share_batches_by_their_weights_and_are_gone_through_without_gaps(weights, batch_size):
    sources = [plain(name, [(4, 3)] * 3, weight) for name, weight in zip("ab", weights, strict=True)]
    steps = drawn(sources, 1000, batch_size)
    for number, source in enumerate(sources):
        own = [[draw for draw in step if draw.source is source] for step in steps]
        assert sum(map(len, own)) == pytest.approx(weights[number] * 1000 * batch_size), "exact over time"
        assert all(abs(len(step) - weights[number] * batch_size) <= 1 for step in own), "as even as possible in a step"
        assert [draw.seed[2] for step in own for draw in step] == list(range(sum(map(len, own))))


def test_wide_and_tall_images_do_not_share_batches():
    sizes = [(40, 30) if number % 3 else (30, 40) for number in range(60)]
    sources = [plain("mixed", sizes)]
    steps = [[draw.index for draw in step] for step in drawn(sources, 16, 4, draws_by_shape)]
    mixed = [step for step in steps if len({sizes[index] for index in step}) > 1]
    assert len(mixed) <= 1, "one batch of a window holds the rest of both"
    same = sorted(draw.index for step in drawn(sources, 16, 4) for draw in step)
    assert sorted(itertools.chain(*steps)) == same, "the same images in other batches"


def test_random_numbers_belong_to_a_draw_of_a_set():
    first, second = plain("a", [(4, 3)]), plain("b", [(4, 3)])
    steps = drawn([first, second], 3, 2)
    assert len({draw.seed for step in steps for draw in step}) == 6
    swapped = drawn([second, first], 3, 2)
    for source in (first, second):
        own = [[draw for step in made for draw in step if draw.source is source] for made in (steps, swapped)]
        assert own[0] == own[1], "whatever the order of the sets"


@pytest.mark.parametrize("crop", [0, 64])
def test_steps_depend_on_seed_and_number_alone(mixture, crop):
    made = mixture(crop=crop)
    first, again = [made[step] for step in range(3)], mixture(crop=crop)
    assert all(equal(again[step], first[step]) for step in (2, 0, 1))
    assert not equal(first[0], first[1]) and not equal(mixture(seed=6, crop=crop)[0], first[0])


def test_start_in_the_middle(mixture):
    complete, late = steps_of(mixture()), steps_of(mixture(), start=4)
    assert len(complete) == 6 and len(late) == 2
    assert all(equal(a, b) for a, b in zip(complete[4:], late, strict=True))


def test_the_models_random_numbers_do_not_depend_on_the_loader(mixture):
    state = torch.get_rng_state()
    next(load_steps(mixture(), start=0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_workers_change_nothing_even_if_one_is_killed(mixture, caplog):
    (mixture.images / "2.png").write_bytes(b"broken")
    alone, spread = steps_of(mixture(workers=0, steps=30), start=3), list[Step]()
    for step in load_steps(mixture(workers=2, steps=30), start=3):
        spread.append(step)
        if len(spread) == 5:
            os.kill(min(process.pid for process in multiprocessing.active_children()), signal.SIGKILL)
    assert all(equal(a, b) for a, b in zip(alone, spread, strict=True))
    assert "new ones go on" in caplog.text


def test_processes_and_micro_batches_cut_the_same_step(mixture):
    complete = mixture()[1].batches[0]
    halves = [mixture(rank=rank, processes=2, micro_batch=1)[1].batches for rank in (0, 1)]
    assert [len(half) for half in halves] == [2, 2]
    pieces = [*halves[0], *halves[1]]
    assert torch.equal(torch.cat([piece.images.pixels for piece in pieces]), complete.images.pixels)
    assert [piece.text.prompts[0] for piece in pieces] == list(complete.text.prompts)


def test_boxes_lost_on_the_way_are_counted(mixture):
    made = mixture(DRAWN, steps=30)
    steps = steps_of(made)
    lost = sum(sum(step.skipped.counts.values()) for step in steps)
    boxes = sum(len(target.boxes) for step in steps for target in step.batches[0].targets)
    shown = [draw for step in range(30) for draw in draws(made.sources, step, batch_size=4, seed=5)]
    assert lost > 0 and lost + boxes == sum(len(draw.source.samples[draw.index].boxes) for draw in shown)


@pytest.mark.parametrize(("soft", "box_loss"), [(False, True), (True, True), (False, False)])
def test_scores_and_boxes_count_as_the_config_says(mixture, soft, box_loss):
    def scored(samples):
        return [replace(sample, scores=(0.7,) * len(sample.boxes)) for sample in samples]

    made = mixture(replace(DRAWN, soft=soft, box_loss=box_loss), change=scored, crop=0)
    for target in made[0].batches[0].targets:
        assert target.box_loss == box_loss
        assert (target.weights is not None and set(target.weights.tolist()) == {torch.tensor(0.7).item()}) == soft


def test_packed_captions_are_of_other_images(mixture):
    def captioned(samples):
        for sample in samples:
            prompt = Prompt.from_caption(f"a star number {sample.image_id}", ["star"])
            one = replace(sample.keep([0]), prompt=prompt, box_phrases=((0,),), vocabulary=())
            yield from (one, one)

    made = mixture(DRAWN, change=captioned, pack_captions=30, steps=12)
    captions = [prompt.caption for step in steps_of(made) for prompt in step.batches[0].text.prompts]
    counts = Counter(caption.count(f"number {number}") for caption in captions for number in range(4))
    assert set(counts) == {0, 1}, "never the same caption twice"
    assert len({caption.count("star") for caption in captions}) > 2


def test_a_broken_image_is_skipped(mixture, caplog):
    (mixture.images / "1.png").write_bytes(b"broken")
    first = steps_of(mixture(DRAWN, steps=12))
    assert len(first) == 12 and all(len(step.batches[0].targets) == 4 for step in first)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'drawn'" in line and "1.png" in line
    assert sum(step.tried for step in first) == 48 + sum(len(step.broken) for step in first) > 48
    assert equal(mixture(DRAWN, steps=12)[9], first[9]), "what comes instead depends on the step alone"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_all_broken_stops_and_names_a_file(workers, mixture):
    for file in mixture.images.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ImageError, match=r"20 samples in a row cannot be used.*'drawn'.*\.png") as caught:
        steps_of(mixture(DRAWN, workers=workers))
    assert "\n" not in str(caught.value), "no traceback of a worker"


@pytest.mark.parametrize(("files", "max_broken", "stops"), [(4, 0.05, True), (4, 0.5, False), (3, 0.0, False)])
def test_the_share_of_broken_samples(mixture, files, max_broken, stops):
    def copies(samples):
        for number in range(6):
            path = mixture.images / f"copy{number}.png"
            path.write_bytes(b"broken" if number < files else (mixture.images / "0.png").read_bytes())
            yield replace(samples[0], image=path)

    made = mixture(DRAWN, steps=12, change=copies, max_broken=max_broken)
    if not stops:
        assert len(steps_of(made)) == 12, "a few never stop a run"
        return
    with pytest.raises(ImageError, match=r"4 of \d+ samples cannot be used, more than data.max_broken = 0.05"):
        steps_of(made)


@pytest.mark.parametrize(
    "prompt",
    [Prompt.from_caption("red " * 400 + "star", ["star"]), Prompt.from_caption("a star \u200b", [(2, 6), (7, 8)])],
)
def test_captions_that_cannot_be_written_are_skipped_and_not_broken(mixture, prompt):
    def change(samples):
        one = replace(samples[1].keep([0]), prompt=prompt, vocabulary=(), box_phrases=((0,),))
        return [samples[0], one]

    step = mixture(DRAWN, change=change)[0]
    assert step.broken == () and len(step.batches[0].targets) == 4 and step.skipped.counts[UNWRITTEN] >= 1


def test_what_a_sample_lost_is_counted_although_nothing_can_be_asked_for(mixture):
    def change(samples):
        wide = replace(samples[1].keep([0]), boxes=torch.tensor([[0.0, 0, 128, 120]]), vocabulary=("wall",))
        return [samples[0], replace(wide, box_phrases=((0,),))]

    step = mixture(DRAWN, change=change, crop=32, seed=1)[0]  # a window shows a tenth of the only box
    lost = step.skipped.counts[UNWRITTEN]
    assert lost and step.skipped.counts["box cut away by the crop"] >= lost
    [place, *_] = step.skipped.places[UNWRITTEN]
    assert "have no box of their own (cut by the crop" in place


def test_an_image_of_another_size_is_broken(mixture):
    """Boxes are for the size that the annotations state; on a resized or turned image they lie anywhere."""
    step = mixture(DRAWN, change=lambda samples: [samples[0], replace(samples[1], size=(1280, 1200))])[0]
    assert len(step.broken) >= 2 and "1.png" in step.broken[0]
    assert "annotated as 1280 x 1200 pixels and has 128 x 120" in step.broken[0]


@pytest.mark.unchecked
def test_workers_start_deaf_to_signals():
    """Ctrl-C reaches all processes of a terminal; one that is just starting would die and leave the others waiting."""
    before, masks = signal.pthread_sigmask(signal.SIG_BLOCK, ()), []

    class Loader:
        def __iter__(self):
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return iter(())

    assert list(_started(Loader())) == [] and masks == [{*before, signal.SIGINT, signal.SIGTERM}]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
