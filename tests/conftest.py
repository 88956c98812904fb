"""What every test gets: a fixed seed, one thread, no network, and a tiny model with random weights."""

import os
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

if find_spec("jaxtyping"):
    import jaxtyping
if find_spec("beartype"):
    jaxtyping.install_import_hook("glip", "shape_check.check")  # before glip is imported

from glip.config import ModelConfig
from glip.detector import Detector
from glip.model.glip import build
from glip.text.tokens import Tokenizer
from glip.train.start import load_config

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "glip" / "assets" / "glip-nano"  # BERT's vocabulary; the weights beside it may be absent

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)  # tiny models: a second thread only waits
settings.register_profile("glip", max_examples=40, deadline=None, derandomize=True, database=None)
settings.load_profile("glip")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="where tests marked gpu run: cuda, cuda:1, or cpu to try them")


@pytest.fixture(autouse=True)
def checked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shapes and types are checked, but where a test gives wrong ones on purpose or the checker would disturb."""
    wrong = request.node.get_closest_marker("unchecked") is not None
    if find_spec("jaxtyping"):
        jaxtyping.config.update("jaxtyping_disable", wrong)
    yield
    if find_spec("jaxtyping"):
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device of tests marked gpu."""
    chosen = str(request.config.getoption("--device"))
    if chosen.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return chosen


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:  # workers talk through local sockets
            raise OSError(f"tests have no network, but something connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def peft_for_lora(request: pytest.FixtureRequest) -> None:
    if "lora" in request.node.name and "needs_peft" not in request.node.name:
        pytest.importorskip("peft", reason="peft is not installed")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(VOCABULARY)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """The tiny model with thresholds so low that random weights find something."""
    config = load_config("tiny").model
    inference = replace(config.inference, threshold=0.0, candidate_threshold=0.0, candidates_per_level=200)
    return replace(config, inference=inference)


@pytest.fixture(scope="session")
def tiny_detector(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Detector:
    """Random weights, with louder heads: scores differ clearly between places and phrases."""
    torch.manual_seed(0)
    model = build(tiny_config)
    with torch.no_grad():
        model.tokens.log_scale.fill_(-3.0)
        model.tokens.bias.fill_(-1.0)
        model.boxes.box.weight.mul_(20)
        model.boxes.centerness.weight.mul_(50)
    return Detector(model, tiny_config, tokenizer, "cpu")


@pytest.fixture(scope="session")
def tiny_folder(tiny_detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as ``--model`` takes it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_detector.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def drawn_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with some of the drawn sets of configs/datasets.yaml, six small images each."""
    from draw_world import write_world
    from drawn_world.scenes import Split, World

    root = tmp_path_factory.mktemp("drawn")
    for split in get_args(Split):
        world = World(split, sides=(112, 140), plain=split != "train")
        write_world(root / "world" / split, world, 6, format="png")
    return root


@pytest.fixture(scope="session")
def image() -> Image.Image:
    """An image with something to look at: blocks of colour and noise, 150 x 110."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 80, (110, 150, 3))
    for _ in range(8):
        x, y, width, height = rng.integers(0, 110), rng.integers(0, 80), rng.integers(20, 60), rng.integers(20, 60)
        values[y : y + height, x : x + width] = rng.integers(0, 255, 3)
    return Image.fromarray(values.astype(np.uint8))
