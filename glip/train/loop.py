"""Training: steps of batches in, a stepped model out, with checkpoints; from one Experiment.

Read downhill: ``train`` is the loop; ``Run`` is what it moves, and what each step is followed by. A run that is killed
at any moment and started again goes on at its last checkpoint and ends as if it had never stopped.
"""

import copy
import math
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from glip.config import TrainConfig
from glip.data.loader import Step
from glip.errors import ConfigError, TrainingError
from glip.experiment import Experiment, to_yaml
from glip.model.glip import GLIP
from glip.model.weights import fingerprint
from glip.signals import GracefulStop, Interrupted
from glip.train.averages import RunningMean, State, wise_ft
from glip.train.checkpoint import (
    BEST,
    LAST,
    Parts,
    Progress,
    capture,
    random_states,
    read_state,
    restore,
    restore_random,
    write_atomically,
    write_state,
)
from glip.train.distributed import Group, full_tensor, main_only, wrap_model
from glip.train.log import RunLog, Validation
from glip.train.optim import build_optimizer, rate_factor, set_rates
from glip.train.resume import config_text, refuse_other_contents, same_validation
from glip.train.settings import check_experiment, check_folder
from glip.train.step import Outcome, Stepper

ONE = Group()


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

    What is validated and shipped has the running mean of the weights where ``train.ema`` asks for it, mixed with the
    starting weights at ``train.wise_ft``. Shipped is the state that validated best, without a validation the last.

    Args:
        experiment: the resolved config; its ``train`` part is used here and all of it is written to the output.
        model: the model to start from; it is moved to the group's device and trained.
        steps: gives this process's batches of each step from a step on; step n must depend on the seed and n alone.
        group: the processes that train together.
        contents: tells what is in each training set from what was in it; a run goes on with the same only.
        validate: called in all processes alike every ``train.validate_every`` steps and at the end.
        report: receives a line every ``train.log_every`` steps.

    Raises:
        TrainingError: losses or gradients stayed non-finite.
        ValueError: the output folder holds a run of another config, or a setting that cannot work.
        OSError: a checkpoint cannot be written.
        Interrupted: SIGINT or SIGTERM came; the checkpoint is written.
    """
    settings = experiment.train
    run = Run(experiment, model, group=group, contents=contents, validate=validate, report=report)
    with GracefulStop() as wish:
        run.validate_if_due()  # a run that was stopped before it could
        numbers = range(run.progress.step, settings.steps)
        for number, step in zip(numbers, steps(run.progress.step), strict=False):
            factor = rate_factor(
                number, steps=settings.steps, warmup=settings.warmup, schedule=settings.schedule, drops=settings.drops
            )
            set_rates(run.parts.optimizer, factor)
            outcome = run.stepper(step, stop=wish.number > 0)
            run.note(step, outcome, settings.lr * factor)
            if outcome.stopping:
                run.save(*dict.fromkeys((*run.due(), LAST)))
                raise Interrupted(wish.number or signal.SIGTERM, f"stopped after step {run.progress.step}")
            run.save(*run.due())
            run.validate_if_due()
    if run.progress.step < settings.steps:
        raise TrainingError(f"the loader ended at step {run.progress.step} of {settings.steps}: give it all steps")
    return run.finish()


class Run:
    """A training on its way: model, optimizer, running mean and counts; new, or as its last checkpoint has it."""

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
        settings = self.settings = experiment.train
        check_experiment(experiment, group)
        self.experiment, self.group, self.contents, self.validate = experiment, group, dict(contents), validate
        self.report = main_only(group, report)
        check_folder(experiment)
        self.output = Path(settings.output)
        self._clear_partial()
        self.finished = copy.deepcopy(model).eval()  # receives the weights that are validated and shipped
        self.start: State = {n: v.clone() for n, v in model.state_dict().items()} if settings.wise_ft else {}
        self.mark = fingerprint(self.start) if self.start else ""
        module = prepare(model, settings, group)
        optimizer = build_optimizer(
            model,
            lr=settings.lr,
            bert_lr=settings.bert_lr,
            text_lr=settings.text_lr,
            weight_decay=settings.weight_decay,
        )
        self.stepper = Stepper(
            model, module, optimizer=optimizer, group=group, clip=settings.clip, precision=settings.precision
        )
        mean = RunningMean(model, settings.ema) if settings.ema else None
        self.parts = Parts(model, optimizer, self.stepper.scaler, mean, group)
        self.progress, other_validation = self._begin()
        self.saved = self.progress.step  # the step that last.pt is of
        self.log = self._open_log() if group.main else None
        if other_validation:
            self._forget_validation()

    def note(self, step: Step, outcome: Outcome, rate: float) -> None:
        """Take in what a step gave; stop a run whose numbers stay non-finite."""
        progress = self.progress
        progress.step += 1
        progress.skipped_steps += not outcome.stepped
        progress.overflows += outcome.overflow
        progress.bad_in_row = 0 if outcome.stepped or outcome.overflow else progress.bad_in_row + 1
        if outcome.stepped and self.parts.mean:
            self.parts.mean.update(self.parts.model)
        self._count(step)
        if self.log:
            self.log.add(outcome, progress)
        if progress.bad_in_row >= self.settings.max_bad_steps:
            self._stop_as_bad(outcome, rate)
        if progress.step % self.settings.log_every == 0 or progress.step == self.settings.steps:
            summed = self._summed()
            if self.log:
                self.report(self.log.row(summed, rate))
            progress.window = {}

    def validate_if_due(self) -> None:
        """Validate what would be shipped now, once every ``validate_every`` steps; keep the best.

        Before it last.pt is written, so that a validation that fails loses no step; after it again, with the result.
        """
        step, every = self.progress.step, self.settings.validate_every
        due = every and (step % every == 0 or step == self.settings.steps)
        if not self.validate or not due or not step or self.progress.validated == step:
            return
        if self.saved != step:
            self.save(LAST)
        before = random_states(self.group.device)
        found = self.validate(self.current())
        self.finished.to("cpu")
        restore_random(before, self.group.device)
        figure = self.group.gather(found.best)[0]
        better = math.isfinite(figure) and (self.progress.best is None or figure > self.progress.best)
        self.progress.validated = step
        if better:
            self.progress.best, self.progress.best_step = figure, step
        if self.log:
            self.report(self.log.validated(step, found, best=better))
        self.save(*[BEST] * better, LAST)

    def due(self) -> list[str]:
        """The checkpoints to write after this step: what is kept, and last.pt every ``save_every`` and at the end.

        last.pt comes last: a run killed between the two repeats the step, and writes the other anew.
        """
        step, settings = self.progress.step, self.settings
        last = step % settings.save_every == 0 or step == settings.steps
        kept = settings.keep_every and step % settings.keep_every == 0
        return [f"step-{step}.pt"] * bool(kept) + [LAST] * last

    def save(self, *names: str) -> None:
        """Write checkpoints; all processes must ask."""
        if not names:
            return
        state = capture(
            self.parts,
            self._summed(),
            config=config_text(self.experiment),
            start=self.mark,
            contents=self.contents,
        )
        for name in names if self.group.main else ():
            write_state(self.output / name, state)
        if LAST in names:
            self.saved = self.progress.step
        if self.log:
            self.log.flush()

    def current(self) -> GLIP:
        """The model as it would be shipped now, in eval mode on the group's device; all processes must ask."""
        weights = self.parts.model.state_dict() | (self.parts.mean.means if self.parts.mean else {})
        return self._fill({name: full_tensor(value) for name, value in weights.items()}).to(self.group.device)

    def finish(self) -> GLIP:
        """Tell what was left out, and give the model that is shipped: the best where there was a validation."""
        self._tell_left_out()
        progress, path = self.progress, self.output / BEST
        last = self.current()
        if progress.best is None:
            return last
        state = read_state(path) if path.is_file() else None
        if state is None or state["progress"]["step"] != progress.best_step:
            found = "not there" if state is None else f"of step {state['progress']['step']}"
            self.report(
                f"step {progress.best_step} validated best ({progress.best:.3f}), but {str(path)!r} is {found}: the "
                f"model is that of step {progress.step}, the last"
            )
            return last
        self.report(f"the model is that of step {progress.best_step}, which validated best ({progress.best:.3f})")
        return self._fill(state["model"] | state["mean"])

    def _fill(self, weights: State) -> GLIP:
        if self.start:
            weights = wise_ft(self.start, weights, self.settings.wise_ft)
        self.finished.load_state_dict(weights)
        return self.finished

    def _tell_left_out(self) -> None:
        progress = self._summed()
        if progress.skipped:
            listed = ", ".join(f"{count} x {reason}" for reason, count in progress.skipped.items())
            self.report(f"boxes left out in this run: {listed}")
        if progress.broken:
            self.report(f"samples that could not be used: {progress.broken} of {progress.tried} tried")
        if progress.skipped_steps:
            scaled = f", {progress.overflows} of them to lower the loss scale" if progress.overflows else ""
            self.report(f"steps skipped: {progress.skipped_steps} of {progress.step}{scaled}")

    def _begin(self) -> tuple[Progress, bool]:
        """What the run has done so far, and whether its validations were others than those to come."""
        path = self.output / LAST
        if not path.is_file():
            seed_all(self.settings.seed + self.group.rank)
            return Progress(), False
        state = read_state(path)
        refuse_other_contents(state["contents"], self.contents, self.output)
        if state["start"] != self.mark:
            raise ConfigError(
                f"train.wise_ft mixes in the weights that the run in {str(self.output)!r} began with, but "
                f"train.start={self.settings.start!r} now gives others: bring those back, or set train.output to "
                "another folder"
            )
        progress = restore(state, self.parts, path)
        if len(state["random"]) != self.group.size:
            seed_all(self.settings.seed + progress.step * self.group.size + self.group.rank)
            self.report(f"{len(state['random'])} processes began the run, now {self.group.size}: new random numbers")
        self.report(f"resumed {path} at step {progress.step}")
        if progress.step >= self.settings.steps:
            self.report(
                f"all {self.settings.steps} steps are done and nothing is trained: raise train.steps to go on, or set "
                "train.output to another folder to begin anew"
            )
        validating = self.validate is not None and self.settings.validate_every > 0
        return progress, not validating or not same_validation(state["config"], self.experiment)

    def _clear_partial(self) -> None:
        """Remove what a kill in the middle of a write has left."""
        for file in self.output.glob(".*.partial") if self.group.main else ():
            file.unlink(missing_ok=True)

    def _forget_validation(self) -> None:
        """Figures of other sets cannot be compared, and without a validation the last state is what is shipped."""
        progress = self.progress
        if progress.best is not None:
            self.report(
                f"the best so far ({progress.best:.3f}, step {progress.best_step}) is forgotten: data.validate "
                "or train.validate_images is another now, or nothing is validated any more"
            )
        progress.best, progress.best_step, progress.validated = None, 0, 0

    def _open_log(self) -> RunLog:
        text = to_yaml(self.experiment).encode()
        write_atomically(self.output / "experiment.yaml", lambda file: file.write(text))
        return RunLog(
            self.output,
            steps=self.settings.steps,
            start=self.progress.step,
            validated=self.progress.validated,
            device=self.group.device,
            tensorboard=self.settings.tensorboard,
        )

    def _count(self, step: Step) -> None:
        self.progress.tried += step.tried
        self.progress.broken += len(step.broken)
        for reason, count in step.skipped.counts.items():
            self.progress.skipped[reason] = self.progress.skipped.get(reason, 0) + count

    def _summed(self) -> Progress:
        """The progress with what the loaders of all processes told; all processes must ask."""
        own = self.progress
        told = self.group.gather((own.skipped, own.broken, own.tried))
        skipped: Counter[str] = Counter()
        for counts, _, _ in told:
            skipped.update(counts)
        broken, tried = sum(count for _, count, _ in told), sum(count for _, _, count in told)
        return replace(own, skipped=dict(skipped), broken=broken, tried=tried)

    def _stop_as_bad(self, outcome: Outcome, rate: float) -> None:
        progress, count = self.progress, self.progress.bad_in_row
        progress.bad_in_row = 0  # the same command then goes on behind the bad steps
        self.save(LAST)
        terms = [f"{name} {value:g}" for name, value in outcome.losses.items() if not math.isfinite(value)]
        gradients = ", ".join(f"{part} {value:.3g}" for part, value in self.stepper.gradients().items())
        scale = f", loss scale {self.stepper.scale:g}" if self.settings.precision == "float16" else ""
        raise TrainingError(
            f"losses or gradients were not finite in the {count} steps up to step {progress.step}, which were skipped "
            f"({', '.join(terms) or 'losses are finite'}; largest gradients: {gradients}; rate {rate:.2g}{scale}): "
            f"the weights before them are in {str(self.output / LAST)!r}. Start anew in another train.output with a "
            "lower train.lr, a longer train.warmup or train.precision=float32; the same command goes on behind them"
        )


def prepare(model: GLIP, settings: TrainConfig, group: Group) -> torch.nn.Module:
    """Bring a model into training as the settings ask; gives what is called in its place."""
    model.to(group.device).train()
    still = settings.freeze_language or settings.bert_lr == 0  # at rate 0 its gradients would still be clipped with
    model.freeze(stages=settings.frozen_stages, language=still)
    keep_frozen_still(model)
    model.checkpoint_gradients(settings.checkpointing)
    if settings.compile:
        model.vision.compile()
        for stage in model.tower:
            stage.get_submodule("image").compile()
    return wrap_model(model, group, settings.parallel)


def keep_frozen_still(model: GLIP) -> None:
    """Parts without a trainable parameter run in eval mode, so that dropout does not blur what cannot adapt."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def seed_all(seed: int) -> None:
    """Seed every generator of random numbers."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
