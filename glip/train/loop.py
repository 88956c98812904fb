"""Training: steps of batches in, a trained model out, with checkpoints, from one Experiment.

A run that is killed at any moment and started again resumes at its last checkpoint and ends as if it had never stopped.
"""

import copy
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch

from glip.config import TrainConfig
from glip.console import counted
from glip.data.loader import Step
from glip.data.sets import Validation
from glip.errors import ConfigError, DataError
from glip.experiment import Experiment, to_dict, to_yaml
from glip.files import atomic_write, refuse_other_run
from glip.model.glip import GLIP
from glip.model.weights import weights_fingerprint
from glip.signals import AGAIN, GracefulStop
from glip.train.checkpoint import BEST, LAST, Tree, read_progress, read_state, restore, save_state
from glip.train.distributed import ONE, Group, full_tensor, main_only, wrap_model
from glip.train.log import Progress, RunLog
from glip.train.loggers import Loggers, check_loggers
from glip.train.optim import EMA, build_optimizer, rate_factor, set_rates, wise_ft
from glip.train.step import Outcome, Stepper, frozen_to_eval, prepare

# What may change when a run is resumed. Most of it never touches the numbers; micro_batch, checkpointing, compile and
# parallel (often changed with the machine) touch their rounding, micro_batch also batch norm and dropout.
MAY_CHANGE = (
    *("data.max_broken", "data.root", "data.validate", "data.workers"),
    *("model.inference", "model.license", "model.name", "model.thresholds", "model.trained_on"),
    *("train.checkpointing", "train.compile", "train.final", "train.keep_every", "train.log_every", "train.loggers"),
    *("train.max_bad_steps", "train.micro_batch", "train.output", "train.parallel", "train.save_every"),
    *("train.validate_every", "train.validate_images"),
)


def check_experiment(experiment: Experiment, group: Group = ONE) -> None:
    """Refuse what cannot work before anything long begins.

    Raises:
        ConfigError: a batch size that the processes cannot share, or a logger that is not installed.
        DataError: an output folder with a run of another config.
        CheckpointError: a checkpoint there that cannot be read.
    """
    config, path = experiment.train, Path(experiment.train.output, LAST)
    if config.batch_size % group.size:
        raise ConfigError(
            f"train.batch_size: {config.batch_size} images cannot be shared by {group.size} processes: give a multiple "
            f"of {group.size}"
        )
    check_loggers(config.loggers)
    if path.is_file():
        _refuse_other(read_state(path, mapped=True), experiment, {})


def _refuse_other(state: Tree, experiment: Experiment, inputs: Tree) -> None:
    """Refuse to resume a run that is made from something else.

    ``train.steps`` may change as long as the steps already done, and the next one, have the same learning rate under
    both. Drops and the cosine are shares of the run, so this ends at the first drop, or with the warm-up.
    """
    before, now = state["made_from"], experiment.train
    done, old = read_progress(Path(now.output, LAST), state, Progress).step, before["train"]["steps"]
    same_rates = old == now.steps or all(
        rate_factor(step, old, now) == rate_factor(step, now.steps, now) for step in range(done + 1)
    )
    may_change = (*MAY_CHANGE, "train.steps")
    refuse_other_run(now.output, before, {**before, **to_dict(experiment), **inputs}, may_change=may_change)
    if not same_rates:
        raise DataError(
            f"{now.output!r} has done {done} of {old} steps, and train.steps={now.steps} would have given them other "
            f"learning rates: {f'keep train.steps={old}' if done < old else _train_longer(now.output)}"
        )


def _train_longer(output: str) -> str:
    """How to go on from a finished run, with the first output folder that is free."""
    path = Path(output)
    free = next(name for number in count(2) if not Path(name := f"{path}-{number}").exists())
    changes = shlex.join([f"train.start={path / 'model'}", f"train.output={free}"])
    return f"to train longer start a new run from its model, with the same command and {changes}"


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


@dataclass
class TrainRun:
    """A training run, new or as the last checkpoint in the output folder has it; called, it trains to the end.

    The model that is validated and saved has the average of the weights (``train.ema``), mixed with the starting
    weights (``train.wise_ft``). The finished one is the state with the best validation, or as ``train.final`` says the
    last one, as without a validation.

    Raises:
        GlipError: the output folder holds a run of another config, or a setting that cannot work.
    """

    experiment: Experiment  # its train part is used here, and all of it is written to the output
    model: GLIP  # to start from; it is moved to the group's device and trained
    steps: Callable[[int], Iterator[Step]]  # from a step on; step n depends on the seed and n alone
    group: Group = ONE
    contents: Mapping[str, str] = field(default_factory=dict)  # fingerprints of the training sets, the same to resume
    validate: Callable[[GLIP], Validation] | None = None  # called in all processes
    report: Callable[[str], None] = print

    def __post_init__(self) -> None:
        config, group = self.experiment.train, self.group
        self.config, self.report, self.output = config, main_only(group, self.report), Path(config.output)
        self.validate = self.validate if config.validate_every else None
        self.finished = copy.deepcopy(self.model).eval()  # receives the weights that are validated and saved
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()} if config.wise_ft else {}
        inputs = {
            "starting weights": weights_fingerprint(self.start) if self.start else "",
            "training sets": self.contents,
        }
        self.made_from = {**to_dict(self.experiment), **inputs}
        self.stepper = build_stepper(self.model, config, group)
        self.ema = EMA(self.model, config.ema) if config.ema else None
        torch.manual_seed(config.seed + group.rank)
        self.progress = Progress()
        self.lost = Counter[str](), 0, 0  # what this process skipped since the counts were last collected
        if (self.output / LAST).is_file():
            state = read_state(self.output / LAST)
            _refuse_other(state, self.experiment, inputs)
            self._resume(state)
        self.log: RunLog | None = None
        if group.main:
            with atomic_write(self.output / "experiment.yaml") as file:
                file.write(to_yaml(self.experiment))
            settings = to_dict(self.experiment)
            loggers = Loggers(config.loggers, self.output, settings, self.progress.step, self.report)
            self.log = RunLog(self.output, config.steps, self.progress, group.device, loggers)

    def _resume(self, state: Tree) -> None:
        restore(self.output / LAST, state, self.stepper, self.model.state_dict(), self.ema)
        self.progress = progress = read_progress(self.output / LAST, state, Progress)
        self.report(f"resumed {self.output / LAST} at step {progress.step}")
        processes = len(state["random"])
        if processes != self.group.size:
            torch.manual_seed(self.config.seed + progress.step * self.group.size + self.group.rank)
            self.report(f"the run began with {processes} processes, now {self.group.size}: new random numbers")
        if progress.step >= self.config.steps:
            steps = counted(self.config.steps, "step")
            self.report(f"this run has finished its {steps}; {_train_longer(self.config.output)}")
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

    def __call__(self) -> GLIP:
        """Train to the end; gives the finished model.

        Raises:
            TrainingError: losses or gradients stayed non-finite.
            OSError: a checkpoint cannot be written.
            Interrupted: SIGINT or SIGTERM came; the checkpoint is written.
        """
        config, progress = self.config, self.progress
        with GracefulStop() as signals, closing(self.log) if self.log else nullcontext():
            if self._validation_due():  # a run that was stopped before it could
                self._validate()
            loader = self.steps(progress.step)
            for number in range(progress.step, config.steps):
                step = next(loader)
                factor = rate_factor(number, config.steps, config)
                set_rates(self.stepper.optimizer, factor)
                outcome = self.stepper(step.batches, stop=signals.number > 0)
                self._note(step, outcome, config.lr * factor)
                self._save_if_due(stopping=outcome.stopping)
                signals.stop_if(outcome.stopping, f"step {progress.step} is done and saved; {AGAIN}")
                if self._validation_due():
                    self._validate()
        self._collect()
        for line in progress.summary():
            self.report(line)
        self.kept_step = progress.step
        if progress.best is None or config.final == "last":
            return self._current()
        self.kept_step = progress.best_step
        self.report(f"the model is that of step {progress.best_step}, which validated best ({progress.best:.3f})")
        state = read_state(self.output / BEST)
        return self._final_model(state["model"] | state["ema"])

    def _note(self, step: Step, outcome: Outcome, rate: float) -> None:
        """Count a step; stop a run whose numbers stay non-finite."""
        progress, config, (skipped, broken, tried) = self.progress, self.config, self.lost
        progress.add(outcome)
        self.lost = skipped + Counter(step.skipped.counts), broken + len(step.broken), tried + step.tried
        if outcome.stepped and self.ema:
            self.ema.update(self.model)
        if self.log:
            self.log.images += outcome.images
        if progress.bad_in_row >= config.max_bad_steps:
            in_row, progress.bad_in_row = progress.bad_in_row, 0  # so that the same command goes on after the bad steps
            self._save(LAST)
            self.stepper.stop_if_bad(outcome, in_row, rate)
        if progress.step % config.log_every == 0 or progress.step == config.steps:
            self._collect()
            if self.log:
                self.report(self.log.row(rate))
            progress.window = {}

    def _save_if_due(self, *, stopping: bool) -> None:
        """Write last.pt every ``save_every`` steps, at the end, and before what may fail; and the states to keep.

        last.pt comes last: a run killed between the two repeats the step and writes the other one again.
        """
        step, config = self.progress.step, self.config
        kept = config.keep_every and step % config.keep_every == 0
        last = step % config.save_every == 0 or step == config.steps or stopping or self._validation_due()
        self._save(*[f"step-{step}.pt"] * bool(kept), *[LAST] * last)

    def _validation_due(self) -> bool:
        """Whether to validate after this step: every ``validate_every`` and at the end."""
        step, config = self.progress.step, self.config
        due = self.validate and step > self.progress.validated
        return bool(due) and (step % config.validate_every == 0 or step == config.steps)

    def _validate(self) -> None:
        """Validate the model as it would be saved now; keep the best."""
        assert self.validate is not None
        progress = self.progress
        with torch.random.fork_rng([self.group.device] if self.group.device.type == "cuda" else []):
            found = self.validate(self._current())
        self.finished.to("cpu")
        figure = self.group.gather(found.best)[0]
        better = math.isfinite(figure) and (progress.best is None or figure > progress.best)
        progress.validated = progress.step
        if better:
            progress.best, progress.best_step = figure, progress.step
        if self.log:
            self.report(self.log.validated(found, best=better))
        self._save(*[BEST] * better, LAST)

    def _save(self, *names: str) -> None:
        """Write checkpoints; all processes must call this."""
        if not names:
            return
        self._collect()
        paths = [self.output / name for name in names]
        save_state(paths, self.stepper, self.model.state_dict(), self.progress, self.made_from, self.ema)

    def _current(self) -> GLIP:
        """The model as it would be saved now, in eval mode on the group's device; all processes must call this."""
        weights = self.model.state_dict() | (self.ema.weights if self.ema else {})
        return self._final_model({name: full_tensor(value) for name, value in weights.items()})

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
