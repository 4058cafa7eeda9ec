"""What is done when the loss leaps: said, left out, or gone back from. See `spike_policy` in the recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from loquela.training.events import Listener, Note
from loquela.training.state import State
from loquela.training.step import Report

__all__ = ["LeapWatch"]

IN_A_ROW = 10
"""After so many leaps one after the other the loss has not leapt: it is where it is, and is learnt from again."""
REWINDS = 10
"""Times that a run goes back; after that, leaps are only left out."""


class LeapWatch:
    """Judges each loss before its update, by the trend that the state carries; the same on every rank."""

    def __init__(self, policy: Literal["none", "log", "skip", "rewind"], threshold: float) -> None:
        self.policy, self.threshold = policy, threshold
        self.leapt = False

    def accepts(self, state: State, loss: float, gradient_norm: float) -> bool:
        """Tell whether the update may be made."""
        self.leapt = self.policy != "none" and state.trend.leaps(loss, self.threshold)
        return not self.leapt or self.policy == "log" or state.leaps >= IN_A_ROW

    def judged(
        self, state: State, report: Report, save_steps: int, place: Callable[[int], str], listener: Listener
    ) -> int | None:
        """Note what came of a step, and say it; return the step to go back to, or None to go on."""
        if self.policy == "none":
            return None
        if not self.leapt:
            state.trend.add(report.loss)
            state.leaps = 0
            return None
        usual = f"{state.trend.mean:.3f} ± {math.sqrt(state.trend.variance):.3f}"
        said = f"step {state.step + 1}: the loss leapt to {report.loss:.3f} from {usual}"
        if report.applied:
            if state.leaps >= IN_A_ROW:
                said += f", as in {IN_A_ROW} steps before: it is taken as the new level"
                state.trend, state.leaps = type(state.trend)(), 0
                state.trend.add(report.loss)
            listener(Note(said))
            return None
        state.leaps += 1
        said += f"; {place(state.step + state.shift)}; "
        if self.policy == "rewind" and state.rewinds < REWINDS:
            target = state.step // save_steps * save_steps or state.step
            back = f"back to checkpoint-{target} and past" if target < state.step else "past"
            listener(Note(f"{said}{back} the samples since"))
            return target
        listener(Note(f"{said}that update was left out"))
        return None
