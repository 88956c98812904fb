"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO in the form of MDETR's fine-tuning files.

Each entry of ``images`` is an expression (``caption``) and names its data set (``dataset_name``). The whole expression
is the phrase that is looked for: ``tokens_positive`` marks only its root, and neither evaluator reads it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from glip.data import records
from glip.data.records import Named, as_list, as_map, read_id
from glip.data.sets import Folders, Row, SampleSet, SkipCounter, require
from glip.structures import Prompt, Sample

REFCOCO, GREFCOCO = ("refcoco", "refcoco+", "refcocog"), ("grefcoco",)
_NO_TARGET = -1  # the category of the annotation of an expression that describes nothing in its image


def name_of_expressions(tree: Any) -> Any:
    """The data set of the first expression in the content of a json."""
    return as_map(next(iter(as_list(as_map(tree).get("images"))), None)).get("dataset_name")


def _read_expressions(
    names: Sequence[str], annotations: str | Path, images: Sequence[str | Path], tree: Any = None
) -> SampleSet:
    """Read the data sets of these names; arguments as for ``read_coco``.

    An expression of RefCOCO, RefCOCO+ or RefCOCOg has one box; one of gRefCOCO any number, none if an annotation of it
    has the category -1.
    """
    path, folders, skipped = Path(annotations), Folders(images), SkipCounter()
    tree = records.read_lists(path, ("images", "annotations"), "referring expressions", tree)
    stated, wanted = name_of_expressions(tree), " or ".join(names)
    wrong = f"not expressions of {wanted} (the first one is of {str(stated)[:40]!r})"
    require(stated in names, f"{path}: {wrong}: take the set's file finetune_SET_SPLIT.json")

    def read(entry: tuple[Row, list[Row]]) -> Sample:
        record, rows = entry
        caption, name = records.read_caption(record.get("caption")), record.get("dataset_name")
        require(name in names, f"expression of another data set ({str(name)[:40]})")
        require(rows, "expression without an annotation")
        empty = names == GREFCOCO and any(read_id(row.get("category_id")) == _NO_TARGET for row in rows)
        require(names == GREFCOCO or len(rows) == 1, "expression with several annotations (as those of gRefCOCO)")
        # a box without area counts, as in the evaluators
        named = [Named(records.read_box(row.get("bbox"), flat=True), (0,)) for row in rows if not empty]
        inverted = any(box[2] < box[0] or box[3] < box[1] for box, *_ in named)
        require(not inverted, "malformed box")
        image, size = folders.locate(record.get("file_name")), records.read_size(record)
        sample = records.detection_sample(image, named, (), image_id=record["id"], size=size)
        return replace(sample, prompt=Prompt.from_caption(caption, [[(0, len(caption))]]), kinds=((str(name),),))

    return records.pack_sample_set(path, skipped.each(records.by_image(tree, skipped), read, "expression"), skipped)


read_refcoco = partial(_read_expressions, REFCOCO)
read_grefcoco = partial(_read_expressions, GREFCOCO)
