"""Runs a stored case through our model and writes down every stage under the names the release's run has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from golden_cases import Case, Loaded, loaded_model, make_batch, make_prompts
from torch import Tensor, nn

from glip.config import InferenceConfig
from glip.geometry.assign import assign
from glip.loss import Criterion, Losses
from glip.model.glip import GLIP, TowerStage
from glip.model.release import our_name
from glip.postprocess import postprocess
from glip.structures import Batch, Detections, Outputs, Target
from glip.text.tokens import positive_map


@dataclass(frozen=True)
class Run:
    """A case and what we compute for it; ``arrays`` are named as in the case and are on the CPU."""

    case: Case
    loaded: Loaded
    batch: Batch
    outputs: Outputs
    detections: list[Detections]
    arrays: dict[str, Tensor]


@dataclass(frozen=True)
class TrainingRun:
    """A training case and what we compute for it; gradients are named as in the case."""

    case: Case
    batch: Batch
    outputs: Outputs
    owners: tuple[Tensor, ...]
    losses: Losses
    gradients: dict[str, Tensor]


def run_case(case: Case, device: str = "cpu") -> Run:
    """Everything an inference case stores, computed on a device in the precision that is set around the call."""
    loaded = loaded_model(case.form, prompt_offsets=case.prompt_offsets)
    model = loaded.model.to(device)
    batch = make_batch(case, loaded.config).to(device)
    recorder = Recorder(model, batch.text.attention_mask)
    with torch.no_grad():
        outputs = model(batch)
    recorder.close()
    recorder.outputs(outputs)
    images = batch.images
    detections = postprocess(outputs, batch.text, images.resized, images.original, InferenceConfig())
    return Run(case, loaded, batch, outputs, detections, recorder.arrays)


def run_training_case(case: Case, device: str = "cpu") -> TrainingRun:
    """Losses and gradients as the case stores them: the loss path with every stochastic layer switched off."""
    loaded = loaded_model(case.form, prompt_offsets=case.prompt_offsets)
    model = loaded.model.to(device)
    batch = make_batch(case, loaded.config).to(device)
    targets = tuple(target.to(device) for target in make_targets(case, batch))
    model.zero_grad(set_to_none=True)
    outputs = model(batch)
    losses = Criterion()(outputs, targets, batch.text.attention_mask)
    losses.total.backward()
    fused = loaded.config.head.fusion
    gradients = {key: release_gradient(model, key, fused=fused) for key in case.arrays["grad_keys"].tolist()}
    model.zero_grad(set_to_none=True)
    lengths = [height * width for height, width in outputs.level_sizes]
    owners = tuple(assign(outputs.anchors, target.boxes, lengths) for target in targets)
    return TrainingRun(case, batch, outputs, owners, losses, gradients)


def make_targets(case: Case, batch: Batch) -> tuple[Target, ...]:
    """The boxes of the case, each named by its own phrase of the caption."""
    targets = []
    for index, rows in enumerate(batch.text.phrase_tokens):
        boxes = case.tensor(f"gt_{index}_boxes")
        targets.append(Target(boxes, positive_map(rows.cpu(), [(number,) for number in range(len(boxes))])))
    assert len(make_prompts(case)) == len(targets)
    return tuple(targets)


def release_gradient(model: GLIP, key: str, *, fused: bool) -> Tensor:
    """The gradient of a parameter that the release calls ``key``."""
    name = our_name(key, fused=fused)
    if name.startswith("boxes.scales."):
        gradient = model.boxes.scales.grad
        assert gradient is not None
        return gradient[int(name.rsplit(".", 1)[1])].cpu().clone()
    gradient = model.get_parameter(name).grad
    assert gradient is not None, f"{name} has no gradient"
    return gradient.cpu().clone()


class Recorder:
    """Listens to a model's parts while it runs.

    The release's head has modules fusion, text layer, dynamic block where ours has one stage: stage i gives
    ``tower_3i``, ``tower_3i+1`` and ``tower_3i+2``. Without fusion there is the dynamic block alone, ``tower_i``.
    """

    def __init__(self, model: GLIP, mask: Tensor) -> None:
        self.mask = mask
        self.arrays: dict[str, Tensor] = {}
        self._sizes: list[torch.Size] = []
        self._hooks: list[Any] = []
        self._listen(model.vision.get_submodule("stages.0"), self._stage_one)
        self._listen(model.vision, partial(self._maps, "body_c"))
        self._listen(model.pyramid, self._pyramid)
        self._listen(model.language, self._language)
        enter = model.tower[0].register_forward_pre_hook(lambda _module, inputs: self._entrance(inputs[1]))
        self._hooks.append(enter)
        for number, stage in enumerate(model.tower):
            self._watch(stage, number)
        self._listen(model.tower[-1], self._exit)

    def close(self) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()

    def outputs(self, outputs: Outputs) -> None:
        """Split the outputs into the release's five maps."""
        start, batch = 0, len(outputs.token_logits)
        for level, (height, width) in enumerate(outputs.level_sizes, start=3):
            part = slice(start, start + height * width)
            self._keep(f"logits_p{level}", outputs.token_logits[:, part] * self.mask[:, None])
            deltas = outputs.box_deltas[:, part].transpose(1, 2)
            self._keep(f"bbox_p{level}", deltas.reshape(batch, 4, height, width))
            self._keep(f"ctr_p{level}", outputs.centerness[:, part].reshape(batch, 1, height, width))
            self._keep(f"anchors_p{level}", outputs.anchors[part])
            start += height * width

    def _watch(self, stage: TowerStage, number: int) -> None:
        if stage.fusion is None or stage.text is None:
            self._listen(stage.image, partial(self._maps, f"tower_{number}_p"))
            self._listen(stage, lambda out: self._hidden(f"tower_{number}", out[1]))
            return
        fusion, text, image = (f"tower_{3 * number + step}" for step in range(3))
        self._listen(stage.fusion, partial(self._fused, fusion, text))
        self._listen(stage.text, partial(self._hidden, text))
        self._listen(stage.text, partial(self._hidden, image))
        self._listen(stage.image, partial(self._maps, f"{image}_p"))

    def _listen(self, module: nn.Module, keep: Callable[[Any], None]) -> None:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            keep(output)

        self._hooks.append(module.register_forward_hook(hook))

    def _stage_one(self, output: Tensor) -> None:
        self._keep("body_c2", output.permute(0, 3, 1, 2))

    def _pyramid(self, levels: Sequence[Tensor]) -> None:
        self._sizes = [level.shape for level in levels]
        self._maps("fpn_p", levels)

    def _language(self, hidden: Tensor) -> None:
        self._hidden("lang", hidden)
        self.arrays["lang_embedded"] = kept = self.arrays["lang_hidden"]
        self.arrays["lang_aggregate"] = kept.sum(1) / self.mask.cpu().sum(1, keepdim=True)

    def _entrance(self, hidden: Tensor) -> None:
        self._hidden("head_in", hidden)
        self.arrays["head_in_embedded"] = self.arrays["head_in_hidden"]

    def _exit(self, output: Any) -> None:
        self._maps("tower_out_p", output[0])
        self._hidden("tower_out", output[1])

    def _fused(self, fusion: str, text: str, output: tuple[Tensor, Tensor]) -> None:
        flat = output[0].transpose(1, 2)
        pieces = flat.split([size[2] * size[3] for size in self._sizes], 2)
        levels = [piece.reshape(size) for piece, size in zip(pieces, self._sizes, strict=True)]
        self._maps(f"{fusion}_p", levels)
        self._maps(f"{text}_p", levels)
        self._hidden(fusion, output[1])

    def _maps(self, prefix: str, levels: Sequence[Tensor]) -> None:
        for level, x in enumerate(levels, start=3):
            self._keep(f"{prefix}{level}", x)

    def _hidden(self, name: str, hidden: Tensor) -> None:
        """Valid tokens only: the run holds zeros at the others."""
        self._keep(f"{name}_hidden", hidden * self.mask[..., None])

    def _keep(self, name: str, values: Tensor) -> None:
        self.arrays[name] = values.detach().cpu()
