"""The ``glip`` command: parse, run the verb's file, turn users' mistakes into one line."""

import argparse
import ctypes
import io
import os
import signal
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
_BUG = "this is a bug in glip: please report it with the traceback above and the output of glip env"
# Of torch, CUDA, C++, Python, oneDNN.
_OUT_OF_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "start new thread", "could not create a primitive")
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
    try:
        code: int = import_module(f"glip.cli.{args.verb.replace('-', '_')}").run(args)
        return code
    except KeyboardInterrupt as error:
        with suppress(ValueError):  # another thread than the main one
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C finds the program at its end
        resumes = args.verb in _RESUMING and not getattr(args, "predictions", None)
        kept = "drawn images and JSON lines are kept, other files are not written; " * (args.verb == "detect")
        usual = AGAIN if resumes else f"{kept}the same command starts over"
        print(f"\ninterrupted: {str(error) or usual}", file=sys.stderr)
        return getattr(error, "code", 130)  # 143 after SIGTERM
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (GlipError, OSError) as error:
        if args.traceback:
            traceback.print_exc()
        print(f"glip {args.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:
        full = isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
        if args.traceback or not full:
            traceback.print_exc()
        advice = "not enough memory: lower the batch size or the image size" if full else _BUG
        print(f"glip {args.verb}: {advice}", file=sys.stderr)
        return 2 if full else 1


def _keep_freed_memory() -> None:
    """glibc gives the memory of each large tensor back, and gets it again page by page, cleared: 4 to 10 % of the time.

    Settings in the environment (MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_) are left as they are.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(OSError, AttributeError):  # not glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
