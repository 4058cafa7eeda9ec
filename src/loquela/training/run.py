"""A run from its recipe to its model: prepare the text, train or go on, save."""

from __future__ import annotations

import ctypes
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from loquela.checkpoint.files import finish_install, read_json
from loquela.checkpoint.store import atomic_directory, load_model, save_model, verify
from loquela.data import shards
from loquela.data.objectives import OBJECTIVES
from loquela.data.samples import Material, Task, Text
from loquela.data.special import Special
from loquela.data.vocabulary import train_tokenizer
from loquela.errors import CheckpointError, ConfigError, RecipeError, StorageError
from loquela.layers.counts import Counting
from loquela.models.base import Network, architecture, config_from_dict
from loquela.text.tokenizer import Tokenizer
from loquela.training.curve import write_curve
from loquela.training.directory import claim, locked
from loquela.training.events import Listener, Note, Preparing
from loquela.training.interruption import Interruption
from loquela.training.log import read_rows
from loquela.training.loop import Run
from loquela.training.optimizers import build
from loquela.training.recipe import Recipe
from loquela.training.recipe import Tokenizer as TokenizerRecipe
from loquela.training.state import resume

__all__ = ["TrainResult", "train"]

RESULTS = "train_results.json"


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. Losses are in nats per token; `seconds` is all of training, its validations included."""

    model: str
    train_loss: float
    val_loss: float
    val_bits_per_byte: float | None
    """None where the objective does not ask for each token of a text once."""
    val_tokens: int
    tokens: int
    seconds: float
    tokens_per_second: float
    steps: int
    best_step: int
    """The step whose weights were kept."""
    parameters: int
    sample: Sample | None
    """What the model writes, where the recipe asks for samples."""

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TrainResult:
        """Read what `as_dict` gave; raises `TypeError` for anything else."""
        return cls(**{**raw, "sample": Sample(**raw["sample"]) if raw.get("sample") else None})


def train(recipe: Recipe | Mapping[str, Any] | str | Path, *, on_event: Listener = lambda event: None) -> TrainResult:
    """Train by a recipe, given as such, as a dict or as a YAML file; go on where an earlier call was interrupted.

    The first SIGINT or SIGTERM saves at the step boundary and raises `KeyboardInterrupt`; the second raises it at
    once. Raises `RecipeError`, `DataError`, `DirectoryInUseError`, `NonFiniteError`, `StorageError`.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    directory = Path(recipe.output_dir)
    recipe.source  # noqa: B018  # before anything is made for it
    with Interruption() as interruption, locked(directory):
        claim(directory, recipe)
        if recipe.resume_from_checkpoint is True and (result := _finished(directory, on_event)):
            return result
        _keep_freed_memory()
        network, tokenizer = _start(recipe, directory, on_event)
        material = _material(recipe, network, tokenizer, directory, on_event)
        optimizer = build(network, recipe)
        which = recipe.resume_from_checkpoint
        if isinstance(network, Counting):
            on_event(Note(f"{network.config.model_type} counts the text once: what says how to train has no effect"))
            which = False  # to count again is as good
        state, best, notes = resume(directory, which, network, optimizer)
        for note in notes:
            on_event(Note(note))
        run = Run(
            recipe,
            network,
            tokenizer,
            material,
            optimizer,
            directory,
            on_event,
            stopping=lambda: interruption.requested,
            state=state,
            best=best,
        )
        interruption.patient = True
        if not run.train():
            on_event(
                Note(f"interrupted after step {run.state.step} of {run.steps}; the same command goes on from there")
            )
            raise KeyboardInterrupt
        return _finish(run)


def _material(recipe: Recipe, network: Network, tokenizer: Tokenizer, directory: Path, on_event: Listener) -> Material:
    """Tokenise the text, once."""
    on_event(Preparing("tokenising the text"))
    corpus = shards.build(
        recipe.source,
        tokenizer,
        directory / "data",
        encoding=recipe.encoding,
        validation_fraction=recipe.validation_fraction,
        progress=lambda done, total: on_event(Preparing("tokenising the text", done / max(1, total))),
    )
    for note in corpus.notes:
        on_event(Note(note))
    objective = OBJECTIVES[recipe.objective]
    task = Task(
        objective,
        Special.of(tokenizer, network),
        recipe.seed,
        objective.options(recipe.objective_options),
        recipe.attend_across_documents,
    )
    return Text(corpus, task)


def _start(recipe: Recipe, directory: Path, on_event: Listener) -> tuple[Network, Tokenizer]:
    """Return the network at step 0 and the tokenizer, which is made or copied once and then stays the run's own."""
    loaded = load_model(recipe.model) if isinstance(recipe.model, str) else None
    own = directory / "data" / "tokenizer"
    if own.exists():
        tokenizer = Tokenizer.load(own)
    else:
        if isinstance(recipe.tokenizer, str):
            tokenizer = Tokenizer.load(recipe.tokenizer)
        elif recipe.tokenizer is None and loaded is not None and loaded.tokenizer is not None:
            tokenizer = loaded.tokenizer
        else:
            wanted = recipe.tokenizer or TokenizerRecipe(vocab_size=1024)
            on_event(Preparing("learning the vocabulary"))
            tokenizer = train_tokenizer(
                recipe.source,
                wanted.kind,
                wanted.vocab_size,
                encoding=recipe.encoding,
                validation_fraction=recipe.validation_fraction,
                special_tokens=OBJECTIVES[recipe.objective].special_tokens,
            )
        if tokenizer.note:
            on_event(Note(tokenizer.note))
        with atomic_directory(own) as temporary:
            tokenizer.save(temporary)
    network = _fresh(recipe, tokenizer) if loaded is None else loaded.network
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
    objective = OBJECTIVES[recipe.objective]
    if network.kind not in objective.readers:
        raise RecipeError(
            f"objective {objective.name} must have a model that is a {' or '.join(objective.readers)}, but "
            f"{network.config.model_type} is a {network.kind}"
        )
    if recipe.sample_steps is not None and not objective.writes:
        raise RecipeError(f"sample_steps must not be given: what the objective {objective.name} teaches writes no text")
    if not recipe.attend_across_documents and "segments" not in inspect.signature(network.hidden).parameters:
        raise RecipeError(f"attend_across_documents must be true for {network.config.model_type}, but is false")
    return network, tokenizer


def _fresh(recipe: Recipe, tokenizer: Tokenizer) -> Network:
    assert isinstance(recipe.model, dict)
    known = {"vocab_size": tokenizer.vocab_size, **_special_ids(tokenizer)}
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
    return network


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """Named even where there is none, lest another library takes its own default for one of our words."""
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _finish(run: Run) -> TrainResult:
    state, directory, kept = run.state, run.directory, run.state.validation
    assert kept is not None
    best_step = state.step
    if run.recipe.load_best_model_at_end and state.best is not None and state.best_step != state.step:
        assert run.best is not None
        with torch.no_grad():
            for name, parameter in run.network.named_parameters():
                parameter.copy_(run.best[name])
        kept, best_step = state.best, state.best_step
        run.listener(
            Note(
                f"the weights of step {best_step} are kept, the best on the held-out text; later ones learnt the "
                "training text by heart"
            )
        )
    seconds = run.seconds
    written = run.sample() if run.recipe.sample_steps is not None else None
    result = TrainResult(
        model=str(directory),
        train_loss=state.train_loss,
        val_loss=kept.loss,
        val_bits_per_byte=kept.bits_per_byte,
        val_tokens=kept.tokens,
        tokens=state.tokens,
        seconds=seconds,
        tokens_per_second=state.tokens / seconds,
        steps=state.step,
        best_step=best_step,
        parameters=run.network.parameter_count(),
        sample=Sample(*written) if written is not None else None,
    )
    try:
        write_curve(read_rows(directory / "loss.csv"), directory / "loss.html", f"Loss of {directory.name}")
    except StorageError as error:  # a picture less is no reason to lose the model
        run.listener(Note(str(error)))
    save_model(
        run.network,
        run.tokenizer,
        directory,
        generation_config={name: value for name, value in _special_ids(run.tokenizer).items() if value is not None},
        extra_files={RESULTS: json.dumps(result.as_dict(), indent=2).encode() + b"\n"},
    )
    return result


def _finished(directory: Path, on_event: Listener) -> TrainResult | None:
    """Return the result of a run that has ended, if its model is still what was saved."""
    finish_install(directory)
    if not (directory / RESULTS).is_file():
        return None
    try:
        verify(directory)
        result = TrainResult.from_dict(read_json(directory, RESULTS) | {"model": str(directory)})
    except (TypeError, CheckpointError) as error:
        on_event(Note(f"the finished model is damaged and will be made again: {error}"))
        return None
    on_event(Note(f"{directory} holds this very run, finished: nothing is left to train"))
    return result


def _keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of handing them back to the kernel after every use.

    A step allocates and frees the same few megabytes hundreds of times; each time the kernel would clear new pages.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        library.mallopt(mmap_threshold, 32 << 20)
        library.mallopt(trim_threshold, 1 << 30)
        library.mallopt(top_pad, 64 << 20)
