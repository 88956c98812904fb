"""A folder of images and class names become a dataset: list the images, label them by shards, write and draw."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from glip.config import LabelConfig, SetConfig
from glip.console import counted
from glip.data.sets import Row, SampleSet
from glip.data.writers import write_labels
from glip.detector import Detector
from glip.errors import ConfigError
from glip.files import MANIFEST, exclusive, read_jsonl, write_json
from glip.provenance import RECORD, record
from glip.pseudo.dataset import FILES, Form, write_dataset
from glip.pseudo.ontology import Given, Ontology, read_ontology
from glip.pseudo.run import run_labelling
from glip.pseudo.store import REPORT
from glip.recipes.detect_config import DetectConfig
from glip.recipes.detect_files import find_images
from glip.schema import parse
from glip.structures import Sample
from glip.text.tokens import warn_of_unknown_words

# One's own images are all labelled; the filters of LabelConfig are for the web's.
OWN = LabelConfig(min_side=0, max_aspect=0.0, max_pixels=0, min_bytes=0, max_bytes=0, same_image=-1)
_LISTING = "images.jsonl"  # the images as they were when the run began


def label_folder(
    model: str | Path,
    folder: str | Path,
    names: Given | Ontology,
    out: str | Path,
    *,
    threshold: float | None = None,
    formats: Sequence[str] = ("labels",),
    config: LabelConfig = OWN,
    device: str | None = None,
) -> Row:
    """Label the images of a folder and its sub-folders by class names; the same call resumes.

    Boxes that score at least ``config.threshold`` are stored, so that other thresholds need no second detection.

    Args:
        model: the teacher: a name or a folder.
        folder: the images.
        names: class names, or what is asked for each (``pseudo/ontology.py``): a file or its content.
        out: output folder.
        threshold: lowest score for classes without their own (default: those stored with the model, else its usual).
        formats: what is written when all is labelled: labels, coco, yolo, label-studio; files of an earlier call are
            written again with these thresholds.
        config: the options.
        device: where the teacher runs; None: CUDA where available.

    Returns:
        The report; ``classes`` has a row for each class once all images are labelled.

    Raises:
        GlipError: no image, a bad ontology, or as for ``run_labelling``.
        OSError: a file cannot be written.
    """
    ontology = names if isinstance(names, Ontology) else read_ontology(names)
    parse(tuple[Form, ...], list(formats), at="formats")
    folder, out = Path(folder).absolute(), Path(out).absolute()
    teacher = Detector.from_pretrained(model, device="cpu")
    warn_of_unknown_words(teacher.processor.tokenizer.unknown_words, [ontology.prompt])
    teacher.encode_text(ontology.prompt)  # refused before hours of labelling
    usual, stored = teacher.config.inference.threshold, teacher.config.thresholds
    limits = ontology.thresholds(usual, stored) if threshold is None else ontology.thresholds(threshold, {})
    del teacher
    entry = _list_images(folder, ontology, out)
    asked = {name: replace(one, threshold=limits[name]) for name, one in ontology.names.items()}
    ontology = replace(ontology, names=asked)
    config = replace(config, threshold=min(config.threshold, *limits.values()))
    report = run_labelling(entry, model, config, out, ontology=ontology, device=device)
    if report["shards"] == report["shards in all"]:
        with exclusive(out, wait=True):  # of torchrun's processes
            there = [form for form, name in FILES.items() if (out / name).exists()]  # of other thresholds: renewed too
            report |= write_dataset(out, limits, dict.fromkeys([*formats, *there]))
            write_json(out / REPORT, report)
            record(out / RECORD, files=[file for form in FILES for file in _files(out / FILES[form])])
    return report


def _files(path: Path) -> list[Path]:
    """A file, or the files in a folder that are no links to images."""
    return [file for file in (path, *path.rglob("*")) if file.is_file() and not file.is_symlink()]


def _list_images(folder: Path, ontology: Ontology, out: Path) -> SetConfig:
    """The images as a dataset without boxes: a list that stays the same until all are labelled."""
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is no folder: class names label the images of a folder")
    images = [Path(one) for one in find_images([str(folder)], DetectConfig(recursive=True, out=str(out)))]
    named = {path.relative_to(folder).as_posix(): path for path in images}
    if (out / MANIFEST).is_file() and (out / _LISTING).is_file():
        added = len(named.keys() - {row["image"] for row in read_jsonl(out / _LISTING)})
        if added:
            many = counted(added, "image")
            print(f"notice: {many} added since this run began: label new images into another folder", file=sys.stderr)
    else:
        names, none = tuple(ontology.names), torch.zeros(0, 4)
        samples = [Sample(path, none, (), names, image_id=name) for name, path in named.items()]
        write_labels(SampleSet(samples, names), out / _LISTING, [folder])
    return SetConfig(format="labels", annotations=str(out / _LISTING), images=(str(folder),))
