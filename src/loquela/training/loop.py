"""The training loop: update after update, with what is due at each boundary between two of them.

All that is random is a pure function of (seed, step). So a run is decided by its recipe and its text, and what a
checkpoint must hold is only the step, the weights, the optimizer and how far the log had come. Several ranks run this
loop in step: whatever decides what comes next is the same on all of them, or is agreed upon.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loquela.data.batch import Batch
from loquela.data.samples import Material, Samples
from loquela.errors import NonFiniteError
from loquela.generation.decode import evaluating
from loquela.layers.counts import Counting, only_counts
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer
from loquela.training import state as states
from loquela.training.events import Listener, Note, Sampled, Saved, Started, Stepped, Validated
from loquela.training.journal import Journal
from loquela.training.leaps import LeapWatch
from loquela.training.lengths import due, steps_of
from loquela.training.ranks import ALONE, Ranks, local
from loquela.training.recipe import Recipe
from loquela.training.schedules import rate
from loquela.training.state import Held, State
from loquela.training.step import Loss, Report, summed_loss, train_step
from loquela.training.validation import Validation, validate
from loquela.training.writing import write_sample

__all__ = ["Run"]

SAMPLES_KEPT = 100
_GOLDEN = 0x9E37_79B9_7F4A_7C15


@dataclass
class Run:
    """Everything that a run needs, and `train`, which brings it to its end or to an interruption."""

    recipe: Recipe
    held: Held
    tokenizer: Tokenizer
    material: Material
    directory: Path
    listener: Listener
    stopping: Callable[[], bool]
    state: State = field(default_factory=State)
    ranks: Ranks = ALONE
    dtype: torch.dtype = torch.float32
    receipt: Callable[[Run], bytes] | None = None
    """Writes what goes into each checkpoint as receipt.json."""

    def __post_init__(self) -> None:
        recipe, state = self.recipe, self.state
        self.samples = self.short = self._samples(1)
        self._counts = only_counts(self.network)
        self.steps = 1 if self._counts else steps_of(recipe, self.samples)
        self.short_steps = 0
        if recipe.curriculum is not None:
            self.short = self._samples(recipe.block_size // recipe.curriculum.block_size)
            self.short_steps = round(recipe.curriculum.ratio * self.steps)
        if state.ended:
            self.steps = state.step
        self._saved = self._sampled = state.step
        smoothing = recipe.label_smoothing_factor
        self._loss: Loss | None = functools.partial(summed_loss, smoothing=smoothing) if smoothing else None
        self._leaps = LeapWatch(recipe.spike_policy, recipe.spike_threshold)
        self._between = (lambda: False) if self.ranks.world > 1 else self.stopping
        if recipe.load_best_model_at_end and 0 < state.step == state.best_step:
            self.held.best = self._weights()  # the checkpoint does not hold the same weights twice

    @property
    def network(self) -> Network:
        """The network that learns."""
        return self.held.network

    def _samples(self, parts: int) -> Samples:
        """Return samples that are `parts` times shorter and as many more."""
        rows = self.recipe.batch_size * self.state.world * parts
        return self.material.samples(self.recipe.block_size // parts, rows)

    def train(self) -> bool:
        """Train until the last update; False when it was interrupted. Either way the state is in a checkpoint.

        Raises `NonFiniteError` before the update that would take in a NaN, `StorageError` when the disk is full.
        """
        block = self.recipe.block_size
        self.journal = Journal(self.directory, self.state, self.network, block, self.dtype, self.ranks)
        self.journal.say_what_is_lost(self.listener)
        try:
            self.listener(self._started())
            self.network.train()
            while self._boundary():
                report = self._count() if self._counts else self._update()
                if report is not None:
                    self._note_step(report)
            return self.state.step == self.steps and self.state.logged == self.steps
        finally:
            self.journal.close()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all sessions; validations, samples and checkpoints are in it."""
        return self.journal.seconds

    def _boundary(self) -> bool:
        """Do what is due between two updates; return whether another one follows."""
        recipe, step, last = self.recipe, self.state.step, self.state.step == self.steps
        if step and self.state.logged < step and (last or due(recipe.logging_steps, step) or self._validates(step)):
            self._write_row()  # not at all if a signal comes meanwhile; then it is the first thing when resumed
            last = step == self.steps  # it may have been the last validation
        going_on = not last and not self.ranks.any(self.stopping())
        if due(recipe.sample_steps, step) and going_on and step > self._sampled:
            self._sample()
        if step > self._saved and (not going_on or due(recipe.save_steps, step)):
            self._save()
        return going_on

    def _count(self) -> Report:
        """Let a network that counts learn the whole text at once; the loss is that of one batch, afterwards."""
        assert isinstance(self.network, Counting)
        self.network.fit(self.material.tokens)
        batch = self._batch(0, self.samples)
        with evaluating(self.network):
            loss = summed_loss(self.network, batch).item() / batch.labels.numel()
        return Report(loss, gradient_norm=0.0, tokens=self.material.train_tokens)

    def _update(self) -> Report | None:
        state, step = self.state, self.state.step
        samples = self.short if step < self.short_steps else self.samples
        try:
            report = train_step(
                self.network,
                self.held.optimizer,
                self._batch(step, samples),
                step,
                self._factor(step),
                micro_batch=samples.batch_size // (self.recipe.gradient_accumulation_steps * state.world),
                max_grad_norm=self.recipe.max_grad_norm,
                dtype=self.dtype,
                stopping=self._between,
                accepts=functools.partial(self._leaps.accepts, state),
                loss=self._loss,
                ranks=self.ranks,
                scale=state.scale if self.dtype == torch.float16 else None,
            )
        except NonFiniteError as error:
            saved = f"checkpoint-{self._saved} is the last one saved" if self._saved else "no checkpoint was saved yet"
            raise NonFiniteError(
                f"step {step + 1} was stopped before its update: {error}; {samples.place(step + state.shift)}; "
                f"the weights of step {step} are unchanged, "
                f"{saved}. Lower learning_rate or set max_grad_norm, in another output_dir"
            ) from None
        if report is None:
            return None
        rewinds = self._leaps.judged(state, report, self.recipe.save_steps, samples.place, self.listener)
        if rewinds is not None:
            self._rewind(rewinds)
            return None
        if report.applied and self.held.average is not None:
            self.held.average.update(step)
        return report

    def _rewind(self, target: int) -> None:
        """Go back to the checkpoint of step `target`, and from there past the samples that were seen since."""
        before = self.state
        if target != before.step:
            self.state = states.restore(self.directory / f"checkpoint-{target}", self.held, self.ranks)
            self.ranks.reshard(self.network)
            self.journal.go_back(self.state)
            self._saved = self._sampled = target
            if self.recipe.load_best_model_at_end and target == self.state.best_step:
                self.held.best = self._weights()
        self.state.shift = before.shift + before.step - target + 1
        self.state.rewinds = before.rewinds + 1

    def _note_step(self, report: Report) -> None:
        state = self.state
        state.step += 1
        if report.applied:
            state.tokens += report.tokens
            state.loss_sum += report.loss * report.tokens
            state.loss_tokens += report.tokens
        state.gradient_norm = report.gradient_norm
        self.listener(Stepped(state.step, report.loss, state.tokens, self.seconds))

    def _batch(self, step: int, samples: Samples) -> Batch:
        """Make the batch of a step, and set torch's generator for what the network draws (dropout)."""
        drawn = self.recipe.seed * _GOLDEN + step + (self.ranks.rank << 40)
        torch.manual_seed(drawn % 2**63)
        return samples.batch(step + self.state.shift)

    def _factor(self, step: int) -> float:
        recipe = self.recipe
        return rate(recipe.lr_scheduler_type, step, self.steps, recipe.warmup(self.steps), floor=recipe.min_lr_rate)

    def _started(self) -> Started:
        return Started(
            step=self.state.step,
            steps=self.steps,
            parameters=self.network.parameter_count(),
            vocabulary=self.network.vocab_size,
            train_tokens=self.material.train_tokens,
            train_bytes=self.material.train_bytes,
            val_tokens=self.material.val_tokens,
            tokens_per_step=(
                self.material.train_tokens if self._counts else self.samples.batch_size * self.recipe.block_size
            ),
        )

    # -- what is due at a boundary

    def _validates(self, step: int) -> bool:
        return step == self.steps or due(self.recipe.eval_steps, step)

    def _write_row(self) -> None:
        state, validation = self.state, None
        if self._validates(state.step):
            validation = self._validate()
            if validation is None:
                return
        rate_now = self.recipe.learning_rate * self._factor(state.step - 1)
        self.journal.write(state, rate_now, validation, self.listener)
        if validation is not None:
            self._note_best(validation, state.train_loss)

    def _validate(self) -> Validation | None:
        with self._judged():
            return validate(
                self.network,
                self.material.held_out(self.recipe.block_size, self.recipe.per_device_eval_batch_size),
                self.material.val_bytes,
                dtype=self.dtype,
                stopping=self._between,
                ranks=self.ranks,
            )

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Let the network have the weights that count: their running mean, where one is kept."""
        self.ranks.reshard(self.network)
        with nullcontext() if self.held.average is None else self.held.average.in_place():
            yield
        self.ranks.reshard(self.network)

    def _note_best(self, validation: Validation, train_loss: float) -> None:
        state, patience = self.state, self.recipe.early_stopping_patience
        state.validation = validation
        better = state.best is None or validation.loss < state.best.loss
        state.worse = 0 if better else state.worse + 1
        if better:
            state.best, state.best_step = validation, state.step
            if self.recipe.load_best_model_at_end and state.step < self.steps:
                self.held.best = self._weights()
        self.listener(Validated(state.step, train_loss, validation.loss, validation.bits_per_byte, better))
        if patience is not None and state.worse >= patience and state.step < self.steps:
            self.listener(
                Note(f"{state.worse} validations in a row were no better: training ends at step {state.step}")
            )
            state.ended, self.steps = True, state.step

    def _weights(self) -> dict[str, Tensor]:
        if self.held.average is not None:
            return {name: mean.clone() for name, mean in self.held.average.means.items()}
        return {name: local(parameter).detach().clone() for name, parameter in self.network.named_parameters()}

    def _sample(self) -> None:
        self._sampled = self.state.step
        if (written := self.sample()) is not None:
            prompt, text = written
            kept = [*self.state.samples, {"step": self.state.step, "prompt": prompt, "text": text}]
            self.state.samples = kept[-SAMPLES_KEPT:]
            self.listener(Sampled(self.state.step, prompt, text))

    def sample(self) -> tuple[str, str] | None:
        """Let the model write; return the prompt and its continuation, or None when a signal comes meanwhile.

        Where each rank has a slice of the weights, all must write the same together; else rank 0 does it.
        """
        if not (self.ranks.main or self.ranks.sharded):
            return None
        with self._judged():
            return write_sample(self.network, self.tokenizer, self.material, self.recipe, self._between)

    def _save(self) -> None:
        self._saved = self.state.step
        self.state.log_size = self.journal.sync()
        every = self.recipe.save_steps
        target = states.save(
            self.directory,
            Held(
                self.network,
                self.held.optimizer,
                self.held.average,
                self.held.best if self.state.best_step != self.state.step else None,
            ),
            self.state,
            tokenizer=self.tokenizer,
            keep=self.recipe.save_total_limit,
            kept=self.state.step // every * every if self.recipe.spike_policy == "rewind" else None,
            extra_files={} if self.receipt is None else {"receipt.json": self.receipt(self)},
            ranks=self.ranks,
        )
        self.listener(Saved(self.state.step, target))
