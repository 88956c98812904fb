"""The ``glip`` command: parse, run the verb's file, turn users' mistakes into one line."""

import argparse
import ctypes
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module

from glip.cli.arguments import build_parser
from glip.console import Screen
from glip.errors import GlipError
from glip.signals import AGAIN

_RESUMING = ("train", "tune", "label", "self-train", "evaluate")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt in glibc


def main(argv: Sequence[str] | None = None) -> None:
    """Run and exit: 0 done, 2 a user's mistake (one line), 1 a bug (traceback), 130 or 143 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name or phrase that this terminal cannot show
    with redirect_stdout(Screen(sys.stdout)), redirect_stderr(Screen(sys.stderr)):
        sys.exit(_run(build_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    """Run a verb; gives the exit code."""
    _keep_freed_memory()
    warnings.formatwarning = lambda message, *_, **__: f"glip {args.verb}: {message}\n"
    code = 1
    try:
        code = import_module(f"glip.cli.{args.verb.replace('-', '_')}").run(args)
    except KeyboardInterrupt as error:
        resumes = args.verb in _RESUMING and not getattr(args, "predictions", None)
        kept = "drawn images and JSON lines are kept, other files are not written; " * (args.verb == "detect")
        usual = AGAIN if resumes else f"{kept}the same command starts over"
        print(f"\ninterrupted: {str(error) or usual}", file=sys.stderr)
        code = getattr(error, "code", 130)  # 143 after SIGTERM
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
    return code


def _keep_freed_memory() -> None:
    """glibc gives the memory of each large tensor back, and gets it again page by page, cleared: 4 to 10 % of the time.

    Settings in the environment (MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_) are left as they are.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(OSError, AttributeError):  # not glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
