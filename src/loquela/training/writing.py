"""What the model writes while it learns."""

from __future__ import annotations

from collections.abc import Callable

from loquela.data.samples import Material
from loquela.generation.completion import prompt_ids, stream
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer
from loquela.training.layerwise import uncompiled
from loquela.training.recipe import Recipe

__all__ = ["write_sample"]

SAMPLE_TOKENS = 60


def write_sample(
    network: Network, tokenizer: Tokenizer, material: Material, recipe: Recipe, stopping: Callable[[], bool]
) -> tuple[str, str] | None:
    """Return a prompt and the model's continuation, or None when `stopping` says so meanwhile."""
    prompt = recipe.sample_prompt
    if prompt is None:
        prompt = material.opening(tokenizer, network.context_length // 2)
    room = network.context_length - len(prompt_ids(tokenizer, prompt))
    settings = GenerationSettings(max_new_tokens=min(SAMPLE_TOKENS, room), seed=recipe.seed)
    text = ""
    with uncompiled(network):
        for piece in stream(network, tokenizer, prompt, settings):
            text += piece.text
            if stopping():
                return None
    return prompt, text
