"""Broken inputs of every kind that glip reads, and the call that reads each: shared by tools/fuzz.py and tests.

A kind is a function of a random generator and an empty folder: it writes an input there and reads it. The same seed
gives the same input. What is wrong with an answer (other figures, code that ran) is an AssertionError.
"""

import copy
import functools
import io
import json
import random
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import VOCABULARY
from PIL import Image

import glip
from glip.data.catalog import find_set, read_set
from glip.data.image import image_size, load_image, open_any
from glip.model.glip import build
from glip.structures import Prompt
from glip.text.tokens import Tokenizer
from glip.train.start import load_config

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
LABEL: dict[str, Any] = {"image": "a.png", "id": 1, "width": 9, "height": 8, "caption": CAPTION}
LABEL |= {
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
    "labels": {"a.jsonl": [LABEL, {"names": ["cat", "dog"], "image": "a.png", "boxes": LABEL["boxes"]}]},
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


KINDS: dict[str, Read] = {
    "images": read_an_image,
    "annotations": read_annotations,
    "captions": read_captions,
    "prompts": read_words,
}
