"""``glip serve`` and ``glip demo``: answer requests, or show a page, until Ctrl-C or SIGTERM."""

import argparse
import ipaddress
import os
import socket
import sys

from glip.cli.arguments import read_options
from glip.errors import ConfigError, needs
from glip.integrations.serve_options import ServeConfig


def run(args: argparse.Namespace) -> int:
    """Load the model and its tasks, listen, and finish what has begun when a signal comes."""
    args.token = args.token or os.environ.get("GLIP_TOKEN") or None
    config = read_options(ServeConfig, args)
    tasks = dict(given.partition("=")[::2] for given in config.task)
    problem, is_open = "", not config.token and not _is_loopback(config.host)
    if is_open and not config.insecure:
        problem = f"--host {config.host}: other machines can reach it: add --token, or --insecure to let everyone ask"
    elif len(tasks) < len(config.task) or not all(tasks.values()) or any("/" in name or not name for name in tasks):
        problem = f"--task {', '.join(config.task)}: give NAME=FILE, each with a name of its own"
    if problem:
        raise ConfigError(problem)
    is_page = args.verb == "demo"
    with needs(args.verb):
        from glip.integrations.serve import create_app, http_server

        if is_page:
            from glip.integrations.demo import create_demo
    from glip.detector import Detector
    from glip.model.zoo import say_limits
    from glip.signals import GracefulStop

    with _listen(config) as listener:
        say_limits(args.model)
        model = Detector.from_pretrained(args.model, device=args.device, dtype=config.dtype)
        detectors = {"": model, **{name: model.adapted(file) for name, file in tasks.items()}}
        shown = f"[{config.host}]" if ":" in config.host else config.host
        usual = "open it in a browser" if is_page else "/docs lists the requests"
        hint = "WITHOUT A TOKEN: everyone who reaches it may ask" if is_open else usual
        print(f"{model!r} on http://{shown}:{listener.getsockname()[1]}: {hint}", file=sys.stderr)
        with GracefulStop(at_once="every request that had begun was answered"):
            server = create_demo(detectors, config) if is_page else http_server(create_app(detectors, config))
            server.run(sockets=[listener])
    return 0


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=256)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]
        raise ConfigError(
            f"--port {config.port}: cannot listen there on {config.host} ({why}): give another, or 0 for any free one"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
