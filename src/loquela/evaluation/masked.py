"""Encoders asked as what they are: a text's label, or what they expect behind masks.

The likelihood of a continuation is its pseudo-log-likelihood: each of its tokens is masked in turn and predicted from
all others, those after it included (arXiv:1910.14659). It is no probability of a text, but it ranks continuations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from loquela.errors import ContextWindowError, DataError, TokenizerError
from loquela.evaluation.subject import Likelihood
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.models.encoder_only import EncoderOnly
from loquela.text.tokenizer import Tokenizer

__all__ = ["around", "classify", "likelihoods", "predicted"]

_ROWS = 64  # masks predicted side by side


def likelihoods(
    network: EncoderOnly, tokenizer: Tokenizer, context: str, continuations: Sequence[str]
) -> list[Likelihood]:
    """Return the pseudo-log-likelihood of each continuation of `context`; raises `TokenizerError` without a mask."""
    if tokenizer.mask_id is None:
        raise TokenizerError("a masked language model needs a tokenizer with a mask token, but this one names none")
    lead, tail = around(tokenizer)
    bare = tokenizer.encode(context.rstrip(), add_special_tokens=False)
    found = []
    for continuation in continuations:
        whole = tokenizer.encode(context + continuation, add_special_tokens=False)
        if len(whole) <= len(bare):
            raise DataError("a continuation must have a token of its own, but one melts into its context's last token")
        ids = [*lead, *whole, *tail]
        if len(ids) > network.context_length:
            raise ContextWindowError(
                f"a text must fit the context window of {network.context_length} tokens, but has {len(ids)}"
            )
        log_probs, greedy = predicted(
            network, ids, range(len(lead) + len(bare), len(lead) + len(whole)), tokenizer.mask_id
        )
        found.append(Likelihood(float(log_probs.sum()), len(log_probs), greedy))
    return found


def predicted(
    network: Network, ids: Sequence[int], where: Sequence[int], mask: int
) -> tuple[npt.NDArray[np.float64], bool]:
    """Mask each of the positions `where` (n,) of `ids` in a row of its own.

    Returns the log-probability (n,) of each token that was hidden, and whether each was the most probable.
    """
    tokens = torch.tensor(ids, device=next(network.parameters()).device)
    found, greedy = [], True
    with evaluating(network):
        for places in torch.split(torch.tensor(where, device=tokens.device), _ROWS):
            rows = torch.arange(len(places), device=tokens.device)
            inputs = tokens.repeat(len(places), 1)
            inputs[rows, places] = mask
            logits = network.head(network.hidden(inputs)[rows, places]).double()  # (n, V)
            found.append(logits.gather(-1, tokens[places][:, None])[:, 0] - logits.logsumexp(-1))
            greedy = greedy and bool((logits.argmax(-1) == tokens[places]).all())
    return torch.cat(found).cpu().numpy(), greedy


def classify(network: EncoderOnly, tokenizer: Tokenizer, text: str, pair: str | None) -> str:
    """Return the most probable label of a text or a pair of texts; raises `ContextWindowError`."""
    encoding = tokenizer.backend.encode(text) if pair is None else tokenizer.backend.encode(text, pair)
    if len(encoding.ids) > network.context_length:
        raise ContextWindowError(
            f"a text must fit the context window of {network.context_length} tokens, but has {len(encoding.ids)}"
        )
    device = next(network.parameters()).device
    with evaluating(network):
        types = torch.tensor([encoding.type_ids], device=device)
        logits = network(torch.tensor([encoding.ids], device=device), token_types=types)[0]
    return network.labels[int(logits.argmax())]


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that stand before and behind every text."""
    around = tokenizer.encode("")
    letter = tokenizer.encode("a")
    lead = next((i for i, (a, b) in enumerate(zip(around, letter, strict=False)) if a != b), len(around))
    return around[:lead], around[lead:]
