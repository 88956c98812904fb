"""Small stand-ins for COCO, LVIS minival, Flickr30K Entities and ODinW: drawn images in the layout of the real sets.

    python tools/stand_ins.py DATA [--images 40] [--weights FOLDER]

What reads the real sets can be tried on them, such as tools/reproduce.py. --weights also writes a checkpoint of
GLIP-T's form under the name of the release's, with weights by rule (tests/golden), which have learned nothing.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = map(str, (ROOT, ROOT / "tools", ROOT / "tests"))

import torch  # noqa: E402
from drawn_world.scenes import World, draw_both  # noqa: E402
from golden_cases import config_of, synthetic_state  # noqa: E402

from glip.data.sets import Row  # noqa: E402
from glip.evaluate.odinw import tasks  # noqa: E402
from glip.model.weights import RELEASED  # noqa: E402
from glip.structures import Sample  # noqa: E402

NAMES, MORE_NAMES = 80, 120  # of COCO's and of LVIS's stand-in, whose prompts have 40 names each
_FREQUENCIES = "rcf"


def write_sets(root: Path, images: int = 40, side: int = 128) -> None:
    """All four sets below ``root``; ODinW's 13 tasks have a tenth of the images each, at least one."""
    drawn = [draw_both(seed, World("seen", sides=(side - 32, side), plain=True, most=5)) for seed in range(images)]
    named, said = [one for one, _ in drawn], [two for _, two in drawn]
    _write_coco(root / "coco", named)
    _write_flickr(root / "flickr30k", said)
    few = max(images // 10, 1)
    for number, task in enumerate(tasks(13)):
        files, own = task.files(), [named[(number * few + place) % images] for place in range(few)]
        (root / files.images[0]).mkdir(parents=True, exist_ok=True)
        tree = _detection(own, task.names, "{:06}.jpg")
        _save(own, root / files.images[0], "{:06}.jpg")
        (root / files.annotations).write_text(json.dumps(tree), encoding="utf-8")


def _write_coco(folder: Path, samples: Sequence[Sample]) -> None:
    """COCO val2017 and LVIS minival, which have the same images."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "val2017").mkdir(exist_ok=True)
    _save(samples, folder / "val2017", "{:012}.jpg")
    for count, file, name in (
        (NAMES, "instances_val2017.json", "{:012}.jpg"),
        (MORE_NAMES, "lvis_v1_minival_inserted_image_name.json", "val2017/{:012}.jpg"),
    ):
        seen = sorted({sample.vocabulary[own[0]] for sample in samples for own in sample.box_phrases})
        names = [*seen, *(f"thing number {number}" for number in range(count))][:count]
        tree = _detection(samples, names, name)
        if "lvis" in file:
            for place, category in enumerate(tree["categories"]):
                category["frequency"] = _FREQUENCIES[place % 3]
            for place, image in enumerate(tree["images"]):
                absent = [1 + (place * 7 + step) % count for step in range(5)]
                own = {row["category_id"] for row in tree["annotations"] if row["image_id"] == image["id"]}
                image |= {"neg_category_ids": sorted({*absent} - own), "not_exhaustive_category_ids": []}
        (folder / "annotations" / file).write_text(json.dumps(tree), encoding="utf-8")


def _detection(samples: Sequence[Sample], names: Sequence[str], file: str) -> dict[str, list[Row]]:
    """COCO's json; a thing whose name is not in the list has one of it all the same."""
    images, rows = list[Row](), list[Row]()
    for number, sample in enumerate(samples):
        width, height = sample.size or (0, 0)
        images.append({"id": number + 1, "file_name": file.format(number + 1), "width": width, "height": height})
        for box, own in zip(sample.boxes.tolist(), sample.box_phrases, strict=True):
            name, (x, y, right, bottom) = sample.vocabulary[own[0]], box
            place = names.index(name) if name in names else own[0] % len(names)
            shape = {"bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y), "iscrowd": 0}
            rows.append({"id": len(rows) + 1, "image_id": number + 1, "category_id": place + 1, **shape})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return {"images": images, "annotations": rows, "categories": categories}


def _write_flickr(folder: Path, samples: Sequence[Sample]) -> None:
    """Flickr30K Entities as released: sentences with marked phrases, boxes in XML, the list of the split."""
    entities = folder / "flickr30k_entities"
    for part in (entities / "Annotations", entities / "Sentences", folder / "flickr30k_images"):
        part.mkdir(parents=True, exist_ok=True)
    _save(samples, folder / "flickr30k_images", "{}.jpg")
    for number, sample in enumerate(samples, start=1):
        assert sample.prompt and sample.size
        text = sample.prompt.caption
        for chain, phrase in reversed(list(enumerate(sample.prompt.phrases, start=1))):
            start, end = phrase.spans[0]
            text = f"{text[:start]}[/EN#{chain}/other {text[start:end]}]{text[end:]}"
        text = re.sub(r"(?<=[\w\]])([.,])", r" \1", text)
        (entities / "Sentences" / f"{number}.txt").write_text(f"{text}\n", encoding="utf-8")
        width, height = sample.size
        parts = [f"<filename>{number}.jpg</filename><size><width>{width}</width><height>{height}</height></size>"]
        for box, own in zip(sample.boxes.int().tolist(), sample.box_phrases, strict=True):
            corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            edges = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
            chains = "".join(f"<name>{escape(str(phrase + 1))}</name>" for phrase in own)
            parts.append(f"<object>{chains}<bndbox>{edges}</bndbox></object>")
        page = f"<annotation>{''.join(parts)}</annotation>"
        (entities / "Annotations" / f"{number}.xml").write_text(page, encoding="utf-8")
    (entities / "test.txt").write_text("".join(f"{place + 1}\n" for place in range(len(samples))), encoding="utf-8")


def _save(samples: Sequence[Sample], folder: Path, name: str) -> None:
    for number, sample in enumerate(samples, start=1):
        sample.image.convert("RGB").save(folder / name.format(number), quality=95)  # type: ignore[union-attr]


def main() -> None:
    """Write the sets, and the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--weights", metavar="FOLDER")
    args = parser.parse_args()
    write_sets(Path(args.data), args.images)
    if args.weights:
        Path(args.weights).mkdir(parents=True, exist_ok=True)
        state, _ = synthetic_state("glip_t_c", config_of("glip_t_c"))
        torch.save({"model": state}, Path(args.weights, RELEASED["glip-t-c"]))


if __name__ == "__main__":
    main()
