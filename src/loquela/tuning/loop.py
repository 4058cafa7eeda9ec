"""The tuning loop: training's own step, on samples that were put together for it.

All that is random is a pure function of (seed, step), so a checkpoint holds the step, what is trained, the optimizer
and how far the log had come; an interrupted tuning ends with the bits of one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loquela import peft
from loquela.data.batch import Batch
from loquela.errors import NonFiniteError
from loquela.evaluation.forgetting import Stage
from loquela.training.events import Listener, Note, Saved, Started, Stepped, Validated
from loquela.training.log import LossLog, Row
from loquela.training.optimizers import AdamW, Optimizers
from loquela.training.schedules import rate
from loquela.training.step import Report, train_step
from loquela.tuning import state as states
from loquela.tuning.batching import Assembler
from loquela.tuning.judging import Held, learnt, validate
from loquela.tuning.losses import Losses, preference_batches
from loquela.tuning.narrow import Narrow, products
from loquela.tuning.preparing import Prepared
from loquela.tuning.probing import Probes
from loquela.tuning.recipe import TuneRecipe
from loquela.tuning.state import Progress
from loquela.tuning.subject import NAME, Subject

__all__ = ["Tuning", "optimizer_for", "steps_of"]

_GOLDEN = 0x9E37_79B9_7F4A_7C15
PULL = 0.1
"""The first strength of the pull towards the base, where max_forget is given."""
SLOWER = 0.3
"""What the learning rate is multiplied by when the budget is broken."""
PATIENCE = 4
"""How often the budget may be broken before the run ends with the best model inside."""


def steps_of(recipe: TuneRecipe, samples: int) -> int:
    """Return how many updates a recipe asks for on so many samples."""
    return recipe.max_steps or max(1, round(recipe.num_train_epochs * samples / recipe.batch_size))


def optimizer_for(recipe: TuneRecipe, subject: Subject) -> Optimizers:
    """Return AdamW over what is trained."""
    return Optimizers(
        AdamW(
            subject.parameters,
            learning_rate=recipe.rate(subject.network.dim),
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            epsilon=recipe.adam_epsilon,
            weight_decay=recipe.weight_decay,
        )
    )


@dataclass
class Tuning:
    """Everything that a tuning needs, and `run`, which brings it to its end or to an interruption."""

    recipe: TuneRecipe
    subject: Subject
    prepared: Prepared
    probes: Probes
    assembler: Assembler
    """Puts together what is learnt."""
    scoring: Assembler
    """And what is scored."""
    optimizer: Optimizers
    directory: Path
    listener: Listener
    stopping: Callable[[], bool]
    before: Held
    """The held-out rows as the base has them."""
    progress: Progress = field(init=False)
    best: dict[str, Tensor] = field(init=False)
    """The weights of the best validation inside the budget, so far."""

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.steps = steps_of(recipe, len(self.prepared.train))
        self.order = self.prepared.order(recipe)
        self.losses = Losses(self.subject, recipe.beta)
        often = 8 if recipe.max_forget is not None else 4
        self.every = recipe.eval_steps or max(1, -(-self.steps // often))
        self._saved = 0
        self._begin()
        self._compute_in(None)

    def _begin(self) -> None:
        """Note the start, which is inside every budget."""
        starts_as_base = not (self.subject.is_adapter and peft.virtual_tokens(self.subject.network, NAME))
        self.progress = Progress(
            best_loss=self.before.loss if starts_as_base else None,
            strength=PULL if self.recipe.max_forget is not None else 0.0,
        )
        self.best = self.subject.weights()
        self._note_stage(self.probes.stage(0, self.probes.before), self.before)

    def resume(self) -> list[str]:
        """Take over the newest intact checkpoint of the directory, if there is one; return what is to be said."""
        found, best, notes = states.resume(self.directory, self.subject, self.optimizer)
        if found is not None:
            self.progress, self._saved = found, found.step
            self._compute_in(found.dtype or "float32")  # older checkpoints do not say, and knew no other default
            self.best = best or self.subject.weights()  # a checkpoint does not hold the same weights twice
        return notes

    def _compute_in(self, began: str | None) -> None:
        """Settle what updates are computed in: what the recipe means here, or what the run has `began` in."""
        rows = self.prepared.train
        usual = sum(item.length for item in rows) * self.recipe.per_device_train_batch_size // len(rows)
        tokens = min(usual, self.assembler.plenty)
        self.dtype, self._said = products(self.recipe.dtype, self.subject.network, tokens=tokens, began=began)
        self.narrow = Narrow(self.subject, self.dtype)
        self.progress.dtype = str(self.dtype).removeprefix("torch.")

    def run(self) -> bool:
        """Tune until the last update; False when it was interrupted, with the state in a checkpoint.

        Raises `NonFiniteError` before the update that would take in a NaN, `StorageError` when the disk is full.
        """
        self.log = LossLog(self.directory / "loss.csv", self.progress.log_size)
        self._began = time.perf_counter() - self.progress.seconds
        try:
            self.listener(self._started())
            for note in self._said:
                self.listener(Note(note))
            self.subject.network.train()
            with self.narrow.held(), self.subject.tuned():
                while self._boundary():
                    report = self.update()
                    if report is not None:
                        self._note_step(report)
            return self._ended and self.progress.logged == self.progress.step
        finally:
            self.subject.network.eval()
            self.log.close()

    @property
    def seconds(self) -> float:
        """Seconds of tuning so far, over all sessions; validations and checkpoints are in it."""
        return time.perf_counter() - self._began

    @property
    def _ended(self) -> bool:
        return self.progress.step == self.steps or self.progress.ended is not None

    def _boundary(self) -> bool:
        """Do what is due between two updates; return whether another one follows."""
        recipe, progress, step = self.recipe, self.progress, self.progress.step
        if step and progress.logged < step and (self._validates(step) or step % recipe.logging_steps == 0):
            self._write_row()  # not at all if a signal comes meanwhile; then it is the first thing when resumed
        going_on = not self._ended and not self.stopping()
        if step > self._saved and (not going_on or step % recipe.save_steps == 0):
            self._save()
        return going_on

    def update(self) -> Report | None:
        """Make the next update; None when a signal came before it was done."""
        step = self.progress.step
        torch.manual_seed((self.recipe.seed * _GOLDEN + step) % 2**63)
        numbers = self.order.indices(step)
        batches = self._batches(step, [int(i) for i in numbers])
        self.losses.strength = self.progress.strength
        self.losses.start(batches)
        try:
            return train_step(
                self.subject.network,
                self.optimizer,
                batches,
                step,
                self._factor(step),
                micro_batch=self.recipe.per_device_train_batch_size,
                max_grad_norm=self.recipe.max_grad_norm,
                dtype=self.dtype,
                stopping=self.stopping,
                loss=self.losses,
                scale=self.progress.scale if self.dtype == torch.float16 else None,
                parameters=self.subject.parameters.values(),
            )
        except NonFiniteError as error:
            rows = ", ".join(str(self.prepared.train[i].row) for i in numbers)
            raise NonFiniteError(
                f"step {step + 1} was stopped before its update: {error}; its samples are rows {rows}; the weights of "
                f"step {step} are unchanged. Lower learning_rate, in another output_dir"
            ) from None

    def _batches(self, step: int, numbers: Sequence[int]) -> list[Batch]:
        items = [self.prepared.train[i] for i in numbers]
        batches: list[Batch]
        if self.prepared.prefers:
            batches = [batch for batch, _ in preference_batches(items, self.assembler)]
        else:
            batches = self.assembler.packed([item.sample for item in items])
        if self.progress.strength and self.probes.anchors:
            batches.append(self.probes.anchor(step))
        self._positions = sum(item.length for item in items)
        return batches

    def _note_step(self, report: Report) -> None:
        progress = self.progress
        loss = report.loss - self.losses.penalty
        progress.step += 1
        progress.tokens += report.tokens
        progress.positions += self._positions
        progress.loss_sum += loss * report.tokens
        progress.loss_tokens += report.tokens
        progress.gradient_norm = report.gradient_norm
        for parameter in self.subject.parameters.values():  # the fused update does not say that it has changed them
            torch.autograd.graph.increment_version(parameter)
        self.listener(Stepped(progress.step, loss, progress.positions, self.seconds))

    def _factor(self, step: int) -> float:
        recipe = self.recipe
        factor = rate(recipe.lr_scheduler_type, step, self.steps, round(recipe.warmup_ratio * self.steps))
        return self.progress.pace * factor

    def _started(self) -> Started:
        train, held = self.prepared.train, self.prepared.held
        lengths = [item.length for item in train]
        return Started(
            step=self.progress.step,
            steps=self.steps,
            parameters=sum(p.numel() for p in self.subject.parameters.values()),
            vocabulary=self.subject.network.vocab_size,
            train_tokens=sum(lengths),
            train_bytes=0,
            val_tokens=learnt(held),
            tokens_per_step=round(sum(lengths) / len(lengths) * self.recipe.batch_size),
        )

    # -- what is due at a boundary

    def _validates(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps

    def _write_row(self) -> None:
        if not self._validates(self.progress.step):
            self._log(None)
            return
        with self.narrow.exact():
            held = validate(self.subject, self.prepared, self.assembler, beta=self.recipe.beta, stopping=self.stopping)
            if held is not None:
                self._log(held)
                self._note_validation(held)

    def _log(self, held: Held | None) -> None:
        progress, step = self.progress, self.progress.step
        progress.train_loss = progress.loss_sum / max(1, progress.loss_tokens)
        rated = self.recipe.rate(self.subject.network.dim) * self._factor(step - 1)
        loss = None if held is None else held.loss
        self.log.write(Row(step, progress.tokens, progress.train_loss, loss, rated, progress.gradient_norm))
        progress.loss_sum, progress.loss_tokens, progress.logged = 0.0, 0, step

    def _note_validation(self, held: Held) -> None:
        progress, budget = self.progress, self.recipe.max_forget
        nats, _ = self.probes.score()
        self._note_stage(self.probes.stage(progress.step, nats), held)
        lost = self.probes.delta(nats) if nats else 0.0
        inside = budget is None or lost <= budget
        better = inside and (progress.best_loss is None or held.loss < progress.best_loss)
        if better:
            progress.best_loss, progress.best_step = held.loss, progress.step
            self.best = self.subject.weights()
        self.listener(Validated(progress.step, progress.train_loss, held.loss, held.bits_per_byte, better))
        if budget is not None:
            self._keep_inside(lost, budget)

    def _keep_inside(self, lost: float, budget: float) -> None:
        """Pull harder towards the base as the budget is used up; go back to the best model inside when it is broken."""
        progress = self.progress
        if lost > budget:
            progress.broken += 1
            progress.strength *= 4
            progress.pace *= SLOWER
            self.subject.restore(self.best)
            self.optimizer.restore({name: torch.zeros_like(tensor) for name, tensor in self.optimizer.state().items()})
            way = f"back to step {progress.best_step}, with a pull of {progress.strength:g} and smaller steps"
            if progress.broken >= PATIENCE and progress.step < self.steps:
                progress.ended = f"the budget of forgetting was broken {progress.broken} times"
                way = f"the run ends with the weights of step {progress.best_step}"
            self.listener(Note(f"{lost:.3f} bits per byte are forgotten, more than {budget:g}: {way}"))
        elif lost > budget / 2:
            progress.strength *= 2

    def _note_stage(self, stage: Stage, held: Held) -> None:
        self.progress.stages.append(asdict(stage))
        self.progress.curves.append({"step": stage.step, "loss": held.loss, "tasks": held.per_task})

    def _save(self) -> None:
        self._saved = self.progress.step
        self.progress.log_size = self.log.sync()
        self.progress.seconds = self.seconds
        best = self.best if self.progress.best_step != self.progress.step else None
        keep = self.recipe.save_total_limit
        target = states.save(self.directory, self.subject, self.optimizer, self.progress, best, keep)
        self.listener(Saved(self.progress.step, target))
