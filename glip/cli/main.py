"""The ``glip`` command: one short file per verb, errors made readable in one place."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from glip.errors import GlipError

VERBS = {
    "detect": "detect objects described by text",
    "train": "train a model as a config says",
    "tune": "adapt a model to a task: prompt tuning, linear probe, full tuning, few-shot",
    "evaluate": "measure a model on sets, as their official evaluators do",
    "label": "pseudo-label captioned images: ground the noun phrases of each caption with a teacher model",
    "self-train": "label, select, train and evaluate in rounds; each student is the next teacher",
    "select": "filter pseudo-labels by score, overlap and size: a dataset to train on",
    "data": "list, check, show or convert sets of annotated images",
    "convert": "convert a checkpoint to glip's format",
    "config": "print a resolved config",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others, and whose options may stand anywhere."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but a verb takes what follows an option as more of its words."""
        if self._subparsers is not None or self._mixing:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        return self.parse_known_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is, without the usage."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, and exit: 0 done, 2 a user's mistake (one line), 1 a bug (traceback), 130 or 143 interrupted."""
    parser = Parser(
        prog="glip", description="Open-vocabulary object detection: find anything you can describe in words."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in VERBS.items():
        module = import_module(f"glip.cli.{verb.replace('-', '_')}")
        module.add_arguments(verbs.add_parser(verb, help=summary, description=summary))
    for each in (parser, *verbs.choices.values()):
        each.add_argument("--traceback", action="store_true", help="show the traceback of every error")
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name or phrase that this terminal cannot show
    try:
        code = import_module(f"glip.cli.{args.verb.replace('-', '_')}").run(args)
    except KeyboardInterrupt as error:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        code = getattr(error, "code", 130)  # 143 where a training was asked to end by SIGTERM
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (GlipError, OSError) as error:
        if args.traceback:
            traceback.print_exc()
        print(f"glip {args.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except Exception:
        traceback.print_exc()
        print(f"glip {args.verb}: this is a bug in glip: please report it with the traceback above", file=sys.stderr)
        code = 1
    sys.exit(code)
