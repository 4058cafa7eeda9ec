"""What a picture is drawn of: a model, a text read as tokens, and one pass of the network over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from loquela.checkpoint.sentence import Pooling
from loquela.errors import ContextWindowError, TokenizerError, UsageError
from loquela.generation.completion import prompt_ids
from loquela.generation.decode import evaluating, generate_ids
from loquela.generation.settings import GenerationSettings
from loquela.models.base import EncoderDecoder, Network
from loquela.peft.base import Adapter
from loquela.peft.wardrobe import wardrobe_of
from loquela.text.tokenizer import Tokenizer

__all__ = [
    "Inspected",
    "Reading",
    "Text",
    "UnavailableError",
    "gap",
    "layers_of",
    "model_name",
    "numbers",
    "read",
    "stack",
    "token_text",
    "token_texts",
    "worn_adapter",
]

Text = str | Sequence[int]
"""A text, or token ids as they are."""


class UnavailableError(UsageError):
    """This model cannot show that; the sentence says why. Never drawn as zeros."""


class Inspected(Protocol):
    """What a picture needs of a model; `loquela.load` gives one."""

    @property
    def network(self) -> Network:
        """Token ids in, logits out."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text."""

    @property
    def pooling(self) -> Pooling | None:
        """How a text becomes a vector, where the model's authors say."""

    def settings(self, **given: Any) -> GenerationSettings:
        """Settings of generation: what is given, else what the model's authors say, else the defaults."""


@dataclass(frozen=True)
class Reading:
    """A text as the network takes it: its ids, and for an encoder-decoder those of the target, start token first."""

    network: Network
    ids: list[int]
    target: list[int] | None = None

    @property
    def written(self) -> list[int]:
        """The ids of the side that logits are for: the target, or the text itself."""
        return self.ids if self.target is None else self.target

    def hidden(self) -> Tensor:
        """Run the network: the last hidden states (1, seq, dim) of `written`. Gradients are as the caller has them."""
        device = next(self.network.parameters()).device
        ids = torch.tensor([self.ids], device=device)
        if self.target is None:
            return self.network.hidden(ids)
        assert isinstance(self.network, EncoderDecoder)
        return self.network.hidden(torch.tensor([self.target], device=device), source=ids)

    def logits(self) -> Tensor:
        """Run the network without gradients: the logits (seq, vocab) of `written`, in float32 at least."""
        with evaluating(self.network):
            hidden = self.hidden()[0]
            logits = head(self.network, hidden)
            return logits.to(torch.promote_types(logits.dtype, torch.float32))


def head(network: Network, hidden: Tensor) -> Tensor:
    """Return the logits over the vocabulary; raises `UnavailableError` where the head is for something else."""
    if getattr(network, "task", "fill-mask") != "fill-mask":
        raise UnavailableError(
            f"a distribution over tokens is unavailable: the head of this {network.config.model_type} is for "
            f"{getattr(network, 'task', '')}"
        )
    return network.head(hidden)


def read(model: Inspected, text: Text, target: Text | None = None, *, most: int | None = None) -> Reading:
    """Read a text. An encoder-decoder's target is given, or what the model itself writes, greedily, in 64 tokens.

    Raises `ContextWindowError` for a text that does not fit, `UsageError` for an empty one or more than `most` tokens.
    """
    network = model.network
    ids = prompt_ids(model.tokenizer, text) if isinstance(text, str) else list(text)
    if not ids:
        raise UsageError("a picture needs a text with a token at least, but it has none")
    if len(ids) > network.context_length:
        raise ContextWindowError(
            f"a text must fit the context window of {network.context_length} tokens, but has {len(ids)}: shorten it"
        )
    if most is not None and len(ids) > most:
        raise UsageError(f"this picture takes at most {most} tokens, but the text has {len(ids)}: shorten it")
    if not isinstance(network, EncoderDecoder):
        if target is not None:
            raise UsageError(f"only an encoder-decoder has a target, and {network.config.model_type} is none")
        return Reading(network, ids)
    if target is None:
        settings = GenerationSettings(max_new_tokens=64, do_sample=False)
        written = [step.id for step in generate_ids(network, ids, settings, end_ids=model.end_ids)]
    else:
        written = model.tokenizer.encode(target) if isinstance(target, str) else list(target)
    return Reading(network, ids, [network.start_token_id, *written])


def gap(model: Inspected, reading: Reading) -> int:
    """Return the place of the one mask that an encoder is to fill; raises `UsageError` where there is not just one."""
    mask = model.tokenizer.mask_id
    if mask is None:
        raise UnavailableError("a prediction is unavailable: an encoder fills masks, and its tokenizer has none")
    if reading.ids.count(mask) != 1:
        raise UsageError(
            "an encoder tells which token belongs in a gap: the text needs one "
            f"{token_text(model.tokenizer, mask)}, but has {reading.ids.count(mask)}"
        )
    return reading.ids.index(mask)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as a person reads it; `<id>` for a row that the tokenizer has no token for."""
    try:
        return tokenizer.token(token)
    except TokenizerError:
        return f"<{token}>"


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return tokens as a person reads them."""
    return [token_text(tokenizer, token) for token in ids]


def stack(network: Network) -> nn.Module:
    """Return the layers that end in the head: the decoder's, else the encoder's; raises `UnavailableError`."""
    for name in ("decoder", "encoder"):
        found = getattr(network, name, None)
        if isinstance(found, nn.Module) and hasattr(found, "layers"):
            return found
    raise UnavailableError(
        f"layer by layer is unavailable: {network.config.model_type} has no stack of blocks that can be looked between"
    )


def layers_of(network: Network) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and module of each layer in every stack."""
    for side in ("encoder", "decoder"):
        for i, layer in enumerate(getattr(getattr(network, side, None), "layers", ())):
            yield f"{side}.layers.{i}", layer


def model_name(model: Inspected) -> str:
    """Return what a picture calls the model: its kind and size."""
    network = model.network
    return f"{network.config.model_type}, {network.parameter_count():,} parameters"


def numbers(x: Tensor, digits: int = 6) -> Any:
    """Return a tensor as nested lists of plain numbers, rounded."""
    return x.double().cpu().numpy().round(digits).tolist()


def worn_adapter(network: Network) -> Adapter | None:
    """Return the adapter that the network wears right now; None for the base alone."""
    wardrobe = wardrobe_of(network)
    name = None if wardrobe is None or wardrobe.worn is None else wardrobe.worn.one()
    return None if wardrobe is None or name is None else wardrobe.adapters[name]
