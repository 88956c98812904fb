"""``glip tune MODEL SET``: adapt a model to one task, or to a table of tasks; run again to resume."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glip.errors import ConfigError

if TYPE_CHECKING:
    from glip.cli.tune_task import TuneConfig

MODES = ("prompt", "linear", "full", "text")  # of glip.adaptation, which needs torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="a name, a folder or a .pth file")
    parser.add_argument("set", nargs="?", help="a set with boxes: a name or an annotation file")
    parser.add_argument("--tasks", metavar="TABLE", help="a YAML of tasks, odinw13 or odinw35, instead of a set")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=["prompt"], help="what trains (default: prompt)")
    parser.add_argument("--shots", nargs="+", default=["all"], help="of each class: 1, 3, 5, 10, ... or all (default)")
    parser.add_argument("--per", choices=("image", "box"), default="image", help="what shots count")
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="of the draw of shots and of the tuning")
    parser.add_argument("--image-list", metavar="FILE", help="tune on the images that an images.json lists")
    parser.add_argument("--validate", metavar="SET", help="choose by this set (default: images not tuned on)")
    parser.add_argument("--test", metavar="SET", help="measure on this set at the end")
    parser.add_argument("--images", action="append", default=[], metavar="DIR", help="where the images of files lie")
    parser.add_argument("--root", default=None, metavar="DIR", help="the data root (default: GLIP_DATA, else here)")
    parser.add_argument("--prompts", metavar="FILE", help="a YAML of words to write for a name")
    parser.add_argument(
        "--out", metavar="DIR", help="where it goes (default: runs/tune/MODEL/..., of a table runs/tune/TABLE)"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the schedule", "the release's rates by default (docs/adaptation.md)")
    group.add_argument("--lr", type=float, default=None, help="rate of what is tuned")
    group.add_argument("--batch-size", type=int, default=None, help="images of a step (default: 4)")
    group.add_argument("--epochs", type=int, default=None, help="at most (default: 100)")
    group.add_argument(
        "--images-per-epoch", type=int, default=None, metavar="N", help="images of a epoch (default: each once)"
    )
    group.add_argument("--patience", type=int, default=None, metavar="N", help="epochs without a rise (default: 8)")
    group.add_argument("--precision", choices=("float32", "bfloat16"), default=None, help="default: float32")
    group.add_argument("--max-val-images", type=int, default=100, metavar="N", help="validation images at most")
    group.add_argument("--vary", action="store_true", help="mirror and resize images anew each time, none is kept")
    group.add_argument("--keep-gb", type=float, default=4.0, help="memory for features of images (default: 4)")
    group.add_argument("--no-thresholds", action="store_true", help="do not store a threshold for each class")


def run(args: argparse.Namespace) -> int:
    """Tune; the artefact's path is the last line."""
    if (args.set is None) == (args.tasks is None):
        raise ConfigError("give a set to tune on, or --tasks TABLE, and not both")
    for option in ("validate", "test", "images", "prompts", "image-list") if args.tasks else ():
        if getattr(args, option.replace("-", "_")):
            raise ConfigError(f"--{option} with --tasks: each task of a table has its own: write it there")
    if args.image_list and args.shots != ["all"]:
        raise ConfigError("--image-list with --shots: the file says which images: give one of the two")
    ways = [_how(args, mode, shots, seed) for mode in args.mode for shots in args.shots for seed in args.seed]
    if args.tasks:
        from glip.cli.tune_table import tune_table

        return tune_table(args, ways)
    from glip.cli.tune_task import ARTEFACT, OUT, folder_of, read_sets, tune_task
    from glip.detector import Detector
    from glip.encoded import FeatureCache
    from glip.files import exclusive

    sets = read_sets(
        args.set, validate=args.validate, test=args.test, images=args.images, prompts=args.prompts, root=args.root
    )
    detector = Detector.from_pretrained(args.model, device=args.device)
    kept = FeatureCache(args.keep_gb)
    for how in ways:
        folder = folder_of(args.out or f"{OUT}/{detector.config.name}", sets.name, how)
        with exclusive(folder):
            found = tune_task(detector, sets, how, folder, kept=kept)
        print(", ".join(f"{name} {value:.3f}" for name, value in found.figures.items()))
        print(f"task in {folder / ARTEFACT}: try glip detect IMAGE --model {args.model} --task {folder / ARTEFACT}")
    return 0


def _how(args: argparse.Namespace, mode: Any, shots: str, seed: int) -> "TuneConfig":
    from glip.cli.tune_task import TuneConfig

    if shots != "all" and not (shots.isdecimal() and int(shots)):
        raise ConfigError(f"--shots {shots!r}: give a number from 1 on, such as 5, or all")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: give a number from 0 on")
    for option in ("lr", "batch_size", "epochs", "images_per_epoch", "patience", "max_val_images", "keep_gb"):
        value = getattr(args, option.replace("-", "_"))
        if value is not None and not value > 0:
            raise ConfigError(f"--{option.replace('_', '-')} {value:g}: give a number above 0")
    given = {
        key: getattr(args, key) for key in ("lr", "batch_size", "epochs", "images_per_epoch", "patience", "precision")
    }
    return TuneConfig(
        mode=mode,
        shots=None if shots == "all" else int(shots),
        per=args.per,
        seed=seed,
        chosen=_chosen(args.image_list) if args.image_list else None,
        settings={key: value for key, value in given.items() if value is not None},
        vary=args.vary,
        thresholds=not args.no_thresholds,
        max_val_images=args.max_val_images,
    )


def _chosen(file: str) -> tuple[str, ...]:
    from glip.data.records import read_lists

    ids = read_lists(Path(file), ("ids",), "list of images")["ids"]
    return tuple(map(str, ids))
