"""The stored runs of the 2022 release, and our model filled with the weights they were made with.

In the order things happen: ``load_case`` reads a run, ``loaded_model`` synthesizes the release's state dict from its
list of names and sends it through the public conversion, ``make_batch`` turns the run's images and captions into our
input. What the model then computes is written down by golden_recorder.py.
"""

import gc
import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from golden import weights
from PIL import Image
from small import release_state

from glip.config import ModelConfig
from glip.model.glip import GLIP, build
from glip.model.release import State, from_foreign
from glip.model.weights import ASSETS, BUNDLED, fit
from glip.processor import Processor
from glip.structures import Batch, Prompt
from glip.text.prompt import clean_name
from glip.text.tokens import Tokenizer
from glip.train.start import load_config

GOLDEN = Path(__file__).resolve().parent / "golden"
# The big cases: what tools/check_gpu.py --pack has put into the checkout, or beside it.
BIG_CASES = (GOLDEN.parents[1] / "gpu_data" / "golden", GOLDEN.parents[2] / "shared" / "golden" / "cases")
TINY_NAMES = ("tiny_det", "tiny_batch2", "tiny_ground", "tiny_nofuse_det", "tiny_prompt")
# One model is held at a time, so cases of one model stand together: GLIP-T C last, and first in training.
BIG_NAMES = (
    *("t_a_det3", "t_a_ground", "l_det3", "t_b_det3", "t_c_prompt"),
    *("t_c_det3", "t_c_det80", "t_c_ground", "t_c_batch2"),
)
TRAIN_NAMES = ("t_c_train", "tiny_train", "tiny_prompt_train")

LAYOUTS = ("glip_t_a", "glip_t_b", "glip_t_c", "glip_l")
DTYPES = {"float32": torch.float32, "int64": torch.int64}
_PROMPT_ROWS = 1000  # rows of the release's tunable_linear, of which the first max_tokens are used
_held: "dict[tuple[str, bool], Loaded]" = {}


@dataclass(frozen=True)
class Case:
    """One stored run."""

    name: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def form(self) -> str:
        """Which model: tiny, tiny_nofuse, glip_t_a, glip_t_b, glip_t_c or glip_l."""
        return "tiny_nofuse" if "nofuse" in self.name else self.meta["model"]

    @property
    def prompt_offsets(self) -> bool:
        return "MODEL.DYHEAD.FUSE_CONFIG.ADD_LINEAR_LAYER" in self.meta["overrides"]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])


class Entry(NamedTuple):
    """One line of a list of the release's state dict."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    kind: str  # parameter or buffer


@dataclass(frozen=True)
class Loaded:
    """Our model with the synthetic weights, and the sha256 of those weights in the order of the list."""

    model: GLIP
    config: ModelConfig
    digest: str


def case_path(name: str) -> Path:
    """Where a case is; the big ones only on some machines."""
    places = [folder / f"{name}.npz" for folder in ((GOLDEN,) if name.startswith("tiny") else BIG_CASES)]
    return next((place for place in places if place.is_file()), places[-1])


def load_case(name: str) -> Case:
    with np.load(case_path(name)) as stored:
        arrays = {key: stored[key] for key in stored.files}
    return Case(name, json.loads(str(arrays.pop("meta"))), arrays)


def config_of(form: str, *, prompt_offsets: bool = False) -> ModelConfig:
    """The config of a form, from the YAML files that we ship."""
    config = load_config("tiny" if form.startswith("tiny") else form).model
    fusion = config.head.fusion and form != "tiny_nofuse"
    return replace(config, head=replace(config.head, fusion=fusion, prompt_offsets=prompt_offsets))


def release_entries(layout: str) -> list[Entry]:
    """What a full-size checkpoint of a layout lists."""
    lines = (GOLDEN / "state_dict" / f"{layout}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return [Entry(key, tuple(int(n) for n in shape.split(",") if n), dtype, kind) for key, shape, dtype, kind in rows]


def synthetic_state(form: str, config: ModelConfig) -> tuple[State, str]:
    """The release's state dict by the weight rule, and the sha256 of its parameters; "" for the tiny forms.

    Buffers get their type and shape and some numbers: the conversion must drop them.
    """
    if form.startswith("tiny"):
        state, digest = release_state(config), ""
    else:
        entries = release_entries(form)
        drawn, digest = _drawn(tuple(entry for entry in entries if entry.kind == "parameter"))
        buffers = [entry for entry in entries if entry.kind == "buffer"]
        numbers = (torch.arange(math.prod(one.shape), dtype=DTYPES[one.dtype]).reshape(one.shape) for one in buffers)
        state = drawn | dict(zip((one.key for one in buffers), numbers, strict=True))
    if config.head.prompt_offsets:  # in no list, so it is left out of the hash
        key = "rpn.tunable_linear.weight"
        state[key] = torch.from_numpy(weights.param(key, (_PROMPT_ROWS, config.language.hidden)))
    return state, digest


@lru_cache(maxsize=1)
def _drawn(entries: tuple[Entry, ...]) -> tuple[State, str]:
    """The parameters; GLIP-T B, C and C with a tuned prompt have the same ones, so they are drawn once."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as threads:
        values = dict(zip(entries, threads.map(lambda e: weights.param(e.key, e.shape), entries), strict=True))
    for entry, value in values.items():
        digest.update(entry.key.encode() + b"\0")
        digest.update(value.data)
    return {entry.key: torch.from_numpy(value) for entry, value in values.items()}, digest.hexdigest()


def loaded_model(form: str, *, prompt_offsets: bool = False) -> Loaded:
    """Our model with the release's synthetic weights, loaded as a checkpoint of the release is.

    It is kept for the next case; of the big ones one at a time, since GLIP-L alone takes 1.7 GB.
    """
    if (form, prompt_offsets) not in _held:
        if not form.startswith("tiny"):
            _held.clear()
            gc.collect()
        config = config_of(form, prompt_offsets=prompt_offsets)
        state, digest = synthetic_state(form, config)
        model = build(config)
        fit(model, from_foreign(state), GOLDEN)
        _held[form, prompt_offsets] = Loaded(model.eval(), config, digest)
    return _held[form, prompt_offsets]


def make_processor(case: Case, config: ModelConfig) -> Processor:
    """The processor a user gets, at the run's image size."""
    min_size, max_size = (int(side) for side in case.meta["resize"])
    sized = replace(config, image=replace(config.image, min_size=min_size, max_size=max_size))
    return Processor(sized, Tokenizer(ASSETS / BUNDLED))


def make_batch(case: Case, config: ModelConfig) -> Batch:
    """The run's images and captions as the network reads them."""
    count = len(case.meta["captions"])
    images = [Image.fromarray(case.arrays[f"image_{index}"]) for index in range(count)]
    return make_processor(case, config)(images, make_prompts(case))


def make_prompts(case: Case) -> list[Prompt]:
    """The prompts, written by us: captions of class names are not copied from the run but made from its classes."""
    captions, classes, spans = (case.meta.get(key) for key in ("captions", "classes", "char_spans"))
    if classes is not None:
        return [Prompt.from_names([clean_name(name) for name in classes])] * len(captions)
    per_caption = spans if len(captions) > 1 else [spans]
    return [Prompt.from_caption(caption, list(rows)) for caption, rows in zip(captions, per_caption, strict=True)]
