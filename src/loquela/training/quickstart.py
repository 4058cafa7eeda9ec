"""The recipe that `loquela quickstart` fits to a text, from a fairy tale of four kilobytes to any size.

The architecture is an exact Qwen3 in miniature. What changes with the text is how much can be learnt from it before it
is known by heart: fewer and smaller updates for a short one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loquela.data.corpora import resolve
from loquela.data.readers import measure
from loquela.errors import DataError
from loquela.training.recipe import Recipe

__all__ = ["MINIMUM", "recipe_for"]

MINIMUM = 400
"""Characters: below this, not even a few blocks and a held-out end can be had."""
HELD_OUT = 1_000_000
"""Characters held out at most, so that validating a huge text takes no longer than training on it."""
_CHARACTERS_PER_TOKEN = 2
"""At least so many in a token, for a vocabulary learnt on the text itself; decides only the block of a tiny text."""


WINDOW = 256
"""Tokens of the context window, where the text has enough of them: room for a prompt and a page of text."""
LONG_ENOUGH = 12_000
"""Characters from which a text has enough of them."""
SHORT = 64
"""Tokens of a sample for most of the training. The last steps suffice to learn the long window."""


@dataclass(frozen=True)
class _Tier:
    """How to train on a text of at least so many characters."""

    characters: int
    vocab_size: int
    tokens: int
    """Tokens in an update."""
    steps: int
    learning_rate: float
    """AdamW's."""


_TIERS = (
    _Tier(700_000, 1024, 1536, 370, 0.01),
    _Tier(150_000, 1024, 1536, 300, 0.01),
    _Tier(50_000, 1024, 1024, 150, 0.01),
    _Tier(LONG_ENOUGH, 1024, 512, 50, 0.005),
    _Tier(MINIMUM, 384, 512, 40, 0.005),
)


def recipe_for(text: str | Path, output_dir: str | Path, *, encoding: str = "utf-8", seed: int = 0) -> Recipe:
    """Return the recipe for a text file or a corpus of the package.

    Raises `DataError` for a text that is too short to train on, and what reading it raises.
    """
    characters = measure(resolve(text), encoding=encoding).characters
    if characters < MINIMUM:
        raise DataError(
            f"a text to train on must have at least {MINIMUM} characters (about as many bytes), but {text} has "
            f"{characters}; give a longer one"
        )
    tier = next(t for t in _TIERS if characters >= t.characters)
    enough = characters >= LONG_ENOUGH
    block = WINDOW if enough else min(SHORT, characters // _CHARACTERS_PER_TOKEN // 8)
    every = -(-tier.steps // 4)
    return Recipe.load(
        {
            "model": {
                "model_type": "qwen3",
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "max_position_embeddings": block,
                "rope_theta": 1000.0,
            },
            "tokenizer": {"kind": "bpe", "vocab_size": tier.vocab_size},
            "data": str(text),
            "encoding": encoding,
            "validation_fraction": min(0.1, HELD_OUT / characters),
            "block_size": block,
            "curriculum": {"block_size": SHORT, "ratio": 0.8} if enough else None,
            "output_dir": str(output_dir),
            "per_device_train_batch_size": tier.tokens // block,
            "per_device_eval_batch_size": 4096 // block,
            "max_steps": tier.steps,
            "optim": "muon",
            "learning_rate": tier.learning_rate,
            "muon": {"learning_rate": 0.05},
            "warmup_steps": min(20, tier.steps // 4),
            "logging_steps": 5,
            "eval_steps": every if characters >= 150_000 else max(1, tier.steps // 10),
            "save_steps": every,
            "sample_steps": every,
            "load_best_model_at_end": True,
            "seed": seed,
        }
    )
