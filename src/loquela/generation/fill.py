"""What stands behind a mask: the tokens that an encoder expects there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loquela.errors import ContextWindowError, DataError, TokenizerError, UsageError
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.models.encoder_only import EncoderOnly
from loquela.text.tokenizer import Tokenizer

__all__ = ["Candidate", "Filling", "fill"]


@dataclass(frozen=True)
class Candidate:
    """A token for a mask, and its probability."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Filling:
    """The candidates of each mask of a text, most probable first, and the text with the first of each."""

    text: str
    masks: tuple[tuple[Candidate, ...], ...]


def fill(network: Network, tokenizer: Tokenizer, text: str, *, top: int = 5) -> Filling:
    """Return the `top` tokens for every mask token in `text` (`[MASK]`, `<mask>`), each by itself, in one look.

    Raises `UsageError` for a network that does not fill masks, `DataError` for a text without a mask.
    """
    if not isinstance(network, EncoderOnly) or network.task != "fill-mask":
        raise UsageError(
            f"filling masks needs a masked language model, but this is a {network.config.model_type} model"
        )
    if tokenizer.mask_id is None:
        raise TokenizerError("filling masks needs a tokenizer with a mask token, but this one names none")
    ids = tokenizer.encode(text)
    where = [i for i, token in enumerate(ids) if token == tokenizer.mask_id]
    if not where:
        raise DataError(f"the text must hold the mask token {tokenizer.token(tokenizer.mask_id)}, but does not")
    if len(ids) > network.context_length:
        raise ContextWindowError(
            f"the text must fit the context window of {network.context_length} tokens, but has {len(ids)}: shorten it"
        )
    with evaluating(network):
        hidden = network.hidden(torch.tensor([ids], device=next(network.parameters()).device))
        probabilities = network.head(hidden[0, where]).double().softmax(-1)  # (masks, vocab)
    best = probabilities.topk(min(top, network.vocab_size))
    masks = []
    for position, tokens, values in zip(where, best.indices.tolist(), best.values.tolist(), strict=True):
        masks.append(tuple(Candidate(t, tokenizer.decode([t]), p) for t, p in zip(tokens, values, strict=True)))
        ids[position] = tokens[0]
    return Filling(tokenizer.decode(ids), tuple(masks))
