"""What helps frozen weights against false positives on absent names: a table for docs/false-positives.md.

    python tools/remedies.py MODEL --val SET --test SET [--images 120] [--root DIR] [--only "names compete (1)" ...]

Each remedy is measured on images of --val. Those that raise AP at a false positive rate of 0.01 by a twentieth, while
AP falls by a hundredth at most, are measured once on --test, with 95 % intervals from a paired bootstrap over images.
With --train SET a presence score learned on that set's images is among them.
``--cost`` gives the time of sinks alone: random weights of a config, one image of 800 x 1088, 80 names.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import COCO_NAMES, Row, random_detector, table
from PIL import Image, ImageOps
from scipy.optimize import linear_sum_assignment

import glip
from glip.data.catalog import find_set, read_set
from glip.data.image import sample_image
from glip.encoded import EncodedText
from glip.evaluate import coco
from glip.evaluate.columns import GroundTruth, Results, to_arrays
from glip.evaluate.false_positives import AT, false_positives, image_level
from glip.evaluate.validate import evenly_spaced
from glip.geometry.boxes import iou
from glip.postprocess import suppress_classes, tempered
from glip.recipes.calibrate import find_temperature
from glip.structures import Detections, Prompt, Sample

RATE, GAIN, LOSS, ROUNDS = 0.01, 1.05, 0.99, 200
Names = Sequence[str]
Remedy = Callable[[glip.Detector, Image.Image, Names], Detections]


def ask(detector: glip.Detector, image: Image.Image, names: Names, **options: int) -> Detections:
    """All names in one prompt, or in chunks, at threshold 0."""
    return detector(image, list(names), threshold=0.0, **options)  # type: ignore[call-overload]


def with_sinks(text: EncodedText, count: int, spread: float) -> EncodedText:
    """Token features with more rows behind them, zero or random, that belong to no phrase."""
    rows, width, channels = text.hidden.shape
    noise = torch.randn(count, channels, generator=torch.Generator().manual_seed(0)) * text.hidden.std().cpu() * spread
    hidden = torch.cat([text.hidden, noise.to(text.hidden).expand(rows, -1, -1)], dim=1)
    batch = text.batch
    mask = torch.nn.functional.pad(batch.attention_mask, (0, count), value=True)
    ids = torch.nn.functional.pad(batch.input_ids, (0, count))
    tokens = tuple(torch.nn.functional.pad(own, (0, count)) for own in batch.phrase_tokens)
    batch = replace(batch, input_ids=ids, attention_mask=mask, phrase_tokens=tokens)
    return replace(text, hidden=hidden, batch=batch, lengths=(width + count,) * rows)


def sinks(detector: glip.Detector, image: Image.Image, names: Names, *, count: int, spread: float = 1.0) -> Detections:
    """Rows behind the text encoder that only take attention."""
    text = with_sinks(detector.encode_text(list(names)), count, spread)
    return detector.ground(detector.encode_image(image), text, threshold=0.0)[0]


def negatives(detector: glip.Detector, image: Image.Image, names: Names, *, words: Names) -> Detections:
    """Words that take part in the prompt and are not returned."""
    found = detector(image, Prompt.from_names(names, negatives=words), threshold=0.0)
    return replace(found, prompt=Prompt.from_names(names))


def merged(parts: Sequence[Detections], nms: float = 0.6) -> Detections:
    """Several views of an image as one: the best box of each group, with the mean over views of its best scores."""
    boxes, scores, labels = (torch.cat([getattr(one, key) for one in parts]) for key in ("boxes", "scores", "labels"))
    order = scores.argsort(descending=True, stable=True)
    every = replace(parts[0], boxes=boxes[order], scores=scores[order], labels=labels[order])
    kept = suppress_classes(every, nms)
    sums = torch.zeros(len(kept))
    for one in parts:
        near = (iou(kept.boxes, one.boxes, inclusive=False) > nms) & (kept.labels[:, None] == one.labels)
        sums += (near * one.scores).amax(1) if len(one) else 0.0
    again = (sums / len(parts)).sort(descending=True, stable=True)
    return replace(kept.select(again.indices), scores=again.values)


def orders(detector: glip.Detector, image: Image.Image, names: Names, *, count: int) -> Detections:
    """The mean over shuffled orders of the names."""
    parts, place, rng = [ask(detector, image, names)], list(range(len(names))), random.Random(0)
    for _ in range(count - 1):
        rng.shuffle(place)
        found = ask(detector, image, [names[index] for index in place])
        parts.append(replace(found, labels=torch.tensor(place)[found.labels], prompt=parts[0].prompt))
    return merged(parts)


def wordings(detector: glip.Detector, image: Image.Image, names: Names, *, forms: Names) -> Detections:
    """The mean over wordings of each name."""
    parts = [ask(detector, image, [form.format(name) for name in names]) for form in forms]
    return merged([replace(one, prompt=Prompt.from_names(names)) for one in parts])


def flip(detector: glip.Detector, image: Image.Image, names: Names) -> Detections:
    """The image and its mirror image."""
    found = ask(detector, ImageOps.mirror(image), names)
    left, top, right, bottom = found.boxes.unbind(1)
    boxes = torch.stack([image.width - right, top, image.width - left, bottom], dim=1)
    return merged([ask(detector, image, names), replace(found, boxes=boxes)])


def scales(detector: glip.Detector, image: Image.Image, names: Names, *, shares: Sequence[float]) -> Detections:
    """The image at several sizes."""
    sides = [round(detector.config.image.min_size * share) for share in shares]
    return merged([ask(detector.resized(side), image, names) for side in sides])


def presence(detector: glip.Detector, image: Image.Image, names: Names, *, power: float) -> Detections:
    """Scores times the best score in the image of the name when it is asked alone."""
    found, alone = ask(detector, image, names), ask(detector, image, names, max_names=1)
    best = torch.zeros(len(names)).scatter_reduce(0, alone.labels, alone.scores, "amax")
    again = (found.scores * best[found.labels] ** power).sort(descending=True, stable=True)
    return replace(found.select(again.indices), scores=again.values)


class LearnedPresence:
    """Scores times a learned probability that the name is in the image.

    A linear layer reads the mean over the name's tokens of what fusion wrote into them, and the name's best score.
    """

    def __init__(self, detector: glip.Detector, samples: Sequence[Sample]) -> None:
        rows = [(self.read(detector, sample_image(sample), sample.vocabulary), sample) for sample in samples]
        features = torch.cat([own for (_, own), _ in rows])
        pairs = [(label, sample) for _, sample in rows for label in range(len(sample.vocabulary))]
        there = torch.tensor([float(any(label in own for own in sample.box_phrases)) for label, sample in pairs])
        self.mean, self.spread = features.mean(0), features.std(0) + 1e-6
        self.layer = torch.nn.Linear(features.shape[1], 1)
        torch.nn.init.zeros_(self.layer.weight)
        optimizer = torch.optim.LBFGS(self.layer.parameters(), max_iter=300, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            error = F.binary_cross_entropy_with_logits(self.logits(features), there)
            error += 1e-3 * self.layer.weight.square().sum()
            error.backward()  # type: ignore[no-untyped-call]
            return error

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        right = self.logits(features) > 0
        print(f"presence: right for {(right == (there > 0)).float().mean():.1%} of {len(there)} training pairs\n")

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Of the probability that each name is there."""
        return self.layer((features - self.mean) / self.spread)[:, 0]

    def read(self, detector: glip.Detector, image: Image.Image, names: Names) -> tuple[Detections, torch.Tensor]:
        """The detections, and what is known of each name in the image."""
        tokens = list[torch.Tensor]()
        hook = detector.model.tokens.register_forward_pre_hook(lambda _, given: tokens.append(given[1]))
        text = detector.encode_text(list(names))
        [found] = detector.ground(detector.encode_image(image), text, threshold=0.0)
        hook.remove()
        best = torch.zeros(len(names)).scatter_reduce(0, found.labels, found.scores, "amax")
        own = text.batch.phrase_tokens[0].to(tokens[0]) @ tokens[0][0]
        return found, torch.cat([own.cpu(), best.logit(1e-4)[:, None]], dim=1)

    @torch.no_grad()
    def __call__(self, detector: glip.Detector, image: Image.Image, names: Names) -> Detections:
        """The detections with scores times presence."""
        found, features = self.read(detector, image, names)
        again = (found.scores * self.logits(features).sigmoid()[found.labels]).sort(descending=True, stable=True)
        return replace(found.select(again.indices), scores=again.values)


def competing(detector: glip.Detector, image: Image.Image, names: Names, *, strength: float) -> Detections:
    """The package's own option."""
    return ask(detector.with_inference(compete=strength), image, names)


REMEDIES: dict[str, Remedy] = {
    "none": ask,
    **{f"names compete ({one:g})": partial(competing, strength=one) for one in (0.5, 1, 2)},
    **{f"{count} random sinks": partial(sinks, count=count) for count in (1, 4, 16)},
    "4 zero sinks": partial(sinks, count=4, spread=0.0),
    **{f"4 x {word!r} as negatives": partial(negatives, words=[word] * 4) for word in (".", "[()]")},
    **{f"chunks of {count}": partial(ask, max_names=count) for count in (1, 4)},
    "3 orders": partial(orders, count=3),
    "3 wordings": partial(wordings, forms=("{}", "a {}", "the {}")),
    "flip": flip,
    "2 sizes": partial(scales, shares=(1.0, 0.75)),
    **{f"presence ({power:g})": partial(presence, power=power) for power in (0.5, 1)},
}
RESCORED = ("temperature", "thresholds of best F1")  # made of the detections of "none"


@dataclass
class Found:
    """The detections of one remedy in all samples, and the processor time that they took."""

    pairs: list[tuple[Sample, Detections]]
    seconds: float

    def rescored(self, change: Callable[[Detections], torch.Tensor]) -> "Found":
        """The same boxes with other scores."""
        pairs = []
        for sample, found in self.pairs:
            again = change(found).sort(descending=True, stable=True)
            pairs.append((sample, replace(found.select(again.indices), scores=again.values)))
        return Found(pairs, self.seconds)


def detect(detector: glip.Detector, samples: Sequence[Sample], chosen: Sequence[str]) -> dict[str, Found]:
    """Each remedy in each sample, in turns, so that a busy machine slows all alike."""
    found = {name: Found([], 0.0) for name in chosen if name in REMEDIES}
    for sample in samples:
        image = sample_image(sample)
        for name, one in found.items():
            start = time.process_time()
            one.pairs.append((sample, REMEDIES[name](detector, image, sample.vocabulary)))
            one.seconds += time.process_time() - start
    return found


def matches(truth: GroundTruth, results: Results) -> list[coco.Ranking]:
    """Each category as pycocotools matches it; ``right`` has a row for each of the ten overlaps. Without crowds."""
    found = list[coco.Ranking]()
    for category in range(len(truth.categories)):
        evaluator = coco._run_cocoeval(truth.boxes, results, range(category, category + 1), as_filed=False)
        records = [row for row in evaluator.evalImgs[: len(evaluator.params.imgIds)] if row is not None]
        scores = np.concatenate([[], *(row["dtScores"] for row in records)])
        right = np.concatenate([np.zeros((10, 0)), *(row["dtMatches"] > 0 for row in records)], axis=1)
        images = np.array([row["image_id"] for row in records], dtype=int)
        owners, boxes = (np.repeat(images, [len(row[key]) for row in records]) for key in ("dtIds", "gtIds"))
        order = np.argsort(-scores, kind="stable")
        found.append(coco.Ranking(owners[order], right[:, order], scores[order], boxes))
    return found


class Scored:
    """The figures of one remedy, of all images or of images drawn again."""

    def __init__(self, found: Found) -> None:
        self.rankings = matches(*to_arrays(found.pairs))
        false = false_positives(*to_arrays(found.pairs))
        assert false is not None, "no absent name"
        self.pairs, self.false = len(false.best), false
        every = coco.pooled([replace(one, right=one.right[0]) for one in self.rankings])
        self.best = every.best.get("threshold", AT)  # the one threshold of best F1

    def threshold(self, weights: np.ndarray) -> float:
        """The threshold at which the false positive rate is at most 0.01."""
        order = np.argsort(-self.false.best, kind="stable")
        share = np.cumsum(weights[self.false.images[order]]) / weights[self.false.images].sum()
        return float(np.nextafter(self.false.best[order][int((share <= RATE).sum())], np.inf))

    def figures(self, weights: np.ndarray) -> np.ndarray:
        """AP, and AP at a false positive rate of 0.01, where image i counts ``weights[i]`` times."""
        lowest, table = (0.0, self.threshold(weights)), list[list[float]]()
        for one in self.rankings:
            boxes, times = float(weights[one.boxes].sum()), weights[one.images]
            if not boxes:
                continue
            counts, shown = [int((one.scores >= threshold).sum()) for threshold in lowest], np.cumsum(times)
            right = np.cumsum(times * one.right, axis=1)
            ap = [[coco.interpolated_ap(row[:n], shown[:n], boxes) for row in right] if n else [0.0] for n in counts]
            table.append([float(np.mean(own)) for own in ap])
        return np.mean(table, axis=0)


def cgf1(pairs: Sequence[tuple[Sample, Detections]], threshold: float) -> float:
    """SA-Co's cgF1, whose threshold is 0.5, with every (image, name) as a pair."""
    overlaps, levels, right, shown, boxes = np.linspace(0.5, 0.95, 10), np.zeros((2, 2)), np.zeros(10), 0, 0
    for sample, found in pairs:
        above = found.above(threshold)
        for label in range(len(sample.vocabulary)):
            true = sample.boxes[[label in own for own in sample.box_phrases]]
            own = above.boxes[above.labels == label]
            levels[int(len(true) > 0), int(len(own) > 0)] += 1
            near = iou(own, true, inclusive=False).numpy()
            right += (near[linear_sum_assignment(near, maximize=True)][:, None] >= overlaps).sum(0)
            shown, boxes = shown + len(own) * (len(true) > 0), boxes + len(true)
    (tn, fp), (fn, tp) = levels.tolist()
    precision, recall = right / (shown + 1e-4), right / (boxes + 1e-4)
    micro = 2 * precision * recall / (precision + recall + 1e-4)
    return float(micro.mean()) * image_level(tp, fp, fn, tn)["IL_MCC"]


def rescorings(found: Found) -> dict[str, Callable[[Detections], torch.Tensor]]:
    """What is learned from the detections on --val: a temperature, and a threshold for each name."""
    score = coco.score_results(*to_arrays(found.pairs))
    right, scores = (np.concatenate([getattr(one, key) for one in score.rankings]) for key in ("right", "scores"))
    temperature = find_temperature(scores, right)
    ranked = zip((str(row["name"]) for row in score.categories), score.rankings, strict=True)
    best = coco.thresholds_by_name(ranked)

    def shifted(one: Detections) -> torch.Tensor:
        own = torch.tensor([best.get(phrase.text, AT) for phrase in one.phrases])
        odds = one.scores * (1 - own), own * (1 - one.scores)  # a score of the threshold becomes 0.5
        return odds[0] / (odds[0] + odds[1])

    return {RESCORED[0]: lambda one: tempered(one.scores, temperature), RESCORED[1]: shifted}


def rows(found: Mapping[str, Found], chosen: Mapping[str, float] | None = None) -> Iterator[tuple[Row, Scored]]:
    """A row for each remedy; with a threshold chosen for each before, intervals of what it gains."""
    scored = {name: Scored(one) for name, one in found.items()}
    base, first = scored["none"], found["none"].seconds
    count = len(found["none"].pairs)
    one, rng = np.ones(count), np.random.default_rng(0)
    drawn = rng.multinomial(count, one / count, size=ROUNDS if chosen else 0)
    before = np.array([base.figures(weights) for weights in drawn])
    for name, own in scored.items():
        figures = own.figures(one)
        row: Row = {"remedy": name, "AP": f"{figures[0]:.3f}", "AP at FPR .01": f"{figures[1]:.3f}"}
        row["gain"] = f"{figures[1] / base.figures(one)[1] - 1:+.0%}"
        threshold = (chosen or {}).get(name, own.best)
        row |= {"cgF1": f"{cgf1(found[name].pairs, AT):.3f}", "threshold": f"{threshold:.2f}"}
        row["cgF1 there"] = f"{cgf1(found[name].pairs, threshold):.3f}"
        row["time"] = f"{found[name].seconds / first:.2f}"
        if chosen:
            gains = np.array([own.figures(weights) for weights in drawn]) - before
            for place, title in enumerate(("AP less", "at FPR .01 less")):
                low, high = np.percentile(gains[:, place], [2.5, 97.5])
                row[f"{title} none, 95 %"] = f"{low:+.3f} to {high:+.3f}"
        yield row, own


def measure(detector: glip.Detector, val: Sequence[Sample], test: Sequence[Sample], only: Sequence[str]) -> None:
    """Print a table of --val, and one of --test for what pays there."""
    chosen = list(dict.fromkeys(["none", *only]))
    found = detect(detector, val, chosen)
    changes = {name: change for name, change in rescorings(found["none"]).items() if name in chosen}
    found |= {name: found["none"].rescored(change) for name, change in changes.items()}
    measured = dict(zip(found, rows(found), strict=True))
    print(f"Validation: {len(val)} images, {measured['none'][1].pairs} (image, absent name) pairs\n")
    print(*table([row for row, _ in measured.values()]), sep="\n")
    figures = {name: own.figures(np.ones(len(val))) for name, (_, own) in measured.items()}
    base = figures["none"]
    paying = [name for name, own in figures.items() if own[1] > GAIN * base[1] and own[0] >= LOSS * base[0]]
    found = detect(detector, test, ["none", *paying])
    found |= {name: found["none"].rescored(changes[name]) for name in paying if name in changes}
    last = list(rows(found, {name: own.best for name, (_, own) in measured.items()}))
    print(f"\nTest: {len(test)} images, {last[0][1].pairs} (image, absent name) pairs\n")
    print(*table([row for row, _ in last]), sep="\n")


def joined(names: Sequence[str], root: Path | None, images: int) -> list[Sample]:
    """Images of one set with its names, or of several, each asked for the names of all."""
    reads = [read_set(find_set(name), root) for name in names]
    if len(reads) == 1:
        return list(evenly_spaced(reads[0].samples, images))
    every, samples = tuple(dict.fromkeys(name for read in reads for name in read.vocabulary)), list[Sample]()
    for read in reads:
        place = {number: every.index(name) for number, name in enumerate(read.vocabulary)}
        chosen = evenly_spaced(read.samples, images // len(reads))
        samples += [replace(sample.renumbered(place), vocabulary=every, absent=None) for sample in chosen]
    return samples


def cost(config: str) -> None:
    """Print how much longer the head of a model with random weights takes with sinks."""
    detector = random_detector(config, (800, 1088))
    image = detector.encode_image(Image.new("RGB", (1088, 800), "gray"))
    text = detector.encode_text(list(COCO_NAMES))
    for count in (4, 16):
        spent = {0: list[float](), count: list[float]()}
        for _ in range(5):
            for number, own in spent.items():
                start = time.process_time()
                detector.ground(image, with_sinks(text, number, 1.0) if number else text, threshold=0.5)
                own.append(time.process_time() - start)
        print(f"{count} sinks: {min(spent[count]) / min(spent[0]):.3f} x the time without")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="name or folder; with --cost a config, such as glip_t_c")
    several = "; of several sets each image is asked for all names"
    parser.add_argument("--val", nargs="+", metavar="SET", help=f"to choose on: class names, many absent{several}")
    parser.add_argument("--test", nargs="+", metavar="SET", help="to report on")
    parser.add_argument("--train", nargs="+", metavar="SET", help="to learn a presence score on, up to 1,500 images")
    parser.add_argument("--images", type=int, default=120, help="of each set at most (default: 120)")
    parser.add_argument("--root", type=Path, help="the data root (default: GLIP_DATA)")
    parser.add_argument("--only", nargs="+", default=[*REMEDIES, *RESCORED], choices=[*REMEDIES, *RESCORED])
    parser.add_argument("--cost", action="store_true", help="the time of sinks instead")
    args = parser.parse_args()
    if args.cost:
        return cost(args.model)
    detector = glip.Detector.from_pretrained(args.model)
    chosen, reported = (joined(names, args.root, args.images) for names in (args.val, args.test))
    if args.train:
        REMEDIES["learned presence"] = LearnedPresence(detector, joined(args.train, args.root, 1500))
    measure(detector, chosen, reported, [*args.only, "learned presence"] if args.train else args.only)


if __name__ == "__main__":
    main()
