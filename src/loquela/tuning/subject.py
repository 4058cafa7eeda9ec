"""The model that is tuned: its network with what the method puts on it, and how it is kept and written down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from loquela import peft
from loquela.checkpoint import house
from loquela.checkpoint.files import inside, read_json
from loquela.checkpoint.hub import resolve
from loquela.checkpoint.sentence import read_pooling, sentence_files
from loquela.checkpoint.store import end_ids, load_model, save_model
from loquela.errors import CheckpointError, MismatchError, UsageError
from loquela.layers.counts import learnable
from loquela.models.base import Network, config_from_dict
from loquela.models.encoder_only import EncoderConfig, EncoderOnly, Task
from loquela.peft.frozen import quantize_base
from loquela.peft.storing import load_adapter, save_adapter
from loquela.text.tokenizer import Tokenizer
from loquela.training.directory import write_file
from loquela.tuning.recipe import TuneRecipe

__all__ = ["NAME", "TASK_CONFIG", "Subject", "open_adapter", "open_subject"]

NAME = "tuned"
"""What the adapter in the making is called on its network."""
TASK_CONFIG = "task_config.json"
"""Beside an adapter whose head the base does not have: the config of the network that it was made for."""
CHAT_TEMPLATE = "chat_template.jinja"


@dataclass
class Subject:
    """A network, what is trained of it (`parameters`, by names that stay the same), and where it came from."""

    base: Path
    network: Network
    tokenizer: Tokenizer
    generation_config: dict[str, Any]
    method: str
    parameters: dict[str, nn.Parameter]
    stored: frozenset[str] = frozenset()
    """The names of the parameters that the base's files hold."""
    reference: Network | None = None
    """The base beside a network that is tuned itself, where something needs both."""

    @property
    def is_adapter(self) -> bool:
        """Whether the base's own weights stay as they are."""
        return self.method != "full"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classifier."""
        return self.network.labels if isinstance(self.network, EncoderOnly) else ()

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens at which generation stops."""
        return end_ids(self.network, self.tokenizer, self.generation_config)

    @property
    def room(self) -> int:
        """Positions of the context window that are left for tokens."""
        return self.network.context_length - (peft.virtual_tokens(self.network, NAME) if self.is_adapter else 0)

    @contextmanager
    def tuned(self) -> Iterator[Network]:
        """The network as it is tuned so far; forward and backward run inside."""
        with peft.wearing(self.network, NAME if self.is_adapter else None):
            yield self.network

    @contextmanager
    def untuned(self) -> Iterator[Network]:
        """The base: the same network without the adapter, or a second one where it is tuned itself."""
        if self.is_adapter:
            with peft.wearing(self.network, None):
                yield self.network
        else:
            if self.reference is None:
                self.reference = _like(self.network, load_model(self.base).network)
            yield self.reference

    def weights(self) -> dict[str, Tensor]:
        """Return copies of what is trained."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `weights` returned; raises `MismatchError` when it is another method's."""
        if weights.keys() != self.parameters.keys() or any(
            weights[name].shape != parameter.shape for name, parameter in self.parameters.items()
        ):
            raise MismatchError("the weights of the checkpoint do not fit this method and this base")
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def save(self, directory: Path, *, chat_template: str | None, files: Mapping[str, str]) -> None:
        """Write the adapter, or the model, and small `files` beside it; raises `StorageError`."""
        tokenizer = self.tokenizer
        if chat_template is not None and chat_template != tokenizer.chat_template:
            tokenizer = Tokenizer(
                tokenizer.backend,
                roles=tokenizer.roles,
                config=tokenizer.config,
                chat_template=chat_template,
                source=tokenizer.json,
            )
        if self.is_adapter:
            save_adapter(self.network, NAME, directory, base=str(self.base))
            files = dict(files)
            if tokenizer is not self.tokenizer:
                assert chat_template is not None
                files[CHAT_TEMPLATE] = chat_template
            if self.labels:
                files[TASK_CONFIG] = json.dumps(self.network.config.to_dict(), ensure_ascii=False, indent=2) + "\n"
        else:
            pooling = read_pooling(resolve(self.base))
            extra = sentence_files(pooling, self.network.dim) if pooling else {}
            save_model(self.network, tokenizer, directory, generation_config=self.generation_config, extra_files=extra)
        for name, content in files.items():
            write_file(directory / name, content)


def open_subject(recipe: TuneRecipe, labels: Sequence[str], *, tags: bool = False) -> Subject:
    """Open the base of a recipe and put on it what the method trains.

    `labels` make an encoder a classifier of texts, or with `tags` of words.

    Raises `UsageError` for a method that makes no sense for this model.
    """
    loaded = load_model(recipe.model)
    if loaded.tokenizer is None:
        raise CheckpointError(f"{recipe.model} must have a tokenizer to be tuned on texts, but has none")
    network = loaded.network
    stored = frozenset(name for name, _ in network.named_parameters())
    settings = dict(recipe.method_settings)
    if labels and isinstance(network, EncoderOnly):
        task: Task = "token-classification" if tags else "text-classification"
        if network.task != task or network.labels != tuple(labels):
            torch.manual_seed(recipe.seed)  # of the fresh head
            network = network.for_task(task, labels)
        if recipe.method != "full":
            settings.setdefault("modules_to_save", ["classifier"])
    if recipe.method == "full":
        parameters = learnable(network)
        if not parameters:
            raise UsageError(f"a {network.config.model_type} has no weights that a gradient could tune")
        for parameter in parameters.values():
            parameter.requires_grad_(True)
    else:
        if recipe.base_bits is not None:
            quantize_base(network, recipe.base_bits)
        peft.attach(network, peft.config_for(recipe.method, **settings), NAME, recipe.seed)
        parameters = peft.train_only(network, NAME)
    base = Path(recipe.model)
    return Subject(base, network, loaded.tokenizer, loaded.generation_config, recipe.method, parameters, stored)


def open_adapter(network: Network, tokenizer: Tokenizer | None, directory: str | Path, name: str) -> Network:
    """Put an adapter on a base, and what its tuning added: a classifier's head, a chat template.

    Returns the network to use, which is another one where the base lacks the head. Raises as `load_adapter`.
    """
    directory = house.adapter(directory)
    if directory.is_dir() and inside(directory, TASK_CONFIG).is_file():
        network = _with_head(network, read_json(directory, TASK_CONFIG), directory)
    load_adapter(network, directory, name)
    if tokenizer is not None and directory.is_dir() and (file := inside(directory, CHAT_TEMPLATE)).is_file():
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    return network


def _with_head(network: Network, raw: Mapping[str, Any], directory: Path) -> Network:
    config = config_from_dict(raw)
    if not isinstance(network, EncoderOnly) or not isinstance(config, EncoderConfig):
        raise MismatchError(
            f"the adapter {directory} is for a {config.model_type} that labels texts, but the base is a "
            f"{network.config.model_type}"
        )
    if network.task == config.task and network.labels == config.labels:
        return network
    if peft.adapters(network):
        raise UsageError(
            f"the adapter {directory} needs a head of its own ({', '.join(config.labels)}), but the base already "
            "wears adapters for another one: load it by itself"
        )
    return network.for_task(config.task, config.labels).eval()


def _like(tuned: Network, base: Network) -> Network:
    """Give the base the head that the tuned network has, so that both compute the same kind of thing."""
    if isinstance(tuned, EncoderOnly) and isinstance(base, EncoderOnly):
        return cast(Network, base.for_task(tuned.task, tuned.labels)).eval()
    return base.eval()
