"""Pascal VOC: an xml file for each image, with boxes in whole pixels that count from 1 and include the last one."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from glip.data import records
from glip.data.coco import categories_of
from glip.data.records import Named
from glip.data.sets import Folders, InvalidRecord, SampleSet, SkipCounter, require
from glip.structures import Sample

ANNOTATIONS = ("Annotations", "annotations")  # folders of annotations, beside that of the images
SPLITS = Path("ImageSets", "Main")  # where a text file lists the images of each split
_HEAD = 4096  # bytes of a file that tell its kind
_LARGEST = 10_000_000  # bytes of a file; usual are some thousands
_NUMBER = re.compile(r"[-+]?\d{1,9}(\.\d*)?")
SCENE = """<annotation><folder>JPEGImages</folder><filename>{}</filename>
<size><width>{}</width><height>{}</height><depth>3</depth></size>
{}</annotation>
"""
OBJECT = """<object><name>{}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>
"""


def voc_files(path: Path) -> list[Path]:
    """The xml files of a set: those in a folder, or in ``Annotations`` below it; [] where it is not Pascal VOC."""
    folders = [*(path / name for name in ANNOTATIONS), path]
    files = next(filter(None, (sorted(filter(Path.is_file, folder.glob("*.xml"))) for folder in folders)), [])
    return files if files and b"<annotation" in files[0].read_bytes()[:_HEAD] else []


def read_voc(path: Path, images: Sequence[str | Path], names: str | Path = "", split: str = "") -> SampleSet:
    """Read Pascal VOC, also as Roboflow exports it. Difficult objects are neither learned nor scored.

    Args:
        path: the folder of the xml files, or the one above ``Annotations``.
        images: more folders of images than those of the set.
        names: a file of class names, one per line; "" for ``classes.txt``, or all names in the files by alphabet.
        split: a list in ``ImageSets/Main``; "" for all files.

    Raises:
        DataError: no such split.
    """
    files, skipped = voc_files(path), SkipCounter()
    root = path.parent if path.name in ANNOTATIONS else path
    listed = Path(names) if str(names) else root / "classes.txt"
    is_listed = str(names) or listed.is_file()
    categories = categories_of(
        records.read_words(listed) if is_listed else sorted(set(chain(*map(_class_names, files))))
    )
    folders = Folders([place for place in (root / "JPEGImages", root / "images", root) if place.is_dir()] + [*images])
    if split and (root / SPLITS).is_dir():
        chosen = root / SPLITS / f"{split}.txt"
        known = ", ".join(sorted(file.stem for file in chosen.parent.glob("*.txt")))
        require(chosen.is_file(), f"{root}: no split {split!r} in {SPLITS}: it has {known}")
        stems = {words[0] for words in map(str.split, records.read_words(chosen)) if words}
        files = [file for file in files if file.stem in stems]

    def read(file: Path) -> Sample:
        tree = parse_xml(file)
        name = tree.findtext("filename", "").strip()
        image = folders.locate(name, f"{file.stem}{PurePosixPath(name).suffix or '.jpg'}")
        rows = enumerate(tree.findall("object"))
        boxes = list(skipped.each(rows, lambda thing: _read_object(thing, categories.label), "object"))
        own, size = name or file.stem, xml_size(tree)
        return records.detection_sample(image, boxes, categories.names, image_id=own, size=size)

    samples = skipped.each(((file.name, file) for file in files), read, "file")
    return records.pack_sample_set(path, samples, skipped, vocabulary=categories.names)


def _class_names(file: Path) -> list[str]:
    """The class names in a file; one that cannot be read is counted when it is read for boxes."""
    with suppress(InvalidRecord):
        return [name.text.strip() for name in parse_xml(file).findall("object/name") if name.text]
    return []


def _read_object(thing: Element, label: dict[int | str, int]) -> Named:
    """An object's box: x1 and y1 become edges, which are one less than the first pixel; a 0 was no VOC and stays."""
    name, corners = thing.findtext("name", "").strip(), thing.find("bndbox")
    require(name in label, "unknown category")
    require(corners is not None, records.NO_BOX)
    assert corners is not None
    x1, y1, x2, y2 = xml_corners(corners)
    box = [edge - 1 if edge >= 1 else edge for edge in (x1, y1)] + [x2, y2]
    difficult = thing.findtext("difficult", "").strip() == "1"
    return Named(records.read_box(box, corners=True), (label[name],), crowd=difficult)


# ---- xml, also of Flickr30K


class _PlainTree(ElementTree.TreeBuilder):
    """Builds the tree of a file without a DOCTYPE: only there can entities be declared that expand without end."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """Called by the parser before it reads what the DOCTYPE declares."""
        require(False, "annotations with a DOCTYPE")


def read_bytes(file: Path) -> bytes:
    """The content of a file of an image's annotations."""
    require(file.is_file(), f"no {file.suffix[1:]} file of the image")
    require(file.stat().st_size <= _LARGEST, f"file of more than {_LARGEST // 1_000_000} MB")
    return file.read_bytes()


def parse_xml(file: Path) -> Element:
    """The content of an xml file, without entities."""
    try:
        parser = ElementTree.XMLParser(target=_PlainTree())  # no DOCTYPE, so nothing expands  # nosec B314
        return ElementTree.fromstring(read_bytes(file), parser)  # nosec B314
    except (ElementTree.ParseError, LookupError, UnicodeError):  # broken xml, or an encoding that is none
        raise InvalidRecord("annotations that are not xml") from None


def xml_size(scene: Element) -> tuple[int, int] | None:
    """Width and height of an image, if its xml states them."""
    return records.read_size({edge: scene.findtext(f"size/{edge}", "").strip() for edge in ("width", "height")})


def xml_corners(corners: Element) -> list[float]:
    """The four numbers of a ``bndbox``, NaN where one is none."""
    texts = [corners.findtext(edge, "").strip() for edge in ("xmin", "ymin", "xmax", "ymax")]
    return [float(text) if _NUMBER.fullmatch(text) else math.nan for text in texts]
