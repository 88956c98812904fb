"""One labelling over many shards: in this process, in the processes of torchrun, or in actors of Ray over a cluster.

Every engine gives each shard to one worker (``label.Labeller``) and every worker computes a shard alike, so the files
are the same whatever made them.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch

from glip.errors import ConfigError
from glip.pseudo.label import LabelConfig, Labeller
from glip.pseudo.shards import Shard
from glip.pseudo.store import Store

Engine = Literal["local", "torchrun", "ray"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Failed:
    """A shard that could not be labelled, and why; it is tried again when the run is started again."""

    shard: str
    reason: str


def label_all(
    shards: Sequence[Shard], how: LabelConfig, folder: str | Path, *, engine: Engine, workers: int, say: Say
) -> list[Failed]:
    """Label all shards that are not done.

    Args:
        shards: all of them; those done are left as they are.
        how: what workers need to know.
        folder: where labels go; every worker must see it.
        engine: "local": this process. "torchrun": every process takes its share. "ray": actors.
        workers: actors of Ray, one for each GPU or some cores.
        say: is told of each finished shard.

    Returns:
        The shards that failed; the others are done (of torchrun's other processes: nothing is known).

    Raises:
        CheckpointError, ValueError: a teacher or a phrase pipeline that cannot be loaded.
        ImportError: Ray is not installed.
    """
    store = Store(folder, how.form)
    if engine == "torchrun":
        shards = shards[int(os.environ.get("RANK", "0")) :: int(os.environ.get("WORLD_SIZE", "1"))]
    waiting = [shard for shard in shards if not store.is_done(shard.name)]
    if not waiting:
        return []
    told = _Told(len(shards), len(shards) - len(waiting), say)
    if engine == "ray":
        return _label_with_ray(waiting, how, folder, workers, told)
    with _threads(how.threads):
        labeller, failed = Labeller(how, folder), []
        for shard in waiting:
            outcome = labelled(labeller, shard)
            told(outcome)
            failed += [Failed(shard.name, outcome["failed"])] if "failed" in outcome else []
    return failed


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads within; what this process does afterwards, such as training a student, has its own again."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def labelled(labeller: Labeller, shard: Shard) -> dict[str, Any]:
    """The report of a shard, or the reason why its input cannot be read; a full disk ends the run."""
    try:
        return labeller(shard)
    except (ValueError, FileNotFoundError) as error:
        return {"shard": shard.name, "failed": " ".join(str(error).split())}


class _Told:
    """Says of each finished shard what it holds, and how long the others will take."""

    def __init__(self, total: int, done: int, say: Say) -> None:
        self.total, self.done, self.say = total, done, say
        self.began, self.new = time.monotonic(), 0

    def __call__(self, outcome: dict[str, Any]) -> None:
        self.done += 1
        self.new += 1
        left = (time.monotonic() - self.began) / self.new * (self.total - self.done)
        ending = f"; {self.done} of {self.total} shards, {timedelta(seconds=int(left))} left"
        if "failed" in outcome:
            self.say(f"{outcome['shard']} failed: {outcome['failed']}{ending}")
            return
        rate = outcome["images"] / max(outcome["wall"], 1e-9)
        self.say(
            f"{outcome['shard']}: {outcome['kept']} of {outcome['pairs']} pairs, {outcome['boxes']} boxes in "
            f"{outcome['images']} images, {rate:.1f} images/s{ending}"
        )


class _Actor:
    """A worker as Ray Data wants it: rows in, rows out."""

    def __init__(self, shards: Sequence[Shard], how: LabelConfig, folder: str) -> None:
        torch.set_num_threads(how.threads)
        self.shards, self.labeller = shards, Labeller(how, folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        return {"outcome": [json.dumps(labelled(self.labeller, self.shards[int(number)])) for number in batch["id"]]}


def _label_with_ray(
    shards: Sequence[Shard], how: LabelConfig, folder: str | Path, workers: int, told: _Told
) -> list[Failed]:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("engine ray: Ray is not installed: pip install 'ray[data]', or use another engine") from None
    if not ray.is_initialized():
        # of a single machine more logical CPUs than actors, or Ray Data has none left for reading
        ray.init(num_cpus=None if os.environ.get("RAY_ADDRESS") else workers + 2, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    on_gpu = how.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    outcomes = ray.data.range(len(shards), override_num_blocks=len(shards)).map_batches(
        _Actor,
        fn_constructor_args=(list(shards), how, str(Path(folder).absolute())),
        batch_size=1,
        concurrency=workers,
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
    )
    failed = []
    for row in outcomes.iter_rows():
        outcome = json.loads(row["outcome"])
        told(outcome)
        failed += [Failed(outcome["shard"], outcome["failed"])] if "failed" in outcome else []
    return failed
