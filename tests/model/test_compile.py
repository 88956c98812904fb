"""A compiled detector: one program for many image sizes and prompts, and the same results.

In a process of its own: torch.compile does not see through the checker of shapes.
"""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from small import ROOT

from glip.detector import Detector

SIZES = ((320, 448), (320, 416), (448, 320), (320, 320), (320, 544), (544, 320))
PROMPTS = ("a", "a red bus. a cyclist", "dog. cat. zebra. a traffic light. a tree. a house")
COUNT = 4


@pytest.mark.slow
def test_six_sizes_and_three_prompts_compile_at_most_four_times():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 2 <= int(done.stdout) <= COUNT


def check() -> None:
    """Compare a compiled with a plain detector, and print how often was compiled."""
    import torch
    from alike import assert_alike
    from measuring import noise
    from small import VOCABULARY
    from torch._dynamo.testing import CompileCounter

    import glip
    from glip.model.glip import build
    from glip.text.tokens import Tokenizer

    counter, compile_ = CompileCounter(), torch.compile
    torch.compile = lambda part, **options: compile_(part, backend=counter, fullgraph=True, **options)  # type: ignore
    config = glip.load_config("tiny").model
    config = replace(config, inference=replace(config.inference, threshold=0.0, candidate_threshold=0.0))
    torch.manual_seed(0)
    model = build(config)
    with torch.no_grad():
        model.tokens.log_scale.fill_(-3.0)
        model.boxes.centerness.weight.mul_(50)
    plain, compiled = (Detector(model, config, Tokenizer(VOCABULARY), "cpu", compile=on) for on in (False, True))
    for detector in (plain, compiled):
        detector.processor.min_size, detector.processor.max_size = 320, 544
    for prompt in PROMPTS:
        for size in SIZES:
            assert_alike(compiled(noise(size), prompt), plain(noise(size), prompt))
    print(counter.frame_count)


if __name__ == "__main__":
    check()
