"""What a run writes down at its boundaries: the row of loss.csv, the time it took, and the event that tells of both."""

from __future__ import annotations

from pathlib import Path

import torch

from loquela.checkpoint.flops import peak_flops, training_flops
from loquela.layers.counts import only_counts
from loquela.models.base import Network
from loquela.training.events import Listener, Logged, Note
from loquela.training.log import LossLog, Row, Timing
from loquela.training.ranks import Ranks
from loquela.training.state import State
from loquela.training.validation import Validation

__all__ = ["Journal"]


class Journal:
    """loss.csv and timing.csv of a run that goes on from `state`; only rank 0 has the files.

    `block` is the length of a sample, which decides how much is computed for a token.
    """

    def __init__(
        self, directory: Path, state: State, network: Network, block: int, dtype: torch.dtype, ranks: Ranks
    ) -> None:
        self.ranks, self.dtype = ranks, dtype
        self._flops = None if only_counts(network) else training_flops(network, block)
        with ranks.together():
            self.log = LossLog(directory / "loss.csv", state.log_size, writes=ranks.main)
            self.timing = Timing(directory / "timing.csv", writes=ranks.main)
        self._first_tokens = state.tokens

    @property
    def seconds(self) -> float:
        """Seconds since the run began, all its sessions together."""
        return self.timing.seconds

    def write(self, state: State, learning_rate: float, validation: Validation | None, listener: Listener) -> None:
        """Write a row of what was learnt since the last one, and forget that."""
        if state.loss_tokens:  # else every update since the last row was left out
            state.train_loss = state.loss_sum / state.loss_tokens
        row = Row(
            step=state.step,
            tokens=state.tokens,
            train_loss=state.train_loss,
            val_loss=None if validation is None else validation.loss,
            learning_rate=learning_rate,
            grad_norm=state.gradient_norm,
        )
        with self.ranks.together():
            self.log.write(row)
            speed = self.timing.write(state.step, state.tokens - self._first_tokens, self._utilisation)
        state.loss_sum, state.loss_tokens, state.logged = 0.0, 0, state.step
        listener(Logged(row, self.seconds, speed, self._utilisation(speed), validation))

    def say_what_is_lost(self, listener: Listener) -> None:
        """Say that rows are gone, if they are."""
        if self.log.lost:
            listener(Note("loss.csv has lost rows that were written before this checkpoint"))

    def sync(self) -> int:
        """Put all rows on the disk; return the size of loss.csv, for the checkpoint."""
        with self.ranks.together():
            return self.log.sync()

    def go_back(self, state: State) -> None:
        """Drop the rows after `state`, and count tokens from there."""
        with self.ranks.together():
            self.log.cut(state.log_size)
        self._first_tokens = state.tokens
        self.timing.restart()

    def close(self) -> None:
        """Close the files."""
        self.log.close()
        self.timing.close()

    def _utilisation(self, tokens_per_second: float) -> float | None:
        """Return the share of what all devices could compute that was spent on tokens (MFU)."""
        peak = None if self._flops is None else peak_flops(self.ranks.device, self.dtype)
        if peak is None or self._flops is None:
            return None
        return tokens_per_second * self._flops / (peak * self.ranks.world)
