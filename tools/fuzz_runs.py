"""Broken configs, models, tasks and files of runs: kinds of ``fuzz_kinds.py``, which ``fuzz.py`` adds."""

import copy
import functools
import io
import itertools
import json
import pickle
import struct
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fuzz_kinds import CAPTION, LABEL, NUMBERS, ODD, RAN, TEXTS, Read, Rng, mutate_bytes, mutate_tree, tiny, write
from PIL import Image
from safetensors.torch import save

import glip
from glip.config import SelectConfig, StepConfig, TableTask
from glip.data.catalog import known_sets
from glip.data.sets import SkipCounter
from glip.evaluate.columns import read_results
from glip.evaluate.phrases import read_predictions
from glip.evaluate.run import Prediction, PredictionStore, QueryOptions
from glip.experiment import read_yaml, to_dict, to_yaml
from glip.files import begin_run
from glip.model.adapt import Adaptation, load_adaptation, save_adaptation
from glip.pseudo.select import score_labels, select
from glip.pseudo.store import count_labels, read_rows, write_report, write_shard
from glip.recipes.tune_table import read_ledger, table_lines
from glip.schema import parse
from glip.structures import Detections, Prompt, Sample
from glip.text.class_prompts import read_prompts
from glip.train.checkpoint import LAST, read_progress, read_state, restore, save_state
from glip.train.distributed import Group
from glip.train.log import Progress
from glip.train.start import load_config
from glip.train.step import Stepper


def read_configs(rng: Rng, folder: Path) -> None:
    """A YAML file and ``key=value`` texts; tables of sets, of tasks and of prompts."""
    tree = mutate_tree(rng, to_dict(load_config("tiny")), times=2)
    words = (
        "2020-13-01",
        "!!timestamp x",
        "!!int ''",
        "&a [*a]",
        "!!python/object/apply:os.system [ls]",
        "*b",
        "{a: {a: ",
    )
    bomb = "a: &a [1,2]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
    )
    try:
        text = to_yaml(tree)
    except Exception:  # halves of characters cannot be written
        text = rng.choice(TEXTS)
    file = write(rng, folder / "config.yaml", rng.choice((text, text, text, bomb, "[" * 1200, "extends: config.yaml")))
    keys = ("train.lr", "train.steps", "model.vision.widths", "data.train", "model.head.groups", "a..b", "=", "train")
    overrides = [f"{rng.choice(keys)}={rng.choice((*words, *map(str, ODD)))}" for _ in range(rng.randrange(3))]
    way = rng.randrange(5)
    if way < 2:
        load_config(file if way else "tiny", overrides)
    elif way == 2:
        sets = {"a": {"format": "coco", "annotations": "a.json", "images": ["b"]}}
        write(rng, folder / "datasets.yaml", sets)
        known_sets(folder)
    elif way == 3:
        parse(
            dict[str, TableTask], read_yaml(write(rng, folder / "t.yaml", {"a": {"train": "x", "test": "y"}})), at="t"
        )
    else:
        read_prompts(
            read_yaml(write(rng, folder / "p.yaml", {"cat": {"prefix": "a ", "name": "cat", "suffix": "."}})), ["cat"]
        )


class Evil:
    """Code that runs where a pickle of it is read: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@functools.cache
def _model_files() -> tuple[dict[str, Any], dict[str, torch.Tensor], bytes]:
    detector = tiny()
    words = (detector.processor.tokenizer.folder / "vocab.txt").read_bytes()
    return to_dict(detector.config), {key: one.detach() for key, one in detector.model.state_dict().items()}, words


def read_models(rng: Rng, folder: Path) -> None:
    """A model folder or a ``.pth`` whose config, weights or vocabulary are broken, hostile or of another model."""
    config, state, words = _model_files()
    broken, names, way = dict(state), list(state), rng.randrange(8)
    if rng.random() < 0.4:
        first, second = rng.sample(names, 2)
        broken[first], broken[second] = broken[second], broken[first]
    if rng.random() < 0.2:
        broken[rng.choice(names)] = rng.choice((torch.zeros(0), torch.zeros(3, 3), torch.zeros(2, dtype=torch.int8)))
    if way < 2:
        content: Any = rng.choice((broken, {"model": broken}, {"model": [Evil(folder / RAN)]}, Evil(folder / RAN)))
        stream = io.BytesIO()
        torch.save(content, stream)
        data = stream.getvalue() if rng.random() < 0.8 else pickle.dumps(content if way else Evil(folder / RAN))
        path = folder / "model.pth"
        path.write_bytes(mutate_bytes(rng, data) if rng.random() < 0.5 else data)
    else:
        path = folder / "model"
        write(rng, path / "config.json", config) if way < 5 else write(Rng(1), path / "config.json", json.dumps(config))
        data = save(broken)
        head = struct.pack("<Q", rng.choice((10**8, 2**62))) + data[8:]
        (path / "model.safetensors").write_bytes(head if way == 5 else mutate_bytes(rng, data) if way == 6 else data)
        if way == 7:
            words = rng.choice(
                (mutate_bytes(rng, words), words[:999], b"\xff" + words, words.replace(b"[UNK]", b"x"), b"")
            )
        if rng.random() < 0.95:
            (path / "vocab.txt").write_bytes(words)
    glip.Detector.from_pretrained(path, device="cpu")(Image.new("RGB", (32, 32)), "a cat. a dog")
    assert not (folder / RAN).exists(), "code in a pickle has run"


@functools.cache
def _task() -> Adaptation:
    detector, prompt = tiny(), Prompt.from_names(["cat", "dog"])
    hidden = detector.encode_text(prompt).hidden[0].detach()
    return Adaptation(
        "prompt", "tiny", detector.fingerprint, ("cat", "dog"), prompt, torch.zeros_like(hidden), thresholds=(0.1, 0.2)
    )


def read_tasks(rng: Rng, folder: Path) -> None:
    """A task file with broken bytes or metadata, used by its model."""
    path = folder / "task.safetensors"
    save_adaptation(path, _task())
    data = path.read_bytes()
    if rng.random() < 0.4:
        data = mutate_bytes(rng, data)
    else:
        size = struct.unpack("<Q", data[:8])[0]
        head = json.loads(data[8 : 8 + size])
        head["__metadata__"]["task"] = json.dumps(mutate_tree(rng, json.loads(head["__metadata__"]["task"]), times=2))
        text = json.dumps(mutate_tree(rng, head, times=1) if rng.random() < 0.2 else head).encode()
        data = struct.pack("<Q", len(text)) + text + data[8 + size :]
    path.write_bytes(data)
    tiny().adapted(load_adaptation(path))(Image.new("RGB", (32, 32)))


# ---- files of runs


@functools.cache
def _stepper() -> Stepper:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return Stepper(model, model, optimizer, StepConfig(), Group())  # type: ignore[arg-type]


def read_states(rng: Rng, folder: Path) -> None:
    """A training state with other shapes, kinds or bytes, and then a step with it."""
    stepper, path = copy.deepcopy(_stepper()), folder / LAST
    save_state([path], stepper, stepper.model.state_dict(), Progress(step=1), {"config": 1})
    if rng.random() < 0.7:
        tree = torch.load(path, weights_only=True)
        own: Any = tree
        while isinstance(own, dict | list) and own:
            key = rng.choice(list(own) if isinstance(own, dict) else range(len(own)))
            if rng.random() < 0.3 or not isinstance(own[key], dict | list) or not own[key]:
                odd: tuple[Any, ...] = (
                    torch.zeros(5),
                    torch.zeros(2, 3),
                    torch.zeros(()),
                    torch.zeros(2, dtype=torch.int64),
                    *NUMBERS,
                    None,
                    {},
                    [],
                    "x",
                )
                own[key] = rng.choice(odd)
                break
            own = own[key]
        torch.save(tree, path)
    path.write_bytes(mutate_bytes(rng, path.read_bytes()) if rng.random() < 0.5 else path.read_bytes())
    state = read_state(path)
    read_progress(path, state, Progress)
    restore(path, state, stepper, stepper.model.state_dict())
    stepper.model(torch.randn(4, 3)).sum().backward()
    stepper.optimizer.step()


def read_parts(rng: Rng, folder: Path) -> None:
    """A part of an evaluation with other bytes: it is refused, or gives what was written."""
    samples = [
        Sample(folder / f"{number}.png", torch.zeros(0, 4), (), ("cat", "dog"), image_id=number) for number in range(3)
    ]
    boxes, prompt = torch.tensor([[1.5, 2, 30, 40], [0, 0, 5, 5]]), Prompt.from_names(["cat", "dog"])
    found = Detections(boxes, torch.tensor([0.7, 0.5]), torch.tensor([1, 0]), prompt, (50, 60))
    store = PredictionStore(folder, {"model": "tiny"})
    for prediction in (Prediction(0, found), Prediction(1, None, "unreadable image", "x"), Prediction(2, found)):
        store.add(prediction)
    store.flush()
    [path] = folder.glob("part-*.npz")
    path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    again = [one.found for _, one in PredictionStore(folder, {"model": "tiny"}).read(samples, QueryOptions())]
    for one in (again[0], again[2]):
        assert one is not None and torch.equal(one.boxes, boxes) and one.scores.tolist() == found.scores.tolist()
    assert again[1] is None


def read_labels(rng: Rng, folder: Path) -> None:
    """A folder of pseudo-labels whose shard, report or manifest is edited or broken."""
    rows = [LABEL | {"image": f"{number}.png"} for number in range(3)]
    report = {
        "shard": "a",
        "pairs": 3,
        **count_labels(rows),
        "skipped": {},
        "places": {},
        "skipped by the reader": {},
        "wall": 1.0,
    }
    report["seconds"] = {"read": 0.1}
    form = rng.choice(("jsonl", "jsonl", "parquet"))
    write_shard(folder, "a", form, rows, report)
    begin_run(folder, {"images": [str(folder)], "teacher": "x"})
    which = rng.randrange(4)
    if which < 2:
        write(rng, folder / f"a.{form}", (folder / "a.parquet").read_bytes() if form == "parquet" else rows)
    elif which == 2:
        write(rng, folder / "a.report.json", report)
    else:
        write(rng, folder / "manifest.json", {"images": [str(folder)], "teacher": "x"})
    write_report(folder, 1, {})
    truth = Sample(
        Path("0.png"), torch.tensor([[1.0, 2, 3, 4]]), ((0,),), prompt=Prompt.from_caption(CAPTION, [[[0, 5]]])
    )
    score_labels(read_rows(folder), [truth], ["dog"])
    select(folder, folder / "selected.jsonl", SelectConfig(nms=0.5, nms_across=0.6))


def read_result_files(rng: Rng, folder: Path) -> None:
    """Results in COCO's format, and predictions for phrases."""
    rows = [{"image_id": 7, "category_id": 3, "bbox": [1.0, 2.0, 3.5, 4.0], "score": 0.5}] * 3
    path = write(rng, folder / "results.json", rows)
    assert len(read_results(path, (7, "b.png"), (3, "cat"), SkipCounter())) <= 9
    truth = Sample(
        Path("1.png"),
        torch.tensor([[1.0, 2, 3, 4]]),
        ((0,),),
        prompt=Prompt.from_caption(CAPTION, [[[0, 5]]]),
        image_id="1:0",
    )
    path = write(rng, folder / "phrases.json", [{"image_id": 1, "sentence_id": 0, "boxes": [[[1, 2, 3, 4]]]}])
    read_predictions(path, [truth], SkipCounter())


def read_ledgers(rng: Rng, folder: Path) -> None:
    """Ledgers of tunings and of claims."""
    import claims

    row = {"model": "tiny", "weights": "w", "task": "a", "mode": "prompt", "shots": "1", "seed": 0, "settings": {}}
    path = write(rng, folder / "ledger.jsonl", [row | {"figures": {"test AP50": 0.5, "test before AP50": 0.1}}] * 2)
    table_lines(read_ledger(path) or read_ledger(folder / "none"))
    study = claims.STUDIES["arms"]
    own = {"arm": "a", "size": 0, "seed": 0, "images": 9, "figures": dict.fromkeys(study.figures, 0.5), "minutes": 1.0}
    write(rng, folder / "claims.jsonl", [own] * 2)
    with mock.patch.object(claims, "DOCS", folder):
        for runs in study.groups().values():
            claims.cells(study, runs)


def read_manifests(rng: Rng, folder: Path) -> None:
    """The manifest of a run's folder, to go on in it."""
    write(rng, folder / "manifest.json", {"model": "a", "set": {"b": [1, 2]}})
    begin_run(folder, {"model": "a", "set": {"b": [1, 2]}})


RUNS: dict[str, Read] = {
    "configs": read_configs,
    "models": read_models,
    "tasks": read_tasks,
    "states": read_states,
    "parts": read_parts,
    "labels": read_labels,
    "results": read_result_files,
    "ledgers": read_ledgers,
    "manifests": read_manifests,
}
