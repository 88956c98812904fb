"""The arguments of every verb; imports nothing heavy, so that ``glip --help`` is quick.

Flags for a verb's own settings are made from its options dataclass in ``config.py``, which holds their types, defaults
and help texts. An experiment's config takes ``key.path=value`` instead.
"""

import argparse
import typing
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from pydantic.fields import FieldInfo

from glip.config import EvaluateConfig, Format, LabelConfig, Mode, SelectConfig, SelfTrainConfig, TuneConfig
from glip.errors import ConfigError
from glip.schema import parse

T = TypeVar("T")
WRITTEN = ("coco", "mdetr", "odvg", "labels", "label-studio")  # formats that glip data convert writes
_METAVARS = {int: "N", float: "X", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options may stand anywhere between the positional arguments."""

    _intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but a verb's positional arguments may go on after an option."""
        if self._subparsers is not None or self._intermixed:
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        return self.parse_known_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where help is, without the usage; exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The parser of the ``glip`` command."""
    parser = Parser(prog="glip", description="Open-vocabulary object detection: find anything you can describe.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (summary, add) in VERBS.items():
        own = verbs.add_parser(verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        add(own)
    _add_traceback(parser)
    return parser


def _detect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE... PROMPT",
        help="image files, folders or patterns such as 'photos/*.jpg', then what to find: 'a red bus. a cyclist' "
        "(no prompt with --caption or --task)",
    )
    parser.add_argument("--model", default="glip-nano", help="name, folder or .pth file (default: glip-nano)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--caption", metavar="SENTENCE", help="detect the things that a sentence mentions")
    instead.add_argument("--task", metavar="FILE", help="task.safetensors from glip tune: detect its classes")
    parser.add_argument("--threshold", type=float, help="lowest score shown, 0 to 1 (default: the task's or model's)")
    parser.add_argument("--out", default="out", metavar="DIR", help="folder for the drawn images (default: out)")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON line per image; '-' prints them instead")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images computed at once (default: 4)")
    _add_device(parser)


def _train(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--data", action="append", metavar="SET", help="dataset or annotation file; may be repeated")
    parser.add_argument("--validate", action="append", metavar="SET", help="dataset to validate on; may be repeated")
    _add_images(parser)
    _add_device(parser)


def _tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name, folder or .pth file")
    parser.add_argument("set", nargs="?", help="dataset with boxes: a name or an annotation file")
    parser.add_argument("--tasks", metavar="TABLE", help="YAML of tasks, odinw13 or odinw35, instead of a dataset")
    modes = typing.get_args(Mode)
    parser.add_argument("--mode", nargs="+", choices=modes, default=["prompt"], help="what is trained; several: each")
    parser.add_argument(
        "--shots", nargs="+", type=_shots, default=[None], metavar="N", help="images per class; all; several: each"
    )
    parser.add_argument(
        "--seed",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="random seed(s); each draws its own few-shot sample",
    )
    parser.add_argument("--image-list", metavar="FILE", help="tune on the images that an images.json lists")
    parser.add_argument("--validate", metavar="SET", help="dataset to validate on (default: images not tuned on)")
    parser.add_argument("--test", metavar="SET", help="dataset to measure on before and after")
    parser.add_argument("--prompts", metavar="FILE", help="YAML of the text written for each class name")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: runs/tune/...)")
    _add_images(parser)
    _add_root(parser)
    _add_device(parser)
    add_options(parser, TuneConfig, "tuning (docs/adaptation.md)", ("mode", "shots", "seed", "image_list"))


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="+",
        metavar="MODEL [SET ...]",
        help="a model, then datasets, annotation files, odinw13 or odinw35 (default: all validation and test sets that "
        "are present); with --predictions only a dataset",
    )
    parser.add_argument("--predictions", metavar="FILE", help="score a COCO results file, without a model")
    _add_device(parser)
    add_options(parser, EvaluateConfig, "evaluation")


def _label(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="teacher: name, folder or .pth file")
    _add_captions(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder")
    _add_images(parser)
    _add_root(parser)
    _add_device(parser)
    add_options(parser, LabelConfig, "labelling")


def _select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labels", help="folder that glip label has written")
    parser.add_argument("--out", metavar="FILE", help="label file to write (default: LABELS/selected.jsonl)")
    parser.add_argument(
        "--ground-truth", metavar="SET", help="dataset with true boxes for these captions: report precision and recall"
    )
    parser.add_argument(
        "--held-out-words",
        nargs="+",
        default=[],
        metavar="WORD",
        help="words absent from the teacher's training data; reported separately",
    )
    _add_images(parser)
    _add_root(parser)
    add_options(parser, SelectConfig, "filters")


def _self_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="how a student is trained, with its labelled datasets: YAML file or config name")
    _add_captions(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, such as train.steps=100")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="name, folder or .pth file")
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder")
    parser.add_argument(
        "--evaluate", action="append", default=[], metavar="SET", help="dataset to measure on; repeatable"
    )
    _add_images(parser)
    _add_root(parser)
    _add_device(parser)
    add_options(parser, SelfTrainConfig, "rounds")
    add_options(parser, LabelConfig, "labelling")
    add_options(parser, SelectConfig, "filters")


def _data(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    _add_root(verbs.add_parser("list", help="known datasets and whether their files are present"))
    check = verbs.add_parser("check", help="count what a dataset contains and report problems (exit code 1)")
    check.add_argument("--decode", action="store_true", help="decode every image, not only its header")
    show = verbs.add_parser("show", help="draw samples with boxes and words on one sheet")
    show.add_argument("--out", default="sheet.png", metavar="FILE", help="image to write (default: sheet.png)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the sample (default: 0)")
    convert = verbs.add_parser("convert", help="write a dataset in another format")
    convert.add_argument("--to", required=True, choices=WRITTEN, help="format to write")
    for name, own in (("check", check), ("show", show), ("convert", convert)):
        own.add_argument("name", metavar="SET", help="dataset of datasets.yaml (glip data list), file or folder")
        number = {"check": "use only the first N samples", "show": "number of samples (default: 16)"}
        text = number.get(name, "write only the first N samples")
        own.add_argument("--number", type=int, default=16 if name == "show" else 0, metavar="N", help=text)
        own.add_argument("--format", choices=typing.get_args(Format), help="annotation format (default: recognized)")
        _add_images(own)
        _add_root(own)
    convert.add_argument("out", metavar="OUT", help="file to write")


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=".pth file (2022 release or mmdetection), glip folder, or name such as glip-t")
    parser.add_argument("folder", help="output folder: model.safetensors, config.json, vocab.txt")
    parser.add_argument("--half", action="store_true", help="store float16: half the size, rounded weights")


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="YAML file or config name; without it: list the installed configs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as model.image.min_size=640")
    parser.add_argument("--explain", action="store_true", help="print each key with its meaning and allowed values")


VERBS = {
    "detect": ("detect objects described by text", _detect),
    "train": ("train a model", _train),
    "tune": ("adapt a model to a task: prompt tuning, linear probe, full fine-tuning, few-shot", _tune),
    "evaluate": ("evaluate a model with the official metrics of each dataset", _evaluate),
    "label": ("pseudo-label captioned images: ground each caption's noun phrases with a teacher model", _label),
    "select": ("filter pseudo-labels by score, overlap and size", _select),
    "self-train": ("label, select, train and evaluate in rounds; each student is the next teacher", _self_train),
    "data": ("list, check, show or convert datasets", _data),
    "convert": ("convert a checkpoint to glip's format", _convert),
    "config": ("list, print or explain configs", _config),
}


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file or config name such as finetune/own (glip config lists them)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, such as train.steps=100")


def _add_captions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "captions", help="captioned images: dataset, file (jsonl, json, csv, tsv, tar) or folder of files"
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", action="append", default=[], metavar="DIR", help="folder of the images; may be repeated"
    )


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", help="data folder (default: environment variable GLIP_DATA, or here)")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if available)")


def _add_traceback(parser: argparse.ArgumentParser) -> None:
    """Every verb takes --traceback."""
    parser.add_argument("--traceback", action="store_true", help="show the traceback of every error")
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        for own in typing.cast(dict[str, argparse.ArgumentParser], action.choices).values():
            _add_traceback(own)


def _shots(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, 1 or more, or all")
    return int(text)


def add_options(parser: argparse.ArgumentParser, kind: type, title: str = "", leave_out: Sequence[str] = ()) -> None:
    """Add a flag for each field of an options dataclass: ``min_side`` becomes ``--min-side N``.

    A field that is true by default also gets ``--no-NAME``. ``read_options`` reads the flags back.

    Args:
        parser: a verb's parser.
        kind: a dataclass of ``config.py``.
        title: heading of the group of flags.
        leave_out: fields without a flag.
    """
    group = parser.add_argument_group(title or str(kind.__doc__).splitlines()[0].rstrip(".").lower())
    for name, field in _fields(kind).items():
        if name not in leave_out:
            _add_option(group, name, field)


def read_options(kind: type[T], args: argparse.Namespace, **more: Any) -> T:
    """The options dataclass that the flags give; ``more`` are fields without a flag.

    Raises:
        ConfigError: a value out of range, in one sentence.
    """
    given = {name: getattr(args, name) for name in _fields(kind) if getattr(args, name, None) is not None}
    try:
        return parse(kind, {**given, **more})
    except ConfigError as error:
        name, separator, rest = str(error).partition(":")
        raise ConfigError(f"--{name.replace('_', '-')}{separator}{rest}") from None


def _fields(kind: type) -> dict[str, FieldInfo]:
    return typing.cast(dict[str, FieldInfo], kind.__pydantic_fields__)  # type: ignore[attr-defined]


def _add_option(group: Any, name: str, field: FieldInfo) -> None:
    kind, text = _plain(field.annotation), field.description or name.replace("_", " ")
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        how: Any = argparse.BooleanOptionalAction if field.default else "store_true"
        group.add_argument(flag, action=how, default=None, help=text + (" (default: yes)" if field.default else ""))
        return
    if "default:" not in text and field.default not in (None, ()):
        text += f" (default: {field.default})"
    choices = [str(choice) for choice in typing.get_args(kind)] if typing.get_origin(kind) is typing.Literal else None
    more: dict[str, Any] = {"choices": choices} if choices else {"type": kind, "metavar": _METAVARS.get(kind, "TEXT")}
    if typing.get_origin(kind) is tuple:
        more |= {"type": typing.get_args(kind)[0], "action": "append"}  # may be repeated
    group.add_argument(flag, dest=name, default=None, help=text.replace("%", "%%"), **more)


def _plain(kind: Any) -> Any:
    """The type without Annotated and None."""
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    members = [one for one in typing.get_args(kind) if one is not type(None)]
    return _plain(members[0]) if type(None) in typing.get_args(kind) else kind
