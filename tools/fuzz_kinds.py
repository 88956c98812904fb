"""Broken inputs of every kind that glip reads, and the call that reads each: shared by tools/fuzz.py and tests.

A kind is a function of a random generator and an empty folder: it writes an input there and reads it. The same seed
gives the same input. What is wrong with an answer (other figures, code that ran) is an AssertionError.
"""

import copy
import functools
import io
import itertools
import json
import pickle
import random
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from measuring import VOCABULARY
from PIL import Image
from safetensors.torch import save

import glip
from glip.config import SelectConfig, StepConfig, TableTask
from glip.data.catalog import find_set, known_sets, read_set
from glip.data.image import image_size, load_image, open_any
from glip.data.sets import SkipCounter
from glip.evaluate.columns import read_results
from glip.evaluate.phrases import read_predictions
from glip.evaluate.run import Prediction, PredictionStore, QueryOptions
from glip.experiment import read_yaml, to_dict, to_yaml
from glip.files import begin_run, read_manifest
from glip.model.adapt import Adaptation, load_adaptation, save_adaptation
from glip.model.glip import build
from glip.pseudo.select import score_labels, select
from glip.pseudo.store import count_labels, read_rows, write_report, write_shard
from glip.recipes.tune_table import read_ledger, table_lines
from glip.schema import parse
from glip.structures import Detections, Prompt, Sample
from glip.text.class_prompts import read_prompts
from glip.text.tokens import Tokenizer
from glip.train.checkpoint import LAST, read_state, restore, save_state
from glip.train.distributed import Group
from glip.train.log import Progress
from glip.train.start import load_config
from glip.train.step import Stepper

Rng = random.Random
Read = Callable[[Rng, Path], None]
CAPTION, LONG = "a cat and a dog chase another dog", 100_000
RAN = "ran"  # the file that code in a pickle would make
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\x1b[31mred",
        "line\nbreak",
        "\ud800",
        "\u202eevil",
        "\u200b",
        "é",
        "😀 face",
        "[UNK]",
        "a" * LONG,
    ),
    *("../../up", "/etc/passwd", "<script>", "=1+1", "NaN", "1e999", "&amp;", ". . .", "a. " * 300, "'", '["a", "b"'),
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**70, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), True)
ODD: tuple[Any, ...] = (*TEXTS, *NUMBERS, None, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [1, 2, 3, 4], "[" * 1200)


# ---- mutations


def mutate_bytes(rng: Rng, data: bytes) -> bytes:
    """Some flipped bits, a cut, a part that is lost, doubled, zeroed or noise; one time in twelve nothing."""
    found, way = bytearray(data or b" "), rng.randrange(12)
    start = rng.randrange(len(found) + 1)
    start = start if rng.random() < 0.5 else min(start, rng.randrange(200))  # heads matter most
    end = min(start + rng.choice((1, 2, 4, 8, 60)), len(found))
    if way < 5:
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(found)) if rng.random() < 0.5 else rng.randrange(min(len(found), 200))
            found[place] ^= 1 << rng.randrange(8)
    elif way == 5:
        del found[start:]
    elif way == 6:
        del found[start:end]
    elif way < 9:
        found[start:end] = rng.randbytes(end - start) if way == 7 else bytes(end - start)
    elif way == 9:
        found[start:start] = found[start:end] * rng.randint(1, 50)
    elif way == 10:
        found[start:end] = struct.pack(rng.choice("<>") + "Q", rng.choice((40_000, 2**31, 2**63, 2**64 - 1)))[
            : end - start
        ]
    return bytes(found)


def mutate_tree(rng: Rng, tree: Any, *, times: int = 3) -> Any:
    """A copy of plain values in which a few are odd, missing, doubled, renamed or swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(0, times)):
        inner: list[Any] = [tree]
        places = [(own, key) for own in inner for key in _keys(own, inner)]
        if not places:
            return rng.choice(ODD)
        own, key = rng.choice(places)
        way = rng.randrange(6)
        if way < 3:
            own[key] = copy.deepcopy(rng.choice(ODD))
        elif way == 3:
            del own[key]
        elif way == 4:
            other, where = rng.choice(places)
            own[key] = copy.deepcopy(other[where])
        elif isinstance(own, dict):
            own[rng.choice(TEXTS)] = own.pop(key)
        else:
            own.insert(key, copy.deepcopy(own[key]))
    return tree


def _keys(own: Any, inner: list[Any]) -> Sequence[Any]:
    """The keys or indices of a map or list, whose maps and lists join those to visit."""
    keys = list(own) if isinstance(own, dict) else range(len(own)) if isinstance(own, list) else ()
    inner += [own[key] for key in keys if isinstance(own[key], dict | list)]
    return keys


def write(rng: Rng, path: Path, content: Any) -> Path:
    """Write a tree as JSON, rows as JSON lines (``.jsonl``), text or bytes; values or bytes of it are broken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes | str):
        content = mutate_tree(rng, content) if rng.random() < 0.8 else content
        lines = content if path.suffix == ".jsonl" and isinstance(content, list) else [content]
        content = "\n".join(map(json.dumps, lines)) + "\n"
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    path.write_bytes(mutate_bytes(rng, data) if rng.random() < 0.25 else data)
    return path


# ---- images, annotations, captions, words


@functools.cache
def encoded_images() -> list[tuple[str, bytes]]:
    """Small images in every format and mode that Pillow writes here."""
    values = np.random.default_rng(0).integers(0, 255, (17, 23, 4), dtype=np.uint8)
    base, found = Image.fromarray(values, "RGBA"), []
    avif = {"speed": 10, "max_threads": 1}  # threads that outlive the writer are no part of this
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"):
        source = base.convert("L") if mode == "I;16" else base if mode in ("LA", "RGBA") else base.convert("RGB")
        slow = {"ICNS", "HEIF"} if mode != "RGB" else set()
        for form in sorted(Image.SAVE.keys() - {"PDF", "EPS"} - slow):
            animated = {"save_all": True, "append_images": [source.convert(mode)]}
            for more in ({}, *([] if form == "AVIF" else [animated])):
                stream, exif = io.BytesIO(), Image.Exif()
                exif[0x0112] = 6
                try:
                    source.convert(mode).save(stream, form, exif=exif, **more, **(avif if form == "AVIF" else {}))
                except Exception:  # a mode that the format does not have  # nosec B112
                    continue
                found.append((form.lower(), stream.getvalue()))
    return found


def read_an_image(rng: Rng, folder: Path) -> None:
    """A file of any format, bytes, an array of any shape and type, or a PNG that declares 40,000 x 40,000 pixels."""
    if rng.random() < 0.1:
        shape = [rng.choice((0, 1, 2, 3, 4, 9)) for _ in range(rng.randrange(5))]
        kind = rng.choice(("uint8", "int64", "float16", "float32", "bool", "complex64", "uint16", "U1"))
        values = np.array(rng.choice((0, 1, -3, 300, 1e30, np.nan, np.inf)))
        with np.errstate(all="ignore"):
            open_any(np.full(shape, values).astype(kind))
        return
    form, data = rng.choice(encoded_images())
    data = mutate_bytes(rng, data)
    if form == "png" and rng.random() < 0.2:
        head = b"IHDR" + struct.pack(">II", *rng.choices((0, 1, 13_000, 40_000, 2**31), k=2)) + data[24:29]
        data = data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    path = folder / f"image.{form}"
    path.write_bytes(data)
    image_size(path)
    if rng.random() < 0.5:
        load_image(path)
    else:
        open_any(path.read_bytes())


_BOX = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "id": 1}
_IMAGE = {"id": 1, "file_name": "a.png", "width": 9, "height": 8, "caption": CAPTION}
_PHRASE = {"tokens_positive": [[0, 5]], "boxes": [[1, 2, 3, 4]]}
_LABEL: dict[str, Any] = {"image": "a.png", "id": 1, "width": 9, "height": 8, "caption": CAPTION}
_LABEL |= {
    "phrases": [{"text": "a cat", "spans": [[0, 5]]}],
    "boxes": [{"box": [1.0, 2, 3, 4], "phrases": [0], "score": 0.9}],
}
_LVIS = {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
_CATEGORIES = [{"id": 3, "name": "cat", "frequency": "r"}, {"id": 5, "name": "dog"}]
_REGION: dict[str, Any] = {"type": "rectanglelabels", "from_name": "label", "to_name": "img", "id": "r"}
_REGION |= {"value": {"x": 1, "y": 2, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}}
_XML = "<annotation><filename>a.png</filename><size><width>9</width><height>8</height></size><object><name>1</name>"
_XML += "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>"
_FORMATS: dict[str, dict[str, Any]] = {
    "coco": {"a.json": {"images": [_IMAGE], "annotations": [_BOX, _BOX], "categories": _CATEGORIES}},
    "lvis": {"a.json": {"images": [_IMAGE | _LVIS], "annotations": [_BOX], "categories": _CATEGORIES}},
    "mdetr": {"a.json": {"images": [_IMAGE], "annotations": [_BOX | {"tokens_positive": [[0, 5]]}]}},
    "silver": {"a.json": {"data": [_IMAGE | {"image_id": 9, "phrases": [_PHRASE]}]}},
    "odvg": {
        "a.jsonl": [
            {"filename": "a.png", "detection": {"instances": [{"bbox": [1, 2, 3, 4], "label": 0, "category": "cat"}]}},
            {
                "filename": "a.png",
                "grounding": {"caption": CAPTION, "regions": [{"bbox": [1, 2, 3, 4], "phrase": "a cat"}]},
            },
        ]
    },
    "labels": {"a.jsonl": [_LABEL, {"names": ["cat", "dog"], "image": "a.png", "boxes": _LABEL["boxes"]}]},
    "label-studio": {
        "a.json": [
            {
                "id": 1,
                "data": {"img": "a.png"},
                "annotations": [{"result": [_REGION | {"original_width": 9, "original_height": 8}]}],
            }
        ]
    },
    "yolo": {
        "data.yaml": "train: images\nnames: {0: dog, 1: cat}\n",
        "labels/a.txt": "0 0.5 0.5 0.2 0.4\n1 0.1 0.2 0.5 0.2 0.5 0.6",
    },
    "voc": {"Annotations/a.xml": _XML, "ImageSets/Main/train.txt": "a\n"},
    "flickr30k": {"Annotations/a.xml": _XML, "Sentences/a.txt": "[/EN#1/people A man] with [/EN#2/clothing a hat] .\n"},
}
_CAPTIONS = {
    "a.json": [{"image": "a.png", "caption": CAPTION}],
    "b.json": {"images": [_IMAGE], "annotations": [{"image_id": 1, "caption": CAPTION, "id": 1}]},
    "a.jsonl": [{"image": "a.png", "captions": [CAPTION, "two"]}] * 3,
    "a.csv": f'image,caption\na.png,"{CAPTION}"\n"a.png","x, ""y"""\n',
    "a.tsv": f"a.png\t{CAPTION}\n" * 3,
}


def read_annotations(rng: Rng, folder: Path) -> None:
    """One of the formats of annotations, recognized by its content."""
    name = rng.choice(sorted(_FORMATS))
    (folder / "images").mkdir()
    Image.new("RGB", (9, 8)).save(folder / "images" / "a.png")
    files = [write(rng, folder / file, content) for file, content in _FORMATS[name].items()]
    path = folder if name in ("yolo", "voc", "flickr30k") else files[0]
    format = rng.choice((None, name))
    for sample in read_set(find_set(str(path), format=format), to_score=rng.random() < 0.5).samples:  # type: ignore[arg-type]
        assert len(sample.boxes) == len(sample.box_phrases)


def read_captions(rng: Rng, folder: Path) -> None:
    """One of the formats of captions: JSON, JSON lines, CSV, TSV, a tar, or parquet, which is none."""
    (folder / "images").mkdir()
    name = rng.choice([*_CAPTIONS, "a.tar", "a.parquet"])
    content: Any = _CAPTIONS.get(name, b"PAR1" + rng.randbytes(40) + b"PAR1")
    if name == "a.tar":
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for member, data in (
                ("000.png", encoded_images()[0][1]),
                ("000.txt", CAPTION.encode()),
                ("1.json", b"{}"),
            ):
                info = tarfile.TarInfo(rng.choice((member, "../" + member, "/" + member)))
                info.size, info.type = (
                    len(data),
                    rng.choice((tarfile.REGTYPE,) * 5 + (tarfile.SYMTYPE, tarfile.CHRTYPE)),
                )
                archive.addfile(info, io.BytesIO(data))
        content = stream.getvalue()
    for sample in read_set(find_set(str(write(rng, folder / name, content)))).samples:
        assert sample.caption or sample.prompt


def read_words(rng: Rng, folder: Path) -> None:
    """Prompts, lists of names, captions with phrases, and options of a call, on the tiny model."""
    words = ("cat", "a red dog", "the", ".", ",", ";", "7.5 cm", "dog", *TEXTS)
    text = rng.choice((" ", ". ", ", ", "\n")).join(rng.choices(words, k=rng.randint(1, 6)))
    prompt: Any = rng.choice((text, [text], text.split(), mutate_tree(rng, ["cat", "dog"]), {text: 1, "b": 2}, ODD))
    if rng.random() < 0.3:
        prompt = Prompt.from_caption(
            text, rng.choice((None, text[:9], [text[:4]], [[0, 3]], [[rng.randint(-2, 99), 9]]))
        )
    names = rng.sample(("threshold", "nms", "max_detections", "batch_size"), rng.random() < 0.2)
    options: dict[str, Any] = {key: rng.choice(ODD) for key in names}
    found = tiny()(Image.new("RGB", (32, 32)), prompt, **options)
    assert found.to_coco(1, range(len(found.prompt.phrases))) is not None and found.to_yolo() is not None


# ---- configs, models, tasks


@functools.cache
def tiny() -> glip.Detector:
    """A detector of 32 pixels and few weights, which are random, that knows the first words of BERT."""
    parts = (
        "image={min_size: 32, max_size: 64}",
        "vision={widths: [8, 16, 32, 64], depths: [1, 1, 1, 1], heads: [1, 1, 2, 2]}",
        "language={hidden: 32, layers: 1, heads: 2, intermediate: 32, vocabulary: 3000}",
        "head={channels: 16, blocks: 1, fusion_width: 16, fusion_heads: 2, groups: 4}",
    )
    config = load_config("tiny", [f"model.{part}" for part in parts]).model
    torch.manual_seed(0)
    words = (VOCABULARY / "vocab.txt").read_bytes().splitlines(keepends=True)[:3000]
    (Path(_words().name) / "vocab.txt").write_bytes(b"".join(words))
    return glip.Detector(build(config), config, Tokenizer(_words().name), "cpu")


@functools.cache
def _words() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="glip-fuzz-")


def read_configs(rng: Rng, folder: Path) -> None:
    """A YAML file and ``key=value`` texts; tables of sets, of tasks and of prompts."""
    tree = mutate_tree(rng, to_dict(load_config("tiny")), times=2)
    words = (
        "2020-13-01",
        "!!timestamp x",
        "!!int ''",
        "&a [*a]",
        "!!python/object/apply:os.system [ls]",
        "*b",
        "{a: {a: ",
    )
    bomb = "a: &a [1,2]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
    )
    try:
        text = to_yaml(tree)
    except Exception:  # halves of characters cannot be written
        text = rng.choice(TEXTS)
    file = write(rng, folder / "config.yaml", rng.choice((text, text, text, bomb, "[" * 1200, "extends: config.yaml")))
    keys = ("train.lr", "train.steps", "model.vision.widths", "data.train", "model.head.groups", "a..b", "=", "train")
    overrides = [f"{rng.choice(keys)}={rng.choice((*words, *map(str, ODD)))}" for _ in range(rng.randrange(3))]
    way = rng.randrange(5)
    if way < 2:
        load_config(file if way else "tiny", overrides)
    elif way == 2:
        sets = {"a": {"format": "coco", "annotations": "a.json", "images": ["b"]}}
        write(rng, folder / "datasets.yaml", sets)
        known_sets(folder)
    elif way == 3:
        parse(
            dict[str, TableTask], read_yaml(write(rng, folder / "t.yaml", {"a": {"train": "x", "test": "y"}})), at="t"
        )
    else:
        read_prompts(
            read_yaml(write(rng, folder / "p.yaml", {"cat": {"prefix": "a ", "name": "cat", "suffix": "."}})), ["cat"]
        )


class Evil:
    """Code that runs where a pickle of it is read: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@functools.cache
def _model_files() -> tuple[dict[str, Any], dict[str, torch.Tensor], bytes]:
    detector = tiny()
    words = (detector.processor.tokenizer.folder / "vocab.txt").read_bytes()
    return to_dict(detector.config), {key: one.detach() for key, one in detector.model.state_dict().items()}, words


def read_models(rng: Rng, folder: Path) -> None:
    """A model folder or a ``.pth`` whose config, weights or vocabulary are broken, hostile or of another model."""
    config, state, words = _model_files()
    broken, names, way = dict(state), list(state), rng.randrange(8)
    if rng.random() < 0.4:
        first, second = rng.sample(names, 2)
        broken[first], broken[second] = broken[second], broken[first]
    if rng.random() < 0.2:
        broken[rng.choice(names)] = rng.choice((torch.zeros(0), torch.zeros(3, 3), torch.zeros(2, dtype=torch.int8)))
    if way < 2:
        content: Any = rng.choice((broken, {"model": broken}, {"model": [Evil(folder / RAN)]}, Evil(folder / RAN)))
        stream = io.BytesIO()
        torch.save(content, stream)
        data = stream.getvalue() if rng.random() < 0.8 else pickle.dumps(content if way else Evil(folder / RAN))
        path = folder / "model.pth"
        path.write_bytes(mutate_bytes(rng, data) if rng.random() < 0.5 else data)
    else:
        path = folder / "model"
        write(rng, path / "config.json", config) if way < 5 else write(Rng(1), path / "config.json", json.dumps(config))
        data = save(broken)
        head = struct.pack("<Q", rng.choice((10**8, 2**62))) + data[8:]
        (path / "model.safetensors").write_bytes(head if way == 5 else mutate_bytes(rng, data) if way == 6 else data)
        if way == 7:
            words = rng.choice(
                (mutate_bytes(rng, words), words[:999], b"\xff" + words, words.replace(b"[UNK]", b"x"), b"")
            )
        if rng.random() < 0.95:
            (path / "vocab.txt").write_bytes(words)
    glip.Detector.from_pretrained(path, device="cpu")(Image.new("RGB", (32, 32)), "a cat. a dog")
    assert not (folder / RAN).exists(), "code in a pickle has run"


@functools.cache
def _task() -> Adaptation:
    detector, prompt = tiny(), Prompt.from_names(["cat", "dog"])
    hidden = detector.encode_text(prompt).hidden[0].detach()
    return Adaptation(
        "prompt", "tiny", detector.fingerprint, ("cat", "dog"), prompt, torch.zeros_like(hidden), thresholds=(0.1, 0.2)
    )


def read_tasks(rng: Rng, folder: Path) -> None:
    """A task file with broken bytes or metadata, used by its model."""
    path = folder / "task.safetensors"
    save_adaptation(path, _task())
    data = path.read_bytes()
    if rng.random() < 0.4:
        data = mutate_bytes(rng, data)
    else:
        size = struct.unpack("<Q", data[:8])[0]
        head = json.loads(data[8 : 8 + size])
        head["__metadata__"]["task"] = json.dumps(mutate_tree(rng, json.loads(head["__metadata__"]["task"]), times=2))
        text = json.dumps(mutate_tree(rng, head, times=1) if rng.random() < 0.2 else head).encode()
        data = struct.pack("<Q", len(text)) + text + data[8 + size :]
    path.write_bytes(data)
    tiny().adapted(load_adaptation(path))(Image.new("RGB", (32, 32)))


# ---- files of runs


@functools.cache
def _stepper() -> Stepper:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return Stepper(model, model, optimizer, StepConfig(), Group())  # type: ignore[arg-type]


def read_states(rng: Rng, folder: Path) -> None:
    """A training state with other shapes, kinds or bytes, and then a step with it."""
    stepper, path = copy.deepcopy(_stepper()), folder / LAST
    save_state([path], stepper, stepper.model.state_dict(), Progress(step=1), {"config": 1})
    if rng.random() < 0.7:
        tree = torch.load(path, weights_only=True)
        own: Any = tree
        while isinstance(own, dict | list) and own:
            key = rng.choice(list(own) if isinstance(own, dict) else range(len(own)))
            if rng.random() < 0.3 or not isinstance(own[key], dict | list) or not own[key]:
                odd: tuple[Any, ...] = (
                    torch.zeros(5),
                    torch.zeros(2, 3),
                    torch.zeros(()),
                    torch.zeros(2, dtype=torch.int64),
                    *NUMBERS,
                    None,
                    {},
                    [],
                    "x",
                )
                own[key] = rng.choice(odd)
                break
            own = own[key]
        torch.save(tree, path)
    path.write_bytes(mutate_bytes(rng, path.read_bytes()) if rng.random() < 0.5 else path.read_bytes())
    state = read_state(path)
    restore(path, state, stepper, stepper.model.state_dict())
    stepper.model(torch.randn(4, 3)).sum().backward()
    stepper.optimizer.step()


def read_parts(rng: Rng, folder: Path) -> None:
    """A part of an evaluation with other bytes: it is refused, or gives what was written."""
    samples = [
        Sample(folder / f"{number}.png", torch.zeros(0, 4), (), ("cat", "dog"), image_id=number) for number in range(3)
    ]
    boxes, prompt = torch.tensor([[1.5, 2, 30, 40], [0, 0, 5, 5]]), Prompt.from_names(["cat", "dog"])
    found = Detections(boxes, torch.tensor([0.7, 0.5]), torch.tensor([1, 0]), prompt, (50, 60))
    store = PredictionStore(folder, {"model": "tiny"})
    for prediction in (Prediction(0, found), Prediction(1, None, "unreadable image", "x"), Prediction(2, found)):
        store.add(prediction)
    store.flush()
    [path] = folder.glob("part-*.npz")
    path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    again = [one.found for _, one in PredictionStore(folder, {"model": "tiny"}).read(samples, QueryOptions())]
    for one in (again[0], again[2]):
        assert one is not None and torch.equal(one.boxes, boxes) and one.scores.tolist() == found.scores.tolist()
    assert again[1] is None


def read_labels(rng: Rng, folder: Path) -> None:
    """A folder of pseudo-labels whose shard, report or manifest is edited or broken."""
    rows = [_LABEL | {"image": f"{number}.png"} for number in range(3)]
    report = {
        "shard": "a",
        "pairs": 3,
        **count_labels(rows),
        "skipped": {},
        "places": {},
        "skipped by the reader": {},
        "wall": 1.0,
    }
    report["seconds"] = {"read": 0.1}
    form = rng.choice(("jsonl", "jsonl", "parquet"))
    write_shard(folder, "a", form, rows, report)
    begin_run(folder, {"images": [str(folder)], "teacher": "x"})
    which = rng.randrange(4)
    if which < 2:
        write(rng, folder / f"a.{form}", (folder / "a.parquet").read_bytes() if form == "parquet" else rows)
    elif which == 2:
        write(rng, folder / "a.report.json", report)
    else:
        write(rng, folder / "manifest.json", {"images": [str(folder)], "teacher": "x"})
    write_report(folder, 1, {})
    truth = Sample(
        Path("0.png"), torch.tensor([[1.0, 2, 3, 4]]), ((0,),), prompt=Prompt.from_caption(CAPTION, [[[0, 5]]])
    )
    score_labels(read_rows(folder), [truth], ["dog"])
    select(folder, folder / "selected.jsonl", SelectConfig(nms=0.5, nms_across=0.6))


def read_result_files(rng: Rng, folder: Path) -> None:
    """Results in COCO's format, and predictions for phrases."""
    rows = [{"image_id": 7, "category_id": 3, "bbox": [1.0, 2.0, 3.5, 4.0], "score": 0.5}] * 3
    path = write(rng, folder / "results.json", rows)
    assert len(read_results(path, (7, "b.png"), (3, "cat"), SkipCounter())) <= 9
    truth = Sample(
        Path("1.png"),
        torch.tensor([[1.0, 2, 3, 4]]),
        ((0,),),
        prompt=Prompt.from_caption(CAPTION, [[[0, 5]]]),
        image_id="1:0",
    )
    path = write(rng, folder / "phrases.json", [{"image_id": 1, "sentence_id": 0, "boxes": [[[1, 2, 3, 4]]]}])
    read_predictions(path, [truth], SkipCounter())


def read_ledgers(rng: Rng, folder: Path) -> None:
    """Ledgers of tunings and of claims."""
    import claims

    row = {"model": "tiny", "weights": "w", "task": "a", "mode": "prompt", "shots": "1", "seed": 0, "settings": {}}
    path = write(rng, folder / "ledger.jsonl", [row | {"figures": {"test AP50": 0.5, "test before AP50": 0.1}}] * 2)
    table_lines(read_ledger(path) or read_ledger(folder / "none"))
    study = claims.STUDIES["arms"]
    own = {"arm": "a", "size": 0, "seed": 0, "images": 9, "figures": dict.fromkeys(study.figures, 0.5), "minutes": 1.0}
    write(rng, folder / "claims.jsonl", [own] * 2)
    with mock.patch.object(claims, "DOCS", folder):
        for runs in study.groups().values():
            claims.cells(study, runs)


def read_manifests(rng: Rng, folder: Path) -> None:
    """The manifest of a run's folder, to go on in it."""
    write(rng, folder / "manifest.json", {"model": "a", "set": {"b": [1, 2]}})
    read_manifest(folder)
    begin_run(folder, {"model": "a", "set": {"b": [1, 2]}})


KINDS: dict[str, Read] = {
    "images": read_an_image,
    "annotations": read_annotations,
    "captions": read_captions,
    "prompts": read_words,
    "configs": read_configs,
    "models": read_models,
    "tasks": read_tasks,
    "states": read_states,
    "parts": read_parts,
    "labels": read_labels,
    "results": read_result_files,
    "ledgers": read_ledgers,
    "manifests": read_manifests,
}
