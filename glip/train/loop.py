"""Training: steps of batches in, a trained model out, with checkpoints, from one Experiment.

Read downhill: ``train`` is the loop; ``Run`` is what it moves, and what follows each step. A run that is killed at any
moment and started again resumes at its last checkpoint and ends as if it had never stopped.
"""

import copy
import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import torch

from glip.config import TrainConfig
from glip.data.loader import Step
from glip.errors import ConfigError, TrainingError
from glip.experiment import Experiment, to_dict, to_yaml
from glip.files import atomic_write, refuse_other_run
from glip.model.glip import GLIP
from glip.model.weights import fingerprint
from glip.signals import GracefulStop, Interrupted
from glip.train.checkpoint import BEST, LAST, Tree, capture, read_state, restore, write_state
from glip.train.distributed import ONE, Group, full_tensor, main_only, wrap_model
from glip.train.log import Progress, RunLog, Validation, summary_writer
from glip.train.optim import EMA, build_optimizer, rate_factor, set_rates, wise_ft
from glip.train.step import Outcome, Stepper, frozen_to_eval, prepare

# What may change when a run is resumed. Most of it never touches the numbers; micro_batch, checkpointing, compile and
# parallel (often changed with the machine) touch their rounding, micro_batch also batch norm and dropout.
MAY_CHANGE = (
    *("data.max_broken", "data.root", "data.validate", "data.workers"),
    *("model.inference", "model.license", "model.name", "model.trained_on"),
    *("train.checkpointing", "train.compile", "train.keep_every", "train.log_every", "train.max_bad_steps"),
    *("train.micro_batch", "train.output", "train.parallel", "train.save_every", "train.tensorboard"),
    *("train.validate_every", "train.validate_images"),
)


def train(
    experiment: Experiment,
    model: GLIP,
    steps: Callable[[int], Iterator[Step]],
    *,
    group: Group = ONE,
    contents: Mapping[str, str] = MappingProxyType({}),
    validate: Callable[[GLIP], Validation] | None = None,
    report: Callable[[str], None] = print,
) -> GLIP:
    """Train a model; a run found in the output folder is resumed where it stopped. Gives the finished model.

    The model that is validated and saved has the average of the weights (``train.ema``), mixed with the starting
    weights (``train.wise_ft``). The finished one is the state with the best validation, without a validation the last.

    Args:
        experiment: the resolved config; its ``train`` part is used here and all of it is written to the output.
        model: the model to start from; it is moved to the group's device and trained.
        steps: gives this process's batches of each step from a step on; step n must depend on the seed and n alone.
        group: the processes that train together.
        contents: fingerprint of each training set; a run is only resumed on the same data.
        validate: called in all processes every ``train.validate_every`` steps and at the end.
        report: receives a line every ``train.log_every`` steps.

    Raises:
        TrainingError: losses or gradients stayed non-finite.
        GlipError: the output folder holds a run of another config, or a setting that cannot work.
        OSError: a checkpoint cannot be written.
        Interrupted: SIGINT or SIGTERM came; the checkpoint is written.
    """
    config = experiment.train
    run = Run(experiment, model, group=group, contents=contents, validate=validate, report=main_only(group, report))
    with GracefulStop() as signals:
        if run.validation_due():  # a run that was stopped before it could
            run.run_validation()
        loader = steps(run.progress.step)
        for number in range(run.progress.step, config.steps):
            step = next(loader)
            factor = rate_factor(number, config.steps, config)
            set_rates(run.stepper.optimizer, factor)
            outcome = run.stepper(step.batches, stop=signals.number > 0)
            run.note(step, outcome, config.lr * factor)
            run.save_if_due(stopping=outcome.stopping)
            if outcome.stopping:
                raise Interrupted(signals.number or signal.SIGTERM, f"stopped after step {run.progress.step}")
            if run.validation_due():
                run.run_validation()
    return run.finish()


def check_experiment(experiment: Experiment, group: Group = ONE) -> None:
    """Refuse what cannot work before anything long begins.

    Raises:
        ConfigError: a batch size that the processes cannot share, or TensorBoard that is not installed.
        DataError: an output folder with a run of another config.
        CheckpointError: a checkpoint there that cannot be read.
    """
    config, path = experiment.train, Path(experiment.train.output, LAST)
    if config.batch_size % group.size:
        raise ConfigError(
            f"train.batch_size: {config.batch_size} images cannot be shared by {group.size} processes: give a multiple "
            f"of {group.size}"
        )
    if config.tensorboard:
        summary_writer()
    if path.is_file():
        _refuse_other(read_state(path, mapped=True), experiment, {})


def _refuse_other(state: Tree, experiment: Experiment, inputs: Tree) -> None:
    """Refuse to resume a run that is made from something else.

    ``train.steps`` may change as long as the steps already done, and the next one, have the same learning rate under
    both. Drops and the cosine are shares of the run, so this ends at the first drop, or with the warm-up.
    """
    before, now, done = state["made_from"], experiment.train, state["progress"]["step"]
    old = before["train"]["steps"]
    same_rates = old == now.steps or all(
        rate_factor(step, old, now) == rate_factor(step, now.steps, now) for step in range(done + 1)
    )
    may_change = (*MAY_CHANGE, "train.steps") if same_rates else MAY_CHANGE
    refuse_other_run(now.output, before, {**before, **to_dict(experiment), **inputs}, may_change=may_change)


class Run:
    """A training run: model, optimizer, average and counts; new, or as its last checkpoint has it."""

    def __init__(
        self,
        experiment: Experiment,
        model: GLIP,
        *,
        group: Group,
        contents: Mapping[str, str],
        validate: Callable[[GLIP], Validation] | None,
        report: Callable[[str], None],
    ) -> None:
        config = self.config = experiment.train
        self.group, self.report = group, report
        self.validate = validate if config.validate_every else None
        self.output = Path(config.output)
        self.finished = copy.deepcopy(model).eval()  # receives the weights that are validated and saved
        self.start = {name: value.clone() for name, value in model.state_dict().items()} if config.wise_ft else {}
        inputs = {"starting weights": fingerprint(self.start) if self.start else "", "training sets": dict(contents)}
        self.made_from = {**to_dict(experiment), **inputs}
        self.stepper = build_stepper(model, config, group)
        self.ema = EMA(model, config.ema) if config.ema else None
        torch.manual_seed(config.seed + group.rank)
        self.progress = Progress()
        self.lost = Counter[str](), 0, 0  # what this process skipped since the counts were last collected
        if (self.output / LAST).is_file():
            state = read_state(self.output / LAST)
            _refuse_other(state, experiment, inputs)
            self._resume(state)
        self.log: RunLog | None = None
        if group.main:
            with atomic_write(self.output / "experiment.yaml") as file:
                file.write(to_yaml(experiment))
            self.log = RunLog(self.output, config.steps, self.progress, group.device, tensorboard=config.tensorboard)

    def _resume(self, state: Tree) -> None:
        restore(state, self.stepper, self.stepper.model.state_dict(), self.ema)
        self.progress = progress = Progress(**state["progress"])
        self.report(f"resumed {self.output / LAST} at step {progress.step}")
        processes = len(state["random"])
        if processes != self.group.size:
            torch.manual_seed(self.config.seed + progress.step * self.group.size + self.group.rank)
            self.report(f"the run began with {processes} processes, now {self.group.size}: new random numbers")
        if progress.step >= self.config.steps:
            self.report(
                f"this run has finished its {self.config.steps} steps. To train longer, start a new run from its "
                f"model: train.start={self.output / 'model'} train.output={self.output}-2"
            )
        before, now = (
            (made_from["data"]["validate"], made_from["train"]["validate_images"])
            for made_from in (state["made_from"], self.made_from)
        )
        if self.validate and before == now:
            return
        if progress.best is not None:  # figures of other images cannot be compared
            self.report(
                f"the best so far ({progress.best:.3f}, step {progress.best_step}) is forgotten: data.validate or "
                "train.validate_images changed, or nothing is validated now"
            )
        progress.best, progress.best_step, progress.validated = None, 0, 0

    def note(self, step: Step, outcome: Outcome, rate: float) -> None:
        """Count a step; stop a run whose numbers stay non-finite."""
        progress, (skipped, broken, tried) = self.progress, self.lost
        progress.add(outcome)
        self.lost = skipped + Counter(step.skipped.counts), broken + len(step.broken), tried + step.tried
        if outcome.stepped and self.ema:
            self.ema.update(self.stepper.model)
        if self.log:
            self.log.images += outcome.images
        if progress.bad_in_row >= self.config.max_bad_steps:
            self._stop_as_bad(outcome, rate)
        if progress.step % self.config.log_every == 0 or progress.step == self.config.steps:
            self._collect()
            if self.log:
                self.report(self.log.row(progress, rate))
            progress.window = {}

    def save_if_due(self, *, stopping: bool) -> None:
        """Write last.pt every ``save_every`` steps, at the end, and before what may fail; and the states to keep.

        last.pt comes last: a run killed between the two repeats the step and writes the other one again.
        """
        step, config = self.progress.step, self.config
        kept = config.keep_every and step % config.keep_every == 0
        last = step % config.save_every == 0 or step == config.steps or stopping or self.validation_due()
        self.save(*[f"step-{step}.pt"] * bool(kept), *[LAST] * last)

    def validation_due(self) -> bool:
        """Whether to validate after this step: every ``validate_every`` and at the end."""
        step, config = self.progress.step, self.config
        due = self.validate and step > self.progress.validated
        return bool(due) and (step % config.validate_every == 0 or step == config.steps)

    def run_validation(self) -> None:
        """Validate the model as it would be saved now; keep the best."""
        assert self.validate is not None
        progress = self.progress
        with torch.random.fork_rng([self.group.device] if self.group.device.type == "cuda" else []):
            found = self.validate(self.current())
        self.finished.to("cpu")
        figure = self.group.gather(found.best)[0]
        better = math.isfinite(figure) and (progress.best is None or figure > progress.best)
        progress.validated = progress.step
        if better:
            progress.best, progress.best_step = figure, progress.step
        if self.log:
            self.report(self.log.validated(progress.step, found, best=better))
        self.save(*[BEST] * better, LAST)

    def save(self, *names: str) -> None:
        """Write checkpoints; all processes must call this."""
        if not names:
            return
        self._collect()
        weights = self.stepper.model.state_dict()
        state = capture(self.stepper, weights, asdict(self.progress), self.made_from, self.ema)
        for name in names if self.group.main else ():
            write_state(self.output / name, state)
        if self.log:
            self.log.flush()

    def current(self) -> GLIP:
        """The model as it would be saved now, in eval mode on the group's device; all processes must call this."""
        weights = self.stepper.model.state_dict() | (self.ema.weights if self.ema else {})
        return self._final_model({name: full_tensor(value) for name, value in weights.items()})

    def finish(self) -> GLIP:
        """Report what was skipped, and give the finished model: the best where there was a validation."""
        self._collect()
        progress = self.progress
        for line in progress.summary():
            self.report(line)
        if progress.best is None:
            return self.current()
        self.report(f"the model is that of step {progress.best_step}, which validated best ({progress.best:.3f})")
        state = read_state(self.output / BEST)
        return self._final_model(state["model"] | state["ema"])

    def _final_model(self, weights: dict[str, torch.Tensor]) -> GLIP:
        if self.start:
            weights = wise_ft(self.start, weights, self.config.wise_ft)
        self.finished.load_state_dict(weights)
        return self.finished.to(self.group.device)

    def _collect(self) -> None:
        """Add what the loaders of all processes lost to the counts; all processes must call this."""
        for skipped, broken, tried in self.group.gather(self.lost):
            self.progress.skipped = dict(Counter(self.progress.skipped) + skipped)
            self.progress.broken += broken
            self.progress.tried += tried
        self.lost = Counter(), 0, 0

    def _stop_as_bad(self, outcome: Outcome, rate: float) -> None:
        progress, count = self.progress, self.progress.bad_in_row
        progress.bad_in_row = 0  # so that the same command goes on after the bad steps
        self.save(LAST)
        raise TrainingError(
            f"losses or gradients were not finite in {count} steps in a row, up to step {progress.step} "
            f"({self.stepper.diagnosis(outcome)}; learning rate {rate:.2g}). They were skipped, and the weights before "
            f"them are in {str(self.output / LAST)!r}: start over in another train.output with a lower train.lr, a "
            "longer train.warmup or train.precision=float32; the same command goes on after them"
        )


def build_stepper(model: GLIP, config: TrainConfig, group: Group = ONE) -> Stepper:
    """A model ready for training: on its device, frozen, compiled and wrapped as the config says, with an optimizer."""
    model.to(group.device).train()
    frozen = config.freeze_language or config.bert_lr == 0  # at rate 0 its gradients would still count in the norm
    model.freeze(stages=config.frozen_stages, language=frozen)
    frozen_to_eval(model)
    prepare(model, config)
    module = wrap_model(model, group, config.parallel)  # before the optimizer: FSDP replaces the parameters
    optimizer = build_optimizer(
        model, lr=config.lr, bert_lr=config.bert_lr, text_lr=config.text_lr, weight_decay=config.weight_decay
    )
    return Stepper(model, module, optimizer, config, group)
