"""``glip demo``: a page to try a model in a browser, until Ctrl-C or SIGTERM."""

import argparse
from collections.abc import Callable
from typing import Any

from glip.cli.serve import run_server


def run(args: argparse.Namespace) -> int:
    """Load the model and its tasks, and show the page."""

    def load() -> Callable[..., Any]:
        from glip.integrations.demo import create_demo

        return create_demo

    return run_server(args, load, "open it in a browser")
