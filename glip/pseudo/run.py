"""Label captioned images, or images by class names: in this process, in those of torchrun, or in Ray actors.

Every engine gives each shard to one worker (``label.Labeller``), and every worker labels a shard in the same way, so
the files do not depend on the engine.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from glip.config import LabelConfig, SetConfig
from glip.console import counted, printable
from glip.errors import ConfigError, install_command
from glip.files import MANIFEST, begin_run, exclusive
from glip.model.weights import load_pretrained, model_fingerprint
from glip.provenance import RECORD, record
from glip.pseudo.label import Labeller, Shard, check_images, find_shards
from glip.pseudo.ontology import Ontology
from glip.pseudo.store import draw_report, is_done, write_report

Outcome = dict[str, Any]  # a shard's report, or its name and why its input cannot be read ("failed")
MakeLabeller = partial[Labeller]
_PACKAGES = {"parquet": "pyarrow", "ray": "ray"}
_NOT_IN_LABELS = ("batch_size", "engine", "workers", "threads")  # a run may be resumed with other values


def run_labelling(
    entry: SetConfig,
    model: str | Path,
    config: LabelConfig,
    folder: str | Path,
    *,
    ontology: Ontology | None = None,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Label a dataset into a folder and write the report, also when interrupted; the same call resumes.

    Args:
        entry: a captioned dataset (``label.find_captions``), or with an ontology any dataset of image files.
        model: the teacher: a name or a folder.
        config: the options.
        folder: output folder; every worker must see it.
        ontology: what is asked of every image, instead of its captions.
        device: where the teacher runs; None: CUDA where available.
        say: called with a line for each finished shard.

    The report's ``failed`` names the shards whose input cannot be read. The same call tries them again.

    Raises:
        GlipError: the teacher cannot be loaded, or the folder holds other labels or is in use.
        OSError: a file cannot be written.
    """
    _check_packages(config)
    folder, failed = Path(folder).absolute(), dict[str, str]()
    options = {key: value for key, value in asdict(config).items() if key not in _NOT_IN_LABELS}  # type: ignore[call-overload]
    if ontology:  # without thresholds, which are for what is stored
        asked = {name: one.prompts for name, one in ontology.names.items()}
        options |= {"names": asked, "negatives": ontology.negatives}
    weights = model_fingerprint(load_pretrained(model).model)[:16]
    rank = int(os.environ.get("RANK", "0")) if config.engine == "torchrun" else 0
    with exclusive(folder, main=rank == 0):
        shards = find_shards(entry, config.per_shard)
        check_images(shards)
        begin_run(folder, {"teacher": weights, "captions": entry.annotations, "images": entry.images, **options})
        if rank == 0:
            record(folder / RECORD, config={"teacher": str(model), **asdict(config)}, files=[folder / MANIFEST])  # type: ignore[call-overload]
        own = shards[rank :: int(os.environ.get("WORLD_SIZE", "1")) if config.engine == "torchrun" else 1]
        others = {shard.name for shard in shards} - {shard.name for shard in own}
        waiting = [shard for shard in own if not is_done(folder, shard.name)]
        label = _label_with_ray if config.engine == "ray" else _label_here
        make_labeller = partial(Labeller, model, config, folder, device, ontology=ontology)
        outcomes = label(waiting, make_labeller, config) if waiting else ()
        began = time.monotonic()
        write_report(folder, len(shards), failed, others)  # also says how much is missing, even after a kill
        try:
            for number, outcome in enumerate(outcomes, start=1):
                line, done = _progress_line(outcome, bool(ontology)), len(own) - len(waiting) + number
                left = timedelta(seconds=int((time.monotonic() - began) / number * (len(waiting) - number)))
                say(f"{printable(line)}; {done} of {counted(len(own), 'shard')}, {left} left")
                failed |= {outcome["shard"]: outcome["failed"]} if "failed" in outcome else {}
        finally:  # an interrupted run also reports what it has done
            report = write_report(folder, len(shards), failed, others)
            draw_report(folder, report, ontology.thresholds(0.0, {}) if ontology else {})
    return report


def _check_packages(config: LabelConfig) -> None:
    for option, value in (("form", config.form), ("engine", config.engine)):
        if value in _PACKAGES and find_spec(_PACKAGES[value]) is None:
            raise ConfigError(f"{option}: {value} is not installed: {install_command(value)}, or choose another")


def _progress_line(outcome: Outcome, is_named: bool) -> str:
    whole, found = ("image", "candidate") if is_named else ("pair", "box")
    if "failed" in outcome:
        return f"{outcome['shard']} failed: {outcome['failed']}"
    rate = outcome["images"] / max(outcome["wall"], 1e-9)
    return (
        f"{outcome['shard']}: {outcome['kept']} of {counted(outcome['pairs'], whole)}, "
        f"{counted(outcome['boxes'], found)} in {counted(outcome['images'], 'image')}, {rate:.1f} images/s"
    )


def _threads(config: LabelConfig) -> int:
    """CPU threads of each worker: as OMP_NUM_THREADS says, at most its share of the cores that glip may use."""
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if config.engine == "torchrun" else config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else cores
    return config.threads or max(1, min(most, cores // workers))


def _label_here(shards: Sequence[Shard], make_labeller: MakeLabeller, config: LabelConfig) -> Iterator[Outcome]:
    before = torch.get_num_threads()
    torch.set_num_threads(_threads(config))
    try:
        yield from map(make_labeller(), shards)
    finally:  # what this process does later, such as training a student, has its threads again
        torch.set_num_threads(before)


class _Actor:
    """A worker as Ray Data calls it: rows in, rows out."""

    def __init__(self, shards: Sequence[Shard], make_labeller: MakeLabeller, threads: int) -> None:
        torch.set_num_threads(threads)
        self.shards, self.labeller = shards, make_labeller()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"outcome": [json.dumps(self.labeller(self.shards[int(number)])) for number in batch["id"]]}


def _label_with_ray(shards: Sequence[Shard], make_labeller: MakeLabeller, config: LabelConfig) -> Iterator[Outcome]:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # read at the import
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    import ray
    import ray.data

    if not ray.is_initialized():
        # on a single machine more logical CPUs than actors, or Ray Data has none left for reading
        cpus = None if os.environ.get("RAY_ADDRESS") else config.workers + 2
        ray.init(num_cpus=cpus, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    on_gpu = make_labeller.args[-1] != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    outcomes = ray.data.range(len(shards), override_num_blocks=len(shards)).map_batches(
        _Actor,
        fn_constructor_args=(list(shards), make_labeller, _threads(config)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=config.workers),
        num_cpus=1,
        num_gpus=int(on_gpu),
    )
    for row in outcomes.iter_rows():
        yield json.loads(row["outcome"])
