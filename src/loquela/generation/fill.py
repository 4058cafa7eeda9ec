"""What stands behind a mask: the tokens that an encoder expects there."""

from __future__ import annotations

import torch

from loquela.errors import ContextWindowError, DataError, TokenizerError, UsageError
from loquela.generation.completion import Alternative, Completion, Piece, Usage
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.models.encoder_only import EncoderOnly
from loquela.text.tokenizer import Tokenizer

__all__ = ["fill"]


def fill(network: Network, tokenizer: Tokenizer, text: str, *, top: int = 5) -> Completion:
    """Put the most probable token for every mask token (`[MASK]`, `<mask>`) of `text`, each by itself, in one look.

    The completion's text is the whole text, filled; its tokens are those of the masks, with `top` alternatives each.
    Raises `UsageError` for a network that does not fill masks, `DataError` for a text without a mask,
    `ContextWindowError` for one that is too long.
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
        log_probs = network.head(hidden[0, where]).double().log_softmax(-1)  # (masks, vocab)
    best = log_probs.topk(min(max(top, 1), network.vocab_size))
    pieces = []
    for position, tokens, values in zip(where, best.indices.tolist(), best.values.tolist(), strict=True):
        found = [Alternative(t, tokenizer.decode([t]), value) for t, value in zip(tokens, values, strict=True)]
        ids[position] = tokens[0]
        pieces.append(Piece(found[0].text, found[0].id, found[0].log_prob, tuple(found[:top]), None))
    return Completion(tokenizer.decode(ids), tuple(pieces), "stop", Usage(len(ids), len(where)))
