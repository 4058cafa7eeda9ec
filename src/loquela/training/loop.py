"""The training loop: update after update, with what is due at each boundary between two of them.

All that is random is a pure function of (seed, step). So a run is decided by its recipe and its text, and what a
checkpoint must hold is only the step, the weights, the optimizer and how far the log had come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loquela.data.batch import Batch
from loquela.data.samples import Material, Samples
from loquela.errors import NonFiniteError
from loquela.generation.completion import prompt_ids, stream
from loquela.generation.decode import evaluating
from loquela.generation.settings import GenerationSettings
from loquela.layers.counts import Counting
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer
from loquela.training import state as states
from loquela.training.events import Listener, Note, Sampled, Saved, Started, Stepped, Validated
from loquela.training.log import LossLog, Row, Timing
from loquela.training.optimizers import Optimizers
from loquela.training.recipe import Recipe
from loquela.training.schedules import rate
from loquela.training.state import State
from loquela.training.step import Report, summed_loss, train_step
from loquela.training.validation import Validation, validate

__all__ = ["Run", "steps_of"]

SAMPLE_TOKENS = 60
_GOLDEN = 0x9E37_79B9_7F4A_7C15


def steps_of(recipe: Recipe, samples: Samples) -> int:
    """Return how many updates a recipe asks for, with so many samples in a pass."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    return max(1, round(recipe.num_train_epochs * samples.per_epoch / samples.batch_size))


@dataclass
class Run:
    """Everything that a run needs, and `train`, which brings it to its end or to an interruption."""

    recipe: Recipe
    network: Network
    tokenizer: Tokenizer
    material: Material
    optimizer: Optimizers
    directory: Path
    listener: Listener
    stopping: Callable[[], bool]
    state: State = field(default_factory=State)
    best: dict[str, Tensor] | None = None
    """The weights of the best validation, where the recipe keeps them and they are not the present ones."""

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.samples = self.short = self._samples(1)
        self.steps = 1 if isinstance(self.network, Counting) else steps_of(recipe, self.samples)
        self.short_steps = 0
        if recipe.curriculum is not None:
            self.short = self._samples(recipe.block_size // recipe.curriculum.block_size)
            self.short_steps = round(recipe.curriculum.ratio * self.steps)
        self.dtype: torch.dtype = getattr(torch, recipe.dtype)
        self._saved = self._sampled = self.state.step
        if recipe.load_best_model_at_end and 0 < self.state.step == self.state.best_step:
            self.best = self._weights()  # the checkpoint does not hold the same weights twice

    def _samples(self, parts: int) -> Samples:
        """Return samples that are `parts` times shorter and as many more."""
        return self.material.samples(self.recipe.block_size // parts, self.recipe.batch_size * parts)

    def train(self) -> bool:
        """Train until the last update; False when it was interrupted. Either way the state is in a checkpoint.

        Raises `NonFiniteError` before the update that would take in a NaN, `StorageError` when the disk is full.
        """
        self.log = LossLog(self.directory / "loss.csv", self.state.log_size)
        if self.log.lost:
            self.listener(Note("loss.csv has lost rows that were written before this checkpoint"))
        self.timing = Timing(self.directory / "timing.csv")
        self._first_tokens = self.state.tokens
        try:
            self.listener(self._started())
            self.network.train()
            while self._boundary():
                report = self._count() if isinstance(self.network, Counting) else self._update()
                if report is not None:
                    self._note_step(report)
            return self.state.step == self.steps and self.state.logged == self.steps
        finally:
            self.log.close()
            self.timing.close()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all sessions; validations, samples and checkpoints are in it."""
        return self.timing.seconds

    def _boundary(self) -> bool:
        """Do what is due between two updates; return whether another one follows."""
        recipe, step, last = self.recipe, self.state.step, self.state.step == self.steps
        if step and self.state.logged < step and (last or _due(recipe.logging_steps, step) or self._validates(step)):
            self._write_row()  # not at all if a signal comes meanwhile; then it is the first thing when resumed
        going_on = not last and not self.stopping()
        if _due(recipe.sample_steps, step) and going_on and step > self._sampled:
            self._sample()
        if step > self._saved and (not going_on or _due(recipe.save_steps, step)):
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
        step = self.state.step
        samples = self.short if step < self.short_steps else self.samples
        try:
            return train_step(
                self.network,
                self.optimizer,
                self._batch(step, samples),
                step,
                self._factor(step),
                micro_batch=samples.batch_size // self.recipe.gradient_accumulation_steps,
                max_grad_norm=self.recipe.max_grad_norm,
                dtype=self.dtype,
                stopping=self.stopping,
            )
        except NonFiniteError as error:
            saved = f"checkpoint-{self._saved} is the last one saved" if self._saved else "no checkpoint was saved yet"
            raise NonFiniteError(
                f"step {step + 1} was stopped before its update: {error}; {samples.place(step)}; "
                f"the weights of step {step} are unchanged, "
                f"{saved}. Lower learning_rate or set max_grad_norm, in another output_dir"
            ) from None

    def _note_step(self, report: Report) -> None:
        state = self.state
        state.step += 1
        state.tokens += report.tokens
        state.loss_sum += report.loss * report.tokens
        state.loss_tokens += report.tokens
        state.gradient_norm = report.gradient_norm
        self.listener(Stepped(state.step, report.loss, state.tokens, self.seconds))

    def _batch(self, step: int, samples: Samples) -> Batch:
        """Make the batch of a step, and set torch's generator for what the network draws (dropout)."""
        torch.manual_seed((self.recipe.seed * _GOLDEN + step) % 2**63)
        return samples.batch(step)

    def _factor(self, step: int) -> float:
        return rate(self.recipe.lr_scheduler_type, step, self.steps, self.recipe.warmup(self.steps))

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
                self.material.train_tokens
                if isinstance(self.network, Counting)
                else self.recipe.batch_size * self.recipe.block_size
            ),
        )

    # -- what is due at a boundary

    def _validates(self, step: int) -> bool:
        return step == self.steps or _due(self.recipe.eval_steps, step)

    def _write_row(self) -> None:
        state, validation = self.state, None
        if self._validates(state.step):
            validation = self._validate()
            if validation is None:
                return
        state.train_loss = state.loss_sum / state.loss_tokens
        row = Row(
            step=state.step,
            tokens=state.tokens,
            train_loss=state.train_loss,
            val_loss=None if validation is None else validation.loss,
            learning_rate=self.recipe.learning_rate * self._factor(state.step - 1),
            grad_norm=state.gradient_norm,
        )
        self.log.write(row)
        self.timing.write(state.step, state.tokens - self._first_tokens)
        state.loss_sum, state.loss_tokens, state.logged = 0.0, 0, state.step
        if validation is not None:
            self._note_best(validation, state.train_loss)

    def _validate(self) -> Validation | None:
        return validate(
            self.network,
            self.material.held_out(self.recipe.block_size, self.recipe.per_device_eval_batch_size),
            self.material.val_bytes,
            dtype=self.dtype,
            stopping=self.stopping,
        )

    def _note_best(self, validation: Validation, train_loss: float) -> None:
        state = self.state
        state.validation = validation
        better = state.best is None or validation.loss < state.best.loss
        if better:
            state.best, state.best_step = validation, state.step
            if self.recipe.load_best_model_at_end and state.step < self.steps:
                self.best = self._weights()
        self.listener(Validated(state.step, train_loss, validation.loss, validation.bits_per_byte, better))

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}

    def _sample(self) -> None:
        self._sampled = self.state.step
        if (written := self.sample()) is not None:
            self.listener(Sampled(self.state.step, *written))

    def sample(self) -> tuple[str, str] | None:
        """Let the model write; return the prompt and its continuation, or None when a signal comes meanwhile."""
        prompt = self.recipe.sample_prompt
        if prompt is None:
            prompt = self.material.opening(self.tokenizer, self.network.context_length // 2)
        room = self.network.context_length - len(prompt_ids(self.tokenizer, prompt))
        settings = GenerationSettings(max_new_tokens=min(SAMPLE_TOKENS, room), seed=self.recipe.seed)
        text = ""
        for piece in stream(self.network, self.tokenizer, prompt, settings):
            text += piece.text
            if self.stopping():
                return None
        return prompt, text

    def _save(self) -> None:
        self._saved = self.state.step
        self.state.log_size = self.log.sync()
        target = states.save(
            self.directory,
            network=self.network,
            tokenizer=self.tokenizer,
            optimizer=self.optimizer,
            state=self.state,
            best=self.best if self.state.best_step != self.state.step else None,
            keep=self.recipe.save_total_limit,
        )
        self.listener(Saved(self.state.step, target))


def _due(every: int | None, step: int) -> bool:
    return every is not None and step > 0 and step % every == 0
