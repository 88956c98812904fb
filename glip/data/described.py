"""Benchmarks whose images are asked for words of their own: SA-Co's phrases, D3's and OmniLabel's descriptions.

Files are parsed like COCO's, for samples and for scoring; ``SampleSet.asked`` has the category ids of each sample.
"""

import pickle
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from glip.data import records
from glip.data.coco import ask_for, coco_set, id_order, parse_coco, read_categories
from glip.data.records import as_list, as_map, is_text, is_visible, read_id
from glip.data.sets import CocoFile, Folders, Id, SampleSet, SkipCounter, check_exists, require
from glip.files import read_json
from glip.structures import Prompt, Sample

D3_FILE = re.compile(r"d3_(full|pres|abs)_annotations\.json")
_ANNOTATOR = re.compile(r"_merged_[abc]_")  # each subset of SA-Co's Gold has three files
_FARTHEST = 2.0  # what is drawn in fractions of an image's sides does not reach beyond
_OTHER = "takes the files of the benchmark as its authors distribute them (docs/benchmarks.md)"


def read_saco(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read SA-Co: a sample for each pair of image and phrase of which every annotator marked all objects.

    The json is COCO's. Each entry of ``images`` is a pair with its phrase in ``text_input``; boxes are fractions of the
    image's width and height. Of Gold, whose files ``..._merged_a_...``, ``_b_`` and ``_c_`` lie side by side, each one
    stands for the three; samples have the boxes of a. Pairs of one image follow one another. Arguments as for
    ``read_coco``.

    Raises:
        DataError: not SA-Co's json, or files of annotators that do not match.
    """
    path, folders, skipped, files = Path(annotations), Folders(images), SkipCounter(), list[CocoFile]()
    every = [path.with_name(_ANNOTATOR.sub(f"_merged_{one}_", path.name)) for one in "abc"]
    for one in every if _ANNOTATOR.search(path.name) else [path]:
        check_exists(one, "The files of SA-Co's annotators a, b and c belong side by side: {!r} is not there")
        files.append(parse_coco(one, tree if one == path else None))
        _check_pairs(files[-1], files[0])
    rows, first = defaultdict[Id, list[int]](list), files[0]
    numbers = [*first.images, ""]
    for index, place in enumerate(first.image.tolist()):
        rows[numbers[place]].append(index)

    def read(number: Id) -> Sample:
        record, own, size = first.images[number], rows[number], records.read_size(first.images[number])
        require(size, "image without a width and height")
        corners = torch.from_numpy(first.boxes[own]).float()
        corners[:, 2:] += corners[:, :2]
        kept = (corners[:, 2:] > corners[:, :2]).all(1)
        return Sample(
            image=folders.locate(record.get("file_name")),
            boxes=(corners * torch.tensor((size or (0, 0)) * 2))[kept],
            box_phrases=((0,),) * int(kept.sum()),
            prompt=Prompt.from_names([record["text_input"].strip()]),
            image_id=number,
            size=size,
            crowd=tuple(torch.from_numpy(first.crowd[own])[kept].nonzero().flatten().tolist()),
        )

    skipped.merge(first.skipped)
    counted = [number for number in first.images if all(is_exhaustive(file, number) for file in files)]
    counted.sort(key=lambda number: str(first.images[number].get("file_name")))
    samples = skipped.each(zip(counted, counted, strict=True), read, "pair")
    ids = first.category_ids[:1]
    found = records.pack_sample_set(path, samples, skipped, vocabulary=(), ids=tuple(ids), annotations=first)
    return replace(found, companions=tuple(files[1:]))


def is_exhaustive(file: CocoFile, number: Id) -> bool:
    """Whether all objects of the phrase are annotated, by pair id; other pairs of SA-Co are not scored."""
    return bool(file.images[number]["is_instance_exhaustive"])


def _check_pairs(file: CocoFile, first: CocoFile) -> None:
    """Refuse what is not SA-Co's json, and an annotator's file of other pairs than the first has."""
    for number, record in file.images.items():
        text = record.get("text_input")
        spoken = is_text(text) and is_visible(text) and "is_instance_exhaustive" in record
        require(spoken, f"{file.path}: image {number!r} has no text_input or no is_instance_exhaustive: SA-Co {_OTHER}")
        other = first.images.get(number, {})
        same = all(record.get(key) == other.get(key) for key in ("text_input", "file_name"))
        require(
            same, f"{file.path} and {first.path.name} do not match: image {number!r} is another pair, or in one only"
        )
    lacking = len(first.images) - len(file.images)
    require(not lacking, f"{file.path} and {first.path.name} do not match: {lacking} images are in the latter only")
    inside = not len(file.boxes) or not (file.boxes > _FARTHEST).any()
    require(inside, f"{file.path}: boxes in pixels, not in fractions of width and height: SA-Co {_OTHER}")


def read_d3(
    annotations: str | Path, images: Sequence[str | Path], names: str | Path = "", tree: Any = None
) -> SampleSet:
    """Read D3 (Described Object Detection): COCO json whose categories are descriptions.

    Beside ``d3_full_annotations.json``, those of its presence and absence descriptions are read for scoring. ``names``
    is ``d3_pkl/groups.pkl`` (or the same as json): each image is asked for the descriptions of its group; "" to ask
    every image for all descriptions (the inter-group setting). Other arguments as for ``read_coco``.

    Raises:
        DataError: no COCO json, or groups of other images or descriptions.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    file = parse_coco(path, tree)
    categories = read_categories(file.categories, path, skipped, twins=True, verbatim=True)
    found = coco_set(file, categories, folders, skipped)
    if D3_FILE.fullmatch(path.name) and "full" in path.name:
        others = [path.with_name(path.name.replace("full", part)) for part in ("pres", "abs")]
        for missing in (other for other in others if not other.is_file()):
            skipped.add("file that is not beside the full one: no figures of its descriptions", missing.name)
        found = replace(found, companions=tuple(parse_coco(other) for other in others if other.is_file()))
    if not str(names):
        skipped.add("no groups.pkl is given: every image is asked for all descriptions (inter-group)")
        return found
    asked = _read_groups(Path(names))
    known, numbers = set(found.ids), {number for own in asked.values() for number in own}
    if "full" in path.name:
        strange = [*(numbers - known), *(number for number in file.images if number not in asked)]
        require(not strange, f"{names} is not of {path.name}: id {next(iter(strange), '')!r} is in only one of the two")
    return ask_for(found, asked)


def _read_groups(path: Path) -> dict[Id, list[Id]]:
    """The descriptions of each image's group: a map or list of groups, each with ``img_id`` and ``inner_sent_id``."""
    check_exists(path)
    try:
        with path.open("rb") as file:
            tree = _PlainValues(file).load() if path.suffix == ".pkl" else read_json(path)
    except Exception as error:  # broken pickles raise anything
        tree = str(error)
    groups = [as_map(group) for group in (tree.values() if isinstance(tree, dict) else as_list(tree))]
    listed = [group.get(key) for group in groups for key in ("img_id", "inner_sent_id")]
    sound = groups and all(isinstance(own, list) and None not in map(read_id, own) for own in listed)
    wrong = tree if isinstance(tree, str) else "no img_id or inner_sent_id"
    require(sound, f"{path}: not the groups of D3 ({wrong}): D3 {_OTHER}")
    return {image: sorted(group["inner_sent_id"], key=id_order) for group in groups for image in group["img_id"]}


class _PlainValues(pickle.Unpickler):  # it loads numbers, texts, lists and maps, and runs nothing  # nosec B301
    """Unpickles plain values only: a file of strangers may name no class and no function."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and only numbers, texts, lists and maps are read")


def read_omnilabel(annotations: str | Path, images: Sequence[str | Path], tree: Any = None) -> SampleSet:
    """Read OmniLabel: each image is asked for its label space, the descriptions that list it in ``image_ids``.

    The json has images, ``descriptions`` (id, text, image_ids, anno_info) and annotations with ``description_ids``; an
    annotation counts once for each. Descriptions are in the order of the file. Arguments as for ``read_coco``.

    Raises:
        DataError: not OmniLabel's json.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    tree = records.read_lists(path, ("images", "descriptions", "annotations"), "OmniLabel", tree)
    listed = [as_map(record) for record in tree["descriptions"]]
    tree["categories"] = [{**record, "name": record.get("text")} for record in listed]
    tree["annotations"] = [
        {**row, "category_id": number}
        for row in map(as_map, tree["annotations"])
        for number in as_list(row.get("description_ids"))
    ]
    file, asked = parse_coco(path, tree), defaultdict[Id, dict[Id, None]](dict)
    for record in listed:
        number = read_id(record.get("id"))
        for image in map(read_id, as_list(record.get("image_ids"))):
            if number is not None and image is not None and image in file.images:
                asked[image][number] = None
            else:
                skipped.add("image of a label space that is unknown", f"description {number}")
    categories = read_categories(file.categories, path, skipped, twins=True, verbatim=True)
    return ask_for(coco_set(file, categories, folders, skipped), asked)
