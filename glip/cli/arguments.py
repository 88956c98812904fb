"""The arguments of every verb; imports nothing heavy, so that ``glip --help`` is quick.

Flags for a verb's own settings are made from its options dataclass in ``config.py``, which holds their types, defaults
and help texts. An experiment's config takes ``key.path=value`` instead.
"""

import argparse
import re
import typing
from collections.abc import Collection
from typing import Any, NoReturn, TypeVar

from pydantic.fields import FieldInfo

from glip import __version__
from glip.config import EvaluateConfig, Format, LabelConfig, Mode, SelectConfig, SelfTrainConfig, TaskConfig, TuneConfig
from glip.errors import ConfigError
from glip.integrations.serve_options import ServeConfig
from glip.recipes.detect_config import DetectConfig
from glip.schema import bare_type, did_you_mean, parse

T = TypeVar("T")
WRITTEN = ("coco", "mdetr", "odvg", "labels", "label-studio", "yolo", "voc")  # formats that glip data convert writes
CAPTIONED = (  # options of glip label that are for captions only
    "together", "pipeline", "referring", "min_words", "max_words", "max_tokens", "min_phrases", "max_repeats",
    "keep_html", "keep_control_characters", "keep_without_letters", "keep_unknown_words", "latin_only",
)  # fmt: skip
_FILTERS = ("min_side", "max_aspect", "max_pixels", "min_bytes", "max_bytes", "same_image")  # of glip label
EXPORTED = ("onnx", "torch")  # formats that glip export writes
NAMED = ("labels", "coco", "yolo", "label-studio")  # formats of what glip label --names makes
_METAVARS: dict[Any, str] = {int: "N", float: "X", "validate": "SET", "test": "SET"}
_METAVARS |= {**dict.fromkeys(("images", "root", "out", "crops"), "DIR"), **dict.fromkeys(("task", "prompts"), "FILE")}
_MODEL = "name, folder or .pth file"
_SHARED: dict[str, dict[str, Any]] = {
    "config": {"help": "YAML file or config name such as finetune/own (glip config lists them)"},
    "overrides": {"nargs": "*", "metavar": "key=value", "help": "config values, such as train.steps=100"},
    "captions": {"help": "captioned images: dataset, file (jsonl, json, csv, tsv, tar) or folder of such files"},
    "--images": {"action": "append", "default": [], "metavar": "DIR", "help": "image folder; may be repeated"},
    "--root": {"metavar": "DIR", "help": "data folder (default: environment variable GLIP_DATA, or this folder)"},
    "--model": {"default": "glip-nano", "help": f"{_MODEL} (default: glip-nano)"},
    "--device": {"help": "cpu, cuda or cuda:1 (default: cuda if available)"},
    "--traceback": {"action": "store_true", "help": "show the full traceback of an error"},
}


_OTHERS = {  # names that the flags have in other tools
    "threshold": (
        "conf",
        "conf-thres",
        "confidence",
        "score-thr",
        "score-threshold",
        "box-threshold",
        "text-threshold",
    ),
    "model": ("weights", "checkpoint", "ckpt", "checkpoint-path", "model-path", "pretrained"),
    "images": ("source", "input", "img", "image", "image-path", "img-path", "img-dir", "image-dir"),
    "prompt": ("text", "texts", "text-prompt", "classes", "labels", "names", "query", "queries", "categories"),
    "out": ("output", "output-dir", "out-dir", "save-dir", "project", "work-dir", "outputs"),
    "batch-size": ("batch", "bs", "batchsize"),
    "device": ("gpu", "gpus", "cuda", "cpu"),
    "dtype": ("half", "fp16", "bf16", "amp", "precision"),
    "data": ("dataset", "ann", "annotations", "ann-file", "data-path"),
    "lr": ("learning-rate", "lr0"),
    "workers": ("num-workers", "j"),
    "max-detections": ("max-det", "topk", "max-per-img"),
    "format": ("json", "save-json", "save-txt", "save-results", "predictions", "output-format"),
    "crops": ("save-crop", "save-crops", "crop"),
    "every": ("vid-stride", "stride", "frame-stride", "skip-frames"),
    "frames": ("max-frames", "num-frames"),
    "image-size": ("imgsz", "img-size", "size", "resolution", "min-size"),
    "nms": ("iou", "iou-thres", "iou-threshold", "nms-threshold"),
    "version": ("v", "V"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options may stand anywhere between the positional arguments."""

    _intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but a verb's positional arguments may go on after an option."""
        if self._subparsers is not None or self._intermixed:
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        found, extra = self.parse_known_intermixed_args(args, namespace)
        if flag := next((text for text in extra if text.startswith("-")), None):
            self.error(f"unknown option {flag}{self._meant(flag.partition('=')[0].strip('-'))}")
        return found, extra

    def _meant(self, flag: str) -> str:
        """A hint at what an unknown option is called here."""
        known = [text[2:] for text in self._option_string_actions if text.startswith("--")]
        ours = next((name for name, theirs in _OTHERS.items() if flag.replace("_", "-") in theirs), "")
        bare = [str(action.metavar or action.dest) for action in self._get_positional_actions()]
        if ours in known:
            return f" (did you mean --{ours}?)"
        if "key=value" in bare:
            return ": settings are given as key=value, such as train.lr=1e-4 (glip config --explain lists them)"
        if ours in ("images", "prompt", "model", "data"):
            return f": given without an option are {' '.join(bare)}"
        return did_you_mean(flag, known).replace("'", "--", 1).replace("'", "")

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where help is, without the usage; exit code 2."""
        if wrong := re.search(r"invalid choice: '(.*?)'", message):
            hint = did_you_mean(wrong[1], re.findall(r"'(.*?)'", message[wrong.end() :]))
            message = f"{message[: wrong.end()]}{hint}{message[wrong.end() :]}"
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The parser of the ``glip`` command."""
    parser = Parser(prog="glip", description="Open-vocabulary object detection: find anything you can describe.")
    parser.add_argument("--version", action="version", version=f"glip {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (summary, add) in VERBS.items():
        own = verbs.add_parser(verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        add(own)
        _add_shared(own, "--traceback")
    return parser


def _detect(parser: Parser) -> None:
    parser.usage = "%(prog)s IMAGE... PROMPT... [options]"
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE... PROMPT...",
        help="image files, folders or patterns such as 'photos/*.jpg', URLs, videos or a webcam's number, then what to "
        "find: 'a red bus. a cyclist', or 'a red bus' 'a cyclist' (no prompt with --caption or --task)",
    )
    parser.add_argument("--model", help=f"{_MODEL} (default: glip-nano)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--caption", metavar="SENTENCE", help="detect the objects that a sentence mentions")
    instead.add_argument("--task", metavar="FILE", help="task.safetensors from glip tune: detect its classes")
    _add_shared(parser, "--device")
    add_options(parser, DetectConfig, "output")


def _serve(parser: Parser) -> None:
    _add_shared(parser, "--model", "--device")
    add_options(parser, ServeConfig, "server")


def _demo(parser: Parser) -> None:
    _add_shared(parser, "--model", "--device")
    add_options(parser, ServeConfig, "page", ("label_studio", "max_images"))


def _train(parser: Parser) -> None:
    _add_shared(parser, "config", "overrides")
    for flag, use in (("--data", "train"), ("--validate", "validate")):
        text = f"dataset or annotation file to {use} on, instead of data.{use}; may be repeated"
        parser.add_argument(flag, action="append", metavar="SET", help=text)
    _add_shared(parser, "--images", "--device")


def _tune(parser: Parser) -> None:
    parser.add_argument("model", help=_MODEL)
    parser.add_argument("set", nargs="?", help="dataset or annotation file with boxes")
    parser.add_argument("--tasks", metavar="TABLE", help="instead of a dataset: YAML of tasks, odinw13 or odinw35")
    each = "several values: one run for each"
    parser.add_argument(
        "--mode", nargs="+", choices=typing.get_args(Mode), default=["prompt"],
        help="what is trained: offsets of the prompt's tokens, the last layers (linear), low-rank changes of the "
        f"fusion (lora), everything (full) or the text encoder (text); {each} (default: prompt)",
    )  # fmt: skip
    text = f"few-shot: images (or boxes, see --per) per class, or all; {each} (default: all)"
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--shots", nargs="+", type=_shots, default=[None], metavar="N", help=text)
    text = "tune on the images listed in the images.json of another tuning"
    chosen.add_argument("--image-list", metavar="FILE", help=text)
    text = f"random seed; each draws its own few-shot sample; {each} (default: 0)"
    parser.add_argument("--seed", nargs="+", type=int, default=[0], metavar="N", help=text)
    parser.add_argument("--out", metavar="DIR", help="output folder (default: runs/tune/MODEL)")
    _add_shared(parser, "--root", "--device")
    add_options(parser, TaskConfig, "datasets", ("train",))
    add_options(parser, TuneConfig, "tuning (docs/adaptation.md)", ("mode", "shots", "seed", "image_list"))


def _shots(text: str) -> int | None:
    return None if text == "all" else int(text)


def _evaluate(parser: Parser) -> None:
    parser.usage = "%(prog)s MODEL [SET ...] [options]"
    parser.add_argument(
        "names",
        nargs="*",
        metavar="MODEL [SET ...]",
        help="a model, then datasets, annotation files, odinw13 or odinw35 (default: all validation and test sets that "
        "are present); with --model only datasets, with --predictions only a dataset",
    )
    text = f"instead of MODEL: {_MODEL}; repeat to compare several with the first"
    parser.add_argument("--model", action="append", default=[], metavar="MODEL", help=text)
    parser.add_argument("--predictions", metavar="FILE", help="score a COCO results file, without a model")
    parser.add_argument("--quiet", action="store_true", help="print the figures only; tables are in the reports")
    _add_shared(parser, "--device")
    add_options(parser, EvaluateConfig, "evaluation")


def _calibrate(parser: Parser) -> None:
    parser.add_argument("model", help="model folder; the temperature is stored in its config.json")
    parser.add_argument("name", metavar="SET", help="dataset or annotation file with boxes, not trained on")
    _add_shared(parser, "--images", "--root", "--device")


def _label(parser: Parser) -> None:
    parser.add_argument("model", help=f"teacher: {_MODEL}")
    parser.add_argument("captions", help=f"{_SHARED['captions']['help']}; with --names a folder of images")
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder")
    text = "label a folder by class names: YAML or text file, or 'car. person' (docs/results.md)"
    parser.add_argument("--names", metavar="FILE", help=text)
    text = "with --names: what is written to DIR; may be repeated (default: labels)"
    parser.add_argument("--format", action="append", choices=NAMED, help=text)
    _add_shared(parser, "--images", "--root", "--device")
    fields = _fields(LabelConfig).keys()
    add_options(parser, LabelConfig, "labelling", (*_FILTERS, *CAPTIONED))
    add_options(parser, LabelConfig, "images that are skipped (with --names only if given)", fields - {*_FILTERS})
    add_options(parser, LabelConfig, "captions only, not with --names", fields - {*CAPTIONED})


def _select(parser: Parser) -> None:
    parser.add_argument("labels", help="folder that glip label has written")
    parser.add_argument("--out", metavar="FILE", help="label file to write (default: LABELS/selected.jsonl)")
    text = "dataset with ground-truth boxes for these captions: report precision and recall"
    parser.add_argument("--ground-truth", metavar="SET", help=text)
    text = "words absent from the teacher's training data; their precision and recall are reported separately"
    parser.add_argument("--held-out-words", nargs="+", default=[], metavar="WORD", help=text)
    _add_shared(parser, "--images", "--root")
    add_options(parser, SelectConfig, "filters")


def _self_train(parser: Parser) -> None:
    _add_shared(parser, "config", "captions", "overrides")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help=f"first teacher: {_MODEL}")
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder")
    text = "dataset to evaluate the teacher and the students on; may be repeated"
    parser.add_argument("--evaluate", action="append", default=[], metavar="SET", help=text)
    _add_shared(parser, "--images", "--root", "--device")
    for kind, title in ((SelfTrainConfig, "rounds"), (LabelConfig, "labelling"), (SelectConfig, "filters")):
        add_options(parser, kind, title)


def _data(parser: Parser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    _add_shared(verbs.add_parser("list", help="known datasets and whether their files are present"), "--root")
    check = verbs.add_parser("check", help="count what a dataset contains and report problems (exit code 1)")
    check.add_argument("--decode", action="store_true", help="decode every image, not only its header")
    show = verbs.add_parser("show", help="draw samples with their boxes and labels on one sheet")
    show.add_argument("--out", default="sheet.png", metavar="FILE", help="image to write (default: sheet.png)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the sample (default: 0)")
    convert = verbs.add_parser("convert", help="write a dataset in another format")
    convert.add_argument("--to", required=True, choices=WRITTEN, help="format to write")
    for own, number, many in (
        (check, 0, "check only the first N samples"),
        (show, 16, "number of samples (default: 16)"),
        (convert, 0, "write only the first N samples"),
    ):
        text = "dataset (glip data list), annotation file or folder; one split of several as data.yaml:val"
        own.add_argument("name", metavar="SET", help=text)
        own.add_argument("--number", type=int, default=number, metavar="N", help=many)
        own.add_argument("--format", choices=typing.get_args(Format), help="annotation format (default: recognized)")
        _add_shared(own, "--images", "--root")
    convert.add_argument("out", metavar="OUT", help="file to write; for yolo and voc a new folder")
    for own in verbs.choices.values():
        _add_shared(own, "--traceback")


def _convert(parser: Parser) -> None:
    parser.add_argument("source", help=".pth file (2022 release or mmdetection), glip folder, or name such as glip-t")
    parser.add_argument("folder", help="output folder: model.safetensors, config.json, vocab.txt")
    parser.add_argument("--half", action="store_true", help="store float16: half the size, rounded weights")
    learned = parser.add_mutually_exclusive_group()
    text = "to a model without fusion: one in every block that has no effect until it is trained"
    learned.add_argument("--add-fusion", action="store_true", help=f"{text} (head.fusion_gate tanh)")
    text = "task.safetensors from glip tune, not of mode prompt: merge what it changed into the weights"
    learned.add_argument("--task", metavar="FILE", help=text)
    text = "task of mode lora: write it as an adapter that peft reads, without the model"
    learned.add_argument("--peft", metavar="FILE", help=text)


def _models(parser: Parser) -> None:
    parser.add_argument("--files", action="store_true", help="print the address and the sha256 of each file instead")


def _verify(parser: Parser) -> None:
    text = "folder that glip has written (a run, labels, a model), a file in it, or a name such as glip-nano"
    parser.add_argument("target", metavar="FOLDER", help=text)
    _add_shared(parser, "--root")


def _export(parser: Parser) -> None:
    parser.add_argument("model", help=_MODEL)
    parser.add_argument("folder", help="output folder: three graphs, config.json, vocab.txt")
    text = "onnx: graphs for onnxruntime and others, also for --model here; torch: programs of torch.export"
    parser.add_argument("--format", choices=EXPORTED, default="onnx", help=f"{text} (default: onnx)")


def _config(parser: Parser) -> None:
    parser.add_argument("config", nargs="?", help="YAML file or config name; without it: list the installed configs")
    _add_shared(parser, "overrides")
    parser.add_argument("--explain", action="store_true", help="print each key with its meaning and allowed values")


def _env(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


VERBS = {
    "detect": ("detect objects described by text", _detect),
    "serve": ("serve a model over HTTP: JSON, Label Studio, X-AnyLabeling (docs/integrations.md)", _serve),
    "demo": ("try a model in a browser: a page with upload, webcam and a threshold slider", _demo),
    "train": ("train a model", _train),
    "tune": ("adapt a model to a task: prompt tuning, linear probe, full fine-tuning, few-shot", _tune),
    "evaluate": ("evaluate a model with the official metrics of each dataset", _evaluate),
    "calibrate": ("make scores say how often detections are right, by a validation set", _calibrate),
    "label": ("pseudo-label images with a teacher model: the noun phrases of their captions, or class names", _label),
    "select": ("filter pseudo-labels by score, overlap and size", _select),
    "self-train": ("label, select, train and evaluate in rounds; each student is the next teacher", _self_train),
    "data": ("list, check, show or convert datasets", _data),
    "models": ("list the checkpoints that can be loaded, with data, licence and published figures", _models),
    "convert": ("convert a checkpoint to glip's format", _convert),
    "verify": ("compare results, models and their data with the checksums from when they were written", _verify),
    "export": ("export a model to ONNX or torch.export, to run it elsewhere", _export),
    "config": ("list, print or explain configs", _config),
    "env": ("print versions, device and settings, for a bug report", _env),
}


def _add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Arguments that several verbs have."""
    for name in names:
        parser.add_argument(name, **_SHARED[name])


def add_options(parser: argparse.ArgumentParser, kind: type, title: str, leave_out: Collection[str] = ()) -> None:
    """Add a flag under a heading for each field of an options dataclass: ``min_side`` becomes ``--min-side N``.

    A field that is true by default gets ``--no-NAME`` too. ``read_options`` reads the flags back.
    """
    group = parser.add_argument_group(title)
    for name, field in _fields(kind).items():
        if name in leave_out:
            continue
        text, more = str(field.description).replace("%", "%%"), dict[str, Any]()
        own, _ = bare_type(field.annotation)
        is_list = typing.get_origin(own) is tuple
        own = typing.get_args(own)[0] if is_list else own
        if "default:" not in text and field.default not in (None, (), "") and field.default is not False:
            text += f" (default: {'yes' if field.default is True else field.default})"
        if own is bool:
            more = {"action": argparse.BooleanOptionalAction if field.default else "store_true"}
        elif typing.get_origin(own) is typing.Literal:
            more = {"choices": typing.get_args(own)}
        else:
            more = {"type": own, "metavar": _METAVARS.get(name, _METAVARS.get(own, "TEXT"))}
        if is_list:
            more |= {"action": "append"}  # may be repeated
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, default=None, help=text, **more)


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
