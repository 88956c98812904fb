"""Draw the images of the docs, and the drawn task of docs/adaptation.md.

    python tools/draw_docs.py demo docs/images        the images of the README and its example of one's own boxes
    python tools/draw_docs.py curve docs/images/nano_curve.png --runs runs/nano_base runs/nano
    python tools/draw_docs.py movie docs/images/detect.gif          the moving image of the README
    python tools/draw_docs.py sheet docs/images/nano_sheet.jpg
    python tools/draw_docs.py task DATA/drawn_words [--images 160 40 80] [--seed 0]

A curve shows how the losses fell; each run began with the weights of the one before. The sheet shows what a model finds
in the sets world_novel and world_novel_captions under GLIP_DATA (docs/data.md has the command). The task is a COCO set
with three splits whose class names are invented: each stands for a pair of colour and kind that the drawn world's
training never shows. Other things in its images share the kind or the colour of one, so that both must be learned.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from drawn_world.icons import COLOURS, KINDS
from drawn_world.scenes import Thing, draw_scene
from drawn_world.words import is_novel
from PIL import Image, ImageDraw

import glip
from glip.data.catalog import find_set, read_set
from glip.evaluate.figures import found_sample
from glip.evaluate.run import detect_all
from glip.files import read_jsonl, write_json
from glip.lettering import ink, palette, put, width_of
from glip.structures import Detections, Sample
from glip.visualize import PAPER, contact_sheet, save_image

DOCS = Path(__file__).resolve().parent.parent / "docs"
STREET = (
    Thing("sun", "yellow", "plain", (392, 18, 470, 96)),
    Thing("cloud", "white", "plain", (70, 26, 190, 88)),
    Thing("house", "red", "plain", (168, 122, 300, 246)),
    Thing("tree", "green", "plain", (42, 112, 132, 252)),
    Thing("tree", "green", "plain", (350, 134, 432, 252)),
    Thing("car", "blue", "plain", (92, 262, 214, 330)),
    Thing("car", "yellow", "plain", (300, 258, 422, 326)),
)
SHELF = (
    Thing("cup", "blue", "plain", (36, 150, 118, 232)),
    Thing("heart", "red", "plain", (164, 156, 234, 224)),
    Thing("fish", "orange", "plain", (272, 160, 396, 228)),
    Thing("star", "purple", "plain", (60, 34, 132, 104)),
    Thing("boat", "green", "plain", (172, 32, 262, 112)),
    Thing("triangle", "black", "plain", (310, 40, 380, 106)),
)
MOVIE = (  # image and prompt of each scene
    ("street.png", "a red house. a tree. a car. the sun"),
    ("shelf.png", "a red heart. a blue cup. a fish. a star"),
)
WIDTH, HEIGHT, BAR, LETTERS, TAGS = 640, 394, 58, 28, 21  # of the movie, pixels: the image, the prompt above, letters
TYPED, FOUND, HELD = 50, 350, 1800  # milliseconds that a letter, a phrase and all boxes are shown
EXAMPLE = (("red", "key"), ("blue", "bell"), ("green", "umbrella"))  # the classes of the README's example
WORDS = ("blicket", "dax", "fep", "gorp", "kiki", "modi", "toma", "wug")  # the classes of the task
SIDES, THINGS, SIZE = (160, 221), (3, 6), (36, 72)  # pixels, things in an image, pixels of a thing of the task
TERMS = ("token", "box", "centerness")  # the loss terms of a curve
SMOOTH = 5  # rows of metrics.jsonl, each a mean over 20 steps
Look = tuple[str, str]  # colour and kind


def main() -> None:
    """Draw one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "movie", "curve", "sheet", "task"))
    parser.add_argument("out", type=Path, help="a folder for demo and task, a file for the others")
    parser.add_argument("--runs", nargs="+", type=Path, help="folders with a metrics.jsonl, for curve")
    parser.add_argument("--model", default="glip-nano", help="for movie and sheet")
    parser.add_argument("--images", type=int, nargs=3, default=(160, 40, 80), metavar="N", help="for task, by split")
    parser.add_argument("--seed", type=int, default=0, help="for task")
    args = parser.parse_args()
    if args.what == "demo":
        draw_demo(args.out)
    elif args.what == "movie":
        draw_movie(args.model, args.out)
    elif args.what == "curve":
        draw_curve(args.runs, args.out)
    elif args.what == "sheet":
        draw_sheet(args.model, args.out)
    else:
        draw_task(args.out, args.images, args.seed)


def save_set(
    images: Path, annotations: Path, names: Sequence[str], looks: Sequence[Look], drawn: Sequence[Any], quality: int
) -> None:
    """Save (file name, size, things, seed of the scene) as JPEGs and a COCO file; other looks have no box."""
    tree: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    for number, (file, size, things, seed) in enumerate(drawn):
        draw_scene(things, size, seed=seed).save(images / file, quality=quality)
        tree["images"].append({"id": number, "file_name": file, "width": size[0], "height": size[1]})
        for thing in (thing for thing in things if (thing.colour, thing.kind) in looks):
            x1, y1, x2, y2 = thing.box
            row: dict[str, object] = {"image_id": number, "category_id": 1 + looks.index((thing.colour, thing.kind))}
            row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            tree["annotations"].append({"id": len(tree["annotations"]) + 1, **row})
    tree["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    write_json(annotations, tree)


def draw_demo(folder: Path) -> None:
    """Both scenes of the README, and a small COCO set: twelve images with up to four things each."""
    (folder / "example" / "images").mkdir(parents=True, exist_ok=True)
    draw_scene(STREET, (500, 350), seed=2).save(folder / "street.png")
    draw_scene(SHELF, (440, 270), seed=0).save(folder / "shelf.png")
    drawn = []
    for number in range(12):
        rng = np.random.default_rng(number)
        things = []
        for cell in rng.permutation(4)[: rng.integers(1, 5)].tolist():
            colour, kind = EXAMPLE[int(rng.integers(len(EXAMPLE)))]
            width, height = rng.integers(40, 90, 2).tolist()
            x, y = cell % 2 * 110 + int(rng.integers(5, 25)), cell // 2 * 110 + int(rng.integers(5, 25))
            things.append(Thing(kind, colour, "plain", (x, y, x + width, y + height)))
        drawn.append((f"{number}.jpg", (240, 240), things, number))
    names = [" ".join(look) for look in EXAMPLE]
    save_set(folder / "example" / "images", folder / "example" / "boxes.json", names, EXAMPLE, drawn, 90)


def draw_movie(model: str, out: Path) -> None:
    """Prompts typed letter by letter; with each phrase the boxes that the model finds for the prompt so far appear."""
    detector, frames, times = glip.Detector.from_pretrained(model), list[Image.Image](), list[int]()
    for file, prompt in MOVIE:
        image = Image.open(DOCS / "images" / file).convert("RGB")
        image = image.resize((image.width * HEIGHT // image.height, HEIGHT), Image.Resampling.LANCZOS)
        found: Detections | None = None
        first = len(frames)
        for end in range(len(prompt) + 1):
            frames.append(movie_frame(image, f"{prompt[:end]}|", found))
            times.append(TYPED)
            if prompt[end : end + 1] in (".", ""):
                found = detector(image, prompt[:end])
                frames.append(movie_frame(image, prompt[:end], found))
                times.append(FOUND)
        times[-1], colours = HELD, frames[-1].quantize(256)
        frames[first:] = [one.quantize(palette=colours, dither=Image.Dither.NONE) for one in frames[first:]]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)


def movie_frame(image: Image.Image, prompt: str, found: Detections | None) -> Image.Image:
    """The prompt above the image, the boxes with large tags in it."""
    canvas = Image.new("RGB", (WIDTH, BAR + HEIGHT), PAPER)
    left = (WIDTH - image.width) // 2
    canvas.paste(image, (left, BAR))
    pen = ImageDraw.Draw(canvas)
    put(pen, (14, 10), prompt, LETTERS, (20, 20, 24))
    names = found.prompt.texts if found else ()
    for (x1, y1, x2, y2), score, label, phrase in reversed(list(found or ())):
        colour, text = palette(names)[label], f"{phrase} {score:.2f}"
        x, y = left + x1, max(BAR + y1 - TAGS - 8, BAR)
        pen.rectangle((x, BAR + y1, left + x2, BAR + y2), outline=colour, width=4)
        pen.rectangle((x, y, x + width_of(text, TAGS) + 10, y + TAGS + 8), fill=colour)
        put(pen, (x + 5, y + 2), text, TAGS, ink(colour))
    return canvas


def draw_curve(runs: list[Path], out: Path) -> None:
    """A panel for each loss term and one for the learning rate, one run behind the other."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(12, 3.2), layout="tight")
    panels = canvas.subplots(1, len(TERMS) + 1)
    begin = 0
    for run in runs:
        rows = [row for row in read_jsonl(run / "metrics.jsonl") if "lr" in row]
        steps = [begin + row["step"] for row in rows]
        for panel, term in zip(panels, TERMS, strict=False):
            values = [row[term] for row in rows]
            means = [sum(values[max(0, end - SMOOTH) : end]) / min(end, SMOOTH) for end in range(1, len(values) + 1)]
            panel.plot(steps, means, label=run.name)
            panel.set(title=f"{term} loss", xlabel="step")
        panels[-1].plot(steps, [row["lr"] for row in rows], label=run.name)
        begin = steps[-1]
    panels[-1].set(title="learning rate", xlabel="step")
    panels[0].legend()
    canvas.savefig(out, dpi=100)


def draw_sheet(model: str, out: Path) -> None:
    """Drawings of novel combinations with what the model finds in them, above its default threshold."""
    detector = glip.Detector.from_pretrained(model)
    shown: list[Sample] = []
    for name, chosen in (("world_novel", range(8)), ("world_novel_captions", range(8, 16))):
        samples = read_set(find_set(name)).samples
        pairs = detect_all(detector, [samples[index] for index in chosen])
        shown += [found_sample(sample, found.above(detector.config.inference.threshold)) for sample, found in pairs]
    save_image(contact_sheet(shown), out)


def draw_task(folder: Path, counts: Sequence[int], seed: int) -> None:
    """Draw the three splits of the task."""
    looks = choose_looks(np.random.default_rng(seed))
    print(", ".join(f"{word}: {colour} {kind}" for word, (colour, kind) in zip(WORDS, looks, strict=True)))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        rng = np.random.default_rng((seed, number))
        drawn = []
        for image in range(count):
            size = (int(rng.integers(*SIDES)), int(rng.integers(*SIDES)))
            things = place(rng, size, looks)
            drawn.append((f"{split}_{image:03d}.jpg", size, things, int(rng.integers(2**31))))
        save_set(folder / "images", folder / "annotations" / f"instances_{split}.json", WORDS, looks, drawn, 92)


def choose_looks(rng: np.random.Generator) -> list[Look]:
    """A held-out pair of colour and kind for each word, no colour and no kind twice."""
    pairs = [(c, k) for c in COLOURS for k in KINDS if is_novel({"colour": c, "kind": k})]
    chosen: list[Look] = []
    for index in rng.permutation(len(pairs)).tolist():
        colour, kind = pairs[index]
        if len(chosen) < len(WORDS) and all(colour != c and kind != k for c, k in chosen):
            chosen.append((colour, kind))
    return chosen


def place(rng: np.random.Generator, size: tuple[int, int], looks: list[Look]) -> list[Thing]:
    """Things that do not overlap; about half are of the task, the others share a colour or a kind with one."""
    things: list[Thing] = []
    for _ in range(200):
        if len(things) == int(rng.integers(THINGS[0], THINGS[1] + 1)):
            break
        side = rng.uniform(*SIZE)
        x, y = float(rng.uniform(2, size[0] - side - 2)), float(rng.uniform(2, size[1] - side - 2))
        box = (x, y, x + float(side), y + float(side))
        if any(too_close(box, thing.box) for thing in things):
            continue
        colour, kind = looks[int(rng.integers(len(looks)))]
        if things and rng.random() < 0.5:
            if rng.random() < 0.5:
                colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
            else:
                kind = KINDS[int(rng.integers(len(KINDS)))]
        things.append(Thing(kind, colour, "plain", box))
    return things


def too_close(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes are less than four pixels apart."""
    return all(one[low] < other[low + 2] + 4 and other[low] < one[low + 2] + 4 for low in (0, 1))


if __name__ == "__main__":
    main()
