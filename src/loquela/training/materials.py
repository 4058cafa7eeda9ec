"""What a recipe trains on: its vocabulary, and its text or pairs as samples."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from loquela.checkpoint.hub import resolve
from loquela.checkpoint.store import atomic_directory
from loquela.data import shards
from loquela.data.bitext import Bitext, Pairs, TextPair, is_held_out, read_pairs
from loquela.data.built import TOKENIZER, is_built, open_built
from loquela.data.mixture import Mixture
from loquela.data.objectives import OBJECTIVES
from loquela.data.samples import Material, Task, Text
from loquela.data.shards import Corpus
from loquela.data.special import Special
from loquela.data.vocabulary import train_tokenizer
from loquela.errors import RecipeError
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer
from loquela.training.events import Listener, Note, Preparing
from loquela.training.recipe import PairFiles, Recipe
from loquela.training.recipe import Tokenizer as TokenizerRecipe

__all__ = ["check", "material", "vocabulary"]


def vocabulary(recipe: Recipe, directory: Path, given: Tokenizer | None, on_event: Listener) -> Tokenizer:
    """Return the tokenizer of a run, made or copied once: the recipe's, else the `given` one, else a new one."""
    own = directory / "data" / "tokenizer"
    if own.exists():
        return Tokenizer.load(own)
    built = [path for path in recipe.texts if is_built(path)]
    if built:
        tokenizer = _of_built(built, recipe)
    elif isinstance(recipe.tokenizer, str):
        tokenizer = Tokenizer.load(resolve(recipe.tokenizer))
    elif recipe.tokenizer is None and given is not None:
        tokenizer = given
    else:
        on_event(Preparing("learning the vocabulary"))
        tokenizer = _learnt(recipe, recipe.tokenizer or TokenizerRecipe(vocab_size=1024))
    if tokenizer.note:
        on_event(Note(tokenizer.note))
    with atomic_directory(own) as temporary:
        tokenizer.save(temporary)
    return tokenizer


def _of_built(directories: list[str], recipe: Recipe) -> Tokenizer:
    """Return the tokenizer that the directories were built with; it must be one for all, and the recipe's if named."""
    tokenizers = {path: Tokenizer.load(Path(path) / TOKENIZER) for path in directories}
    if isinstance(recipe.tokenizer, str):
        tokenizers[recipe.tokenizer] = Tokenizer.load(resolve(recipe.tokenizer))
    elif recipe.tokenizer is not None:
        raise RecipeError(f"tokenizer must not be trained where data is built already, as {directories[0]} is")
    first = tokenizers[directories[0]]
    for path, tokenizer in tokenizers.items():
        if tokenizer.fingerprint != first.fingerprint:
            raise RecipeError(f"all data must be built with one tokenizer, but {directories[0]} and {path} have two")
    return first


def _learnt(recipe: Recipe, wanted: TokenizerRecipe) -> Tokenizer:
    special = OBJECTIVES[recipe.objective].special_tokens
    if isinstance(recipe.data, PairFiles):
        fraction = recipe.validation_fraction
        texts = (text for pair in _pairs(recipe, []) if not is_held_out(pair, fraction) for text in pair)
        return Tokenizer.train(wanted.kind, texts, wanted.vocab_size, special_tokens=special)
    return train_tokenizer(
        recipe.texts,
        wanted.kind,
        wanted.vocab_size,
        encoding=recipe.encoding,
        validation_fraction=recipe.validation_fraction,
        special_tokens=special,
    )


def _pairs(recipe: Recipe, notes: list[str]) -> Iterator[TextPair]:
    files = recipe.data
    assert isinstance(files, PairFiles)
    return read_pairs(files.source, files.target, files.rows, encoding=recipe.encoding, notes=notes)


def material(recipe: Recipe, network: Network, tokenizer: Tokenizer, directory: Path, on_event: Listener) -> Material:
    """Tokenise what a recipe trains on, or take what was tokenised before."""
    objective = OBJECTIVES[recipe.objective]
    task = Task(
        objective,
        Special.of(tokenizer, network),
        recipe.seed,
        objective.options(recipe.objective_options),
        recipe.attend_across_documents,
    )
    on_event(Preparing("tokenising the text"))
    if isinstance(recipe.data, PairFiles):
        bitext = Bitext.build(
            lambda notes: _pairs(recipe, notes),
            tokenizer,
            longest=recipe.block_size,
            validation_fraction=recipe.validation_fraction,
        )
        _say(bitext.notes, on_event)
        return Pairs(bitext, task)
    texts = [
        Text(_corpus(recipe, name, tokenizer, directory / "data" / (f"part-{n}" if n else ""), on_event), task)
        for n, name in enumerate(recipe.texts)
    ]
    weights = [part.weight for part in recipe.data] if isinstance(recipe.data, list) else [1.0]
    return texts[0] if len(texts) == 1 else Mixture(texts, weights)


def _corpus(recipe: Recipe, name: str, tokenizer: Tokenizer, directory: Path, on_event: Listener) -> Corpus:
    if is_built(name):
        corpus, _ = open_built(name)
    else:
        corpus = shards.build(
            name,
            tokenizer,
            directory,
            encoding=recipe.encoding,
            validation_fraction=recipe.validation_fraction,
            progress=lambda done, total: on_event(Preparing("tokenising the text", done / max(1, total))),
        )
    _say(corpus.notes, on_event)
    return corpus


def _say(notes: list[str], on_event: Listener) -> None:
    for note in notes:
        on_event(Note(note))


def check(recipe: Recipe, network: Network, tokenizer: Tokenizer) -> None:
    """Raise `RecipeError` unless the network can be trained as the recipe says."""
    objective, model_type = OBJECTIVES[recipe.objective], network.config.model_type
    if network.vocab_size < tokenizer.vocab_size:
        raise RecipeError(
            f"model.vocab_size must be at least the tokenizer's {tokenizer.vocab_size}, but is {network.vocab_size}"
        )
    if recipe.block_size > network.context_length:
        raise RecipeError(
            f"block_size must be at most the model's context window of {network.context_length} tokens, but is "
            f"{recipe.block_size}"
        )
    if recipe.sample_prompt is not None and len(tokenizer.encode(recipe.sample_prompt)) >= network.context_length:
        raise RecipeError(
            f"sample_prompt must leave room in the context window of {network.context_length} tokens, but has "
            f"{len(tokenizer.encode(recipe.sample_prompt))}"
        )
    if network.kind not in objective.readers:
        raise RecipeError(
            f"objective {objective.name} must have a model that is a {' or '.join(objective.readers)}, but "
            f"{model_type} is a {network.kind}"
        )
    if recipe.sample_steps is not None and not objective.writes:
        raise RecipeError(f"sample_steps must not be given: what the objective {objective.name} teaches writes no text")
    if not recipe.attend_across_documents and "segments" not in inspect.signature(network.hidden).parameters:
        raise RecipeError(f"attend_across_documents must be true for {model_type}, but is false")
