"""How long a run is, and what is due when."""

from __future__ import annotations

from loquela.data.samples import Samples
from loquela.training.recipe import Recipe

__all__ = ["due", "steps_of"]


def steps_of(recipe: Recipe, samples: Samples) -> int:
    """Return how many updates a recipe asks for, with so many samples in a pass."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    return max(1, round(recipe.num_train_epochs * samples.per_epoch / samples.batch_size))


def due(every: int | None, step: int) -> bool:
    """Tell whether what happens `every` so many steps happens after update `step`."""
    return every is not None and step > 0 and step % every == 0
