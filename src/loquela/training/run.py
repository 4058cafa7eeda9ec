"""A run from its recipe to its model: prepare the text, train or go on, save."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from loquela.checkpoint.store import load_model
from loquela.data.samples import Material
from loquela.errors import ConfigError, RecipeError
from loquela.layers.counts import Counting, learnable, only_counts
from loquela.models.base import Network, architecture, config_from_dict
from loquela.models.encoder_only import EncoderOnly
from loquela.text.tokenizer import Tokenizer
from loquela.training.averaging import Average
from loquela.training.directory import claim, locked
from loquela.training.events import Event, Listener, Note, Preparing
from loquela.training.finish import TrainResult, finish, finished, special_ids
from loquela.training.interruption import Interruption
from loquela.training.layerwise import compile_layers, recompute_layers
from loquela.training.loop import Run
from loquela.training.materials import check, material, vocabulary
from loquela.training.memory import keep_freed_memory
from loquela.training.optimizers import build
from loquela.training.precision import device_of, dtype_of
from loquela.training.ranks import Ranks, joined, local
from loquela.training.receipt import receipt_bytes
from loquela.training.recipe import Recipe
from loquela.training.reporting import reporter
from loquela.training.state import Held, State, resume

__all__ = ["COUNTING", "TrainResult", "fresh", "train"]

COUNTING = "counting n-grams"
"""What is being prepared while a network counts its text."""


def train(recipe: Recipe | Mapping[str, Any] | str | Path, *, on_event: Listener = lambda event: None) -> TrainResult:
    """Train by a recipe, given as such, as a dict or as a YAML file; go on where an earlier call was interrupted.

    Started by torchrun, it is one of several processes that train together; only rank 0 tells `on_event`.

    The first SIGINT or SIGTERM saves at the step boundary and raises `KeyboardInterrupt`; the second raises it at
    once. Raises `RecipeError`, `DataError`, `DirectoryInUseError`, `NonFiniteError`, `StorageError`.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    recipe.sources  # noqa: B018  # before anything is made for it
    with Interruption(launched="TORCHELASTIC_RUN_ID" in os.environ) as interruption, ExitStack() as stack:
        ranks = stack.enter_context(joined(recipe.parallel, lambda rank: device_of(recipe.device, rank)))
        return _train(recipe, ranks, interruption, stack, _once(on_event) if ranks.main else lambda event: None)


def _train(
    recipe: Recipe, ranks: Ranks, interruption: Interruption, stack: ExitStack, on_event: Listener
) -> TrainResult:
    directory = Path(recipe.output_dir)
    with ranks.together():
        if ranks.main:
            stack.enter_context(locked(directory))
            recipe = claim(directory, recipe)
    recipe = recipe.model_copy(update={"dtype": ranks.text(recipe.dtype)})
    if recipe.resume_from_checkpoint is True and (result := ranks.main_first(lambda: finished(directory, on_event))):
        return result
    keep_freed_memory()
    loaded = load_model(recipe.model) if isinstance(recipe.model, str) else None
    given = None if loaded is None else loaded.tokenizer
    tokenizer = ranks.main_first(lambda: vocabulary(recipe, directory, given, on_event))
    network = fresh(recipe, tokenizer) if loaded is None else loaded.network
    check(recipe, network, tokenizer)
    prepared = ranks.main_first(lambda: material(recipe, network, tokenizer, directory, on_event))
    notes: list[str] = []
    which = recipe.resume_from_checkpoint
    if only_counts(network):
        if ranks.world > 1:
            raise RecipeError(f"{network.config.model_type} counts the text once: start it as one process")
        notes.append(f"{network.config.model_type} counts the text once: what says how to train has no effect")
        which = False  # to count again is as good
    elif isinstance(network, Counting):
        notes.append(_counted(recipe, network, prepared, ranks, on_event))
    held = _hold(recipe, network, ranks)
    state, said = resume(directory, which, held, ranks)
    dtype, note = _products(recipe, network, state, ranks)
    held.optimizer.compute_in(dtype)
    for text in (*notes, *said, *note):
        on_event(Note(text))
    if ranks.world != state.world:
        rows = recipe.batch_size * state.world
        on_event(Note(f"{ranks.world} processes go on with the batches of {rows} samples that {state.world} began"))
    with reporter(recipe, directory, state.step, writes=ranks.main) as report:
        run = Run(
            recipe,
            held,
            tokenizer,
            prepared,
            directory,
            _both(on_event, report),
            stopping=lambda: interruption.requested,
            state=state,
            ranks=ranks,
            dtype=dtype,
            receipt=receipt_bytes,
        )
        interruption.patient = True
        if not run.train():
            on_event(
                Note(f"interrupted after step {run.state.step} of {run.steps}; the same command goes on from there")
            )
            raise KeyboardInterrupt
        return finish(run)


def _counted(recipe: Recipe, network: Network, text: Material, ranks: Ranks, on_event: Listener) -> str:
    """Let a network that also learns by gradients count the text first; return what is to be said of it."""
    if recipe.objective != "causal" or ranks.sharded:
        given = f"objective {recipe.objective}, {ranks.world} processes by {recipe.parallel}"
        raise RecipeError(f"a model that counts its text must have objective causal and parallel ddp, not {given}")
    on_event(Preparing(COUNTING))
    began = time.perf_counter()
    assert isinstance(network, Counting)
    network.fit(text.tokens)
    learns = sum(p.numel() for p in learnable(network).values())
    seconds = time.perf_counter() - began
    return (
        f"counted {text.train_tokens:,} tokens in {seconds:.1f} s; {learns:,} parameters learn what counts leave open"
    )


def _products(recipe: Recipe, network: Network, state: State, ranks: Ranks) -> tuple[torch.dtype, list[str]]:
    """Return what products are computed in, the same on all ranks, and what is to be said of it; keep it in `state`."""
    if only_counts(network):
        return torch.float32, []
    began = state.dtype
    if began is None and state.step:  # of before a state said so, when auto meant bfloat16 whatever the size
        began = "bfloat16"
    tokens = recipe.per_device_train_batch_size * recipe.block_size
    dtype, note = dtype_of(recipe.dtype, ranks.device, tokens=tokens, dim=network.dim, began=began)
    if ranks.any(dtype == torch.float32) and dtype != torch.float32:
        dtype, note = torch.float32, "products are computed in float32: another process is slow at less"
    state.dtype = state.dtype or str(dtype).removeprefix("torch.")
    return dtype, [] if note is None else [note]


def _hold(recipe: Recipe, network: Network, ranks: Ranks) -> Held:
    """Put the network on its device and among the ranks; make what is trained along with it."""
    network.to(ranks.device)
    if recipe.gradient_checkpointing:
        recompute_layers(network)
    if recipe.torch_compile:
        compile_layers(network)
    ranks.prepare(network)
    parameters = {name: local(parameter) for name, parameter in network.named_parameters()}
    average = None if recipe.ema_decay is None else Average(parameters, recipe.ema_decay)
    return Held(network, build(network, recipe), average)


def _once(listener: Listener) -> Listener:
    """Say nothing twice: a text is read for its vocabulary and then for its tokens."""
    said: set[Event] = set()

    def tell(event: Event) -> None:
        if not isinstance(event, Note) or event not in said:
            listener(event)
        if isinstance(event, Note):
            said.add(event)

    return tell


def _both(first: Listener, second: Listener) -> Listener:
    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell


def fresh(recipe: Recipe, tokenizer: Tokenizer) -> Network:
    """Return a network with the weights that training from scratch begins with; raises `RecipeError`."""
    assert isinstance(recipe.model, dict)
    known = {"vocab_size": tokenizer.vocab_size, **special_ids(tokenizer)}
    start = next((token for token in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) if token is not None), None)
    try:
        config = config_from_dict(known | recipe.model)
        if "decoder_start_token_id" not in recipe.model and hasattr(config, "decoder_start_token_id"):
            config.decoder_start_token_id = start  # what a published model starts from is another token here
    except ConfigError as error:
        raise RecipeError(f"model: {error}") from None
    torch.manual_seed(recipe.seed)
    network: Network = architecture(config.model_type).NETWORK(config)
    network.initialise()
    if recipe.init == "neighbours":
        if not isinstance(network, EncoderOnly):
            raise RecipeError(f"init neighbours must have an encoder, but {config.model_type} is a {network.kind}")
        network.look_at_neighbours()
    return network
