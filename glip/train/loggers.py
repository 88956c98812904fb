"""Where the figures of a run go beside ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow.

Each is a short adapter of the same two calls, ``log`` and ``close``, with an id under which a resumed run goes on. What
goes wrong in one never ends a training: its first error is reported, and it gets nothing more until the next start.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from glip.errors import ConfigError, install_command
from glip.files import flat, read_json, write_json

Report = Callable[[str], None]
Tree = Mapping[str, Any]
Figures = Mapping[str, float]
Images = Mapping[str, Image.Image]
IDS = "loggers.json"  # in the run's folder: under which id each logger goes on
_SECONDS = 20  # that a server may take
_PARAMS = 100  # that MLflow takes at once


class Loggers:
    """Some loggers as one; one that fails is reported once and left out.

    Args:
        names: of the loggers.
        folder: of the run; the project and the run are named after it.
        config: of the run, as plain maps.
        step: how many steps are done.
        report: called with a line about what went wrong.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Tree, step: int, report: Report) -> None:
        self._open, self._report = dict[str, Any](), report
        known = read_json(folder / IDS) if names and (folder / IDS).is_file() else {}
        for name in dict.fromkeys(names):
            with self._guarded(name):
                self._open[name] = _LOGGERS[name](folder, config, step, known.get(name, ""), report)
        if new := {name: logger.id for name, logger in self._open.items() if logger.id}:
            write_json(folder / IDS, {**known, **new})

    def __call__(self, call: Callable[[Any], None]) -> None:
        """Call each logger: ``log(numbers, step, images)`` by name, or ``close(figures, done)`` at the end."""
        for name, logger in list(self._open.items()):
            with self._guarded(name):
                call(logger)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a network or a library
            self._open.pop(name, None)
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            more = "the training goes on, and metrics.jsonl has all figures"
            self._report(f"{name} gets nothing more of this run ({said}): {more}")


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers that are not installed.

    Raises:
        ConfigError: naming the extra.
    """
    missing = next((name for name in names if find_spec(name) is None), None)
    if missing:
        raise ConfigError(
            f"train.loggers: {missing} is not installed: {install_command(missing)}, or leave it out "
            "(metrics.jsonl has the same figures)"
        )


class _TensorBoard:
    """Curves and images in ``tensorboard/``; those after the first step are replaced."""

    id = ""

    def __init__(self, folder: Path, config: Tree, step: int, known: str, report: Report) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        rows = [f"| {key} | {value} |" for key, value in flat(config).items()]
        self.writer.add_text("config", "\n".join(["| key | value |", "|---|---|", *rows]), step)

    def log(self, values: Figures, step: int, images: Images) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        for name, image in images.items():
            self.writer.add_image(name, np.array(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def close(self, figures: Figures, done: bool) -> None:
        self.writer.close()


class _Wandb:
    """A run of Weights & Biases, offline where it cannot be reached. Code, command and system figures are not sent."""

    def __init__(self, folder: Path, config: Tree, step: int, known: str, report: Report) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.id, self.wandb = known or uuid4().hex[:8], wandb
        left_out = ("disable_git", "disable_code", "x_disable_meta", "x_disable_stats", "x_disable_machine_info")
        quiet: dict[str, Any] = {"silent": True, "console": "off", "init_timeout": _SECONDS, "finish_timeout": _SECONDS}
        settings = wandb.Settings(**(quiet | dict.fromkeys(left_out, True)))
        project, name = _run_name(folder)
        about: dict[str, Any] = {
            "project": project,
            "name": name,
            "id": self.id,
            "dir": str(folder),
            "settings": settings,
        }
        problem = ""
        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
            problem = "no API key: wandb login stores one"  # at a terminal it would ask, and wait
        try:
            self.run: Any = None if problem else wandb.init(**about, resume="allow")
        except wandb.Error as error:
            problem = str(error).splitlines()[0][:200]
            wandb.teardown()  # else the run is still in use
        if problem:
            report(f"wandb cannot be used online ({problem}): this run is logged offline; wandb sync can send it later")
            self.run = wandb.init(**about, mode="offline")
        self.run.config.update(dict(config), allow_val_change=True)
        self.run.define_metric("step")  # not wandb's own, which a resumed run may not repeat
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Figures, step: int, images: Images) -> None:
        shown = {name: self.wandb.Image(image) for name, image in images.items()}
        self.run.log({**values, **shown, "step": step})

    def close(self, figures: Figures, done: bool) -> None:
        self.run.summary.update(dict(figures))
        self.run.finish(exit_code=0 if done else 1)


class _MLflow:
    """A run of MLflow, in ``mlruns/`` where MLFLOW_TRACKING_URI says nothing."""

    def __init__(self, folder: Path, config: Tree, step: int, known: str, report: Report) -> None:
        for name, value in (("HTTP_REQUEST_TIMEOUT", str(_SECONDS)), ("HTTP_REQUEST_MAX_RETRIES", "1")):
            os.environ.setdefault(f"MLFLOW_{name}", value)  # a server that is away may not hold the training up
        for name in ("ALLOW_FILE_STORE", "DISABLE_TELEMETRY"):
            os.environ.setdefault(f"MLFLOW_{name}", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self.metric, folder = Metric, folder.resolve()
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").as_uri())
        project, name = _run_name(folder)
        self.id = known
        with suppress(MlflowException):  # the server does not have it
            if known:
                self.client.update_run(known, status="RUNNING")
                return
        found = self.client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self.client.create_experiment(project)
        self.id = self.client.create_run(experiment, run_name=name).info.run_id
        params = [Param(_clean(key), str(value)[:500]) for key, value in flat(config).items()]
        for start in range(0, len(params), _PARAMS):
            self.client.log_batch(self.id, params=params[start : start + _PARAMS])

    def log(self, values: Figures, step: int, images: Images) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[self.metric(_clean(key), x, now, step) for key, x in values.items()])
        for name, image in images.items():
            self.client.log_image(self.id, image, f"{_clean(name)}/{step}.png")

    def close(self, figures: Figures, done: bool) -> None:
        self.log(figures, 0, {})
        self.client.set_terminated(self.id, "FINISHED" if done else "KILLED")


_LOGGERS = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow}


def _run_name(folder: Path) -> tuple[str, ...]:
    """The project and the run: the names of the folder's parent and of the folder."""
    return tuple(re.sub(r"[^\w.-]", "-", part.name) or "glip" for part in (folder.resolve().parent, folder.resolve()))


def _clean(name: str) -> str:
    """A name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-./ ]|\.\.", "_", name)
