"""Beam search: follow several beginnings of a text at once, and take the whole one that is most probable.

At each step every beam is extended by every token, and the `num_beams` most probable of all these go on. A text that
ends leaves the beams; its score is its log-probability divided by length^length_penalty, as else the shortest would
win (arXiv:1609.08144, 7). Those sampling rules apply that do not shape a draw.

The arithmetic is that of transformers, step by step, so that the same weights give the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loquela.errors import ContextWindowError
from loquela.generation.decode import FinishReason, Step, evaluating, log_probability
from loquela.generation.outlook import Outlook
from loquela.generation.rules import RULES, History
from loquela.generation.settings import GenerationSettings
from loquela.layers.cache import Cache
from loquela.models.base import Network

__all__ = ["Hypothesis", "beam_search", "replay"]

_DEAD = -1e9
"""The score of a beam that is no beginning yet: all start from the same one, and else each would find the same."""


@dataclass(frozen=True)
class Hypothesis:
    """A whole text: its ids, the end token among them if it ended by itself, and its score."""

    ids: tuple[int, ...]
    score: float
    """Sum of the log-probabilities (nats) divided by length^length_penalty."""


def beam_search(
    network: Network,
    prompts: Tensor,  # (B, S)
    settings: GenerationSettings,
    *,
    end_ids: frozenset[int] = frozenset(),
    padding: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Return the `settings.n` best continuations of each prompt, best first.

    An encoder-decoder takes the prompts as its sources. `padding` (batch, seq) is True where a token is real; prompts
    that a decoder continues are padded on the left. Raises `ContextWindowError` for prompts that leave no room.
    """
    if prompts.shape[1] >= network.context_length:
        raise ContextWindowError(
            f"the prompt must leave room for a token in the context window of {network.context_length} tokens, "
            f"but has {prompts.shape[1]}: shorten it, or let it be truncated"
        )
    beams, device = settings.num_beams, prompts.device
    with evaluating(network):
        cache, first = network.start(prompts, padding=padding)
        mask = padding if first is prompts else None  # an encoder-decoder's source is read; its target is all real
        room = min(settings.max_new_tokens, network.context_length - first.shape[1])
        searches = [_Search(row, room, settings, end_ids) for row in first.tolist()]
        live = [search for search in searches if not search.done]
        rows = torch.arange(len(first), device=device).repeat_interleave(beams)  # each beam's row in the cache
        log_probs = _next(network, first, cache, mask)[rows]  # (B · beams, vocab)
        while live:
            kept, tokens, going = [], [], []
            for index, search in enumerate(live):
                moves = search.advance(log_probs[index * beams : (index + 1) * beams])
                if not search.done:
                    going.append(search)
                    kept += [index * beams + beam for beam, _ in moves]
                    tokens += [token for _, token in moves]
            live = going
            if live:
                rows = rows[kept]
                cache.select(rows)
                if mask is not None:
                    mask = torch.cat((mask[rows], mask.new_ones(len(rows), 1)), dim=1)
                rows = torch.arange(len(rows), device=device)
                log_probs = _next(network, torch.tensor(tokens, device=device)[:, None], cache, mask)
    return [search.finished[: settings.n] for search in searches]


def _next(network: Network, tokens: Tensor, cache: Cache, mask: Tensor | None) -> Tensor:
    """Log-probabilities (batch, vocab) of what comes after `tokens` (batch, seq)."""
    hidden = network.hidden(tokens, cache=cache, padding=mask)[:, -1]
    return network.head(hidden).float().log_softmax(-1)


class _Search:
    """The beams of one prompt, and the whole texts found so far, best first."""

    def __init__(self, prefix: list[int], room: int, settings: GenerationSettings, end_ids: frozenset[int]) -> None:
        self.prefix, self.room, self.settings, self.end_ids = prefix, room, settings, end_ids
        self.beams: list[tuple[int, ...]] = [()] * settings.num_beams
        self.scores = torch.tensor([0.0] + [_DEAD] * (settings.num_beams - 1))
        self.finished = [] if room else [Hypothesis((), 0.0)] * settings.n
        self.done = not room

    def advance(self, log_probs: Tensor) -> list[tuple[int, int]]:
        """Extend the beams by one token, given the log-probabilities (beams, vocab) of each.

        Returns, for each new beam, the number of the old one that it goes on from, and its token.
        """
        beams, vocab = log_probs.shape
        length = len(self.beams[0]) + 1
        last = length == self.room
        totals = (self._ruled(log_probs, last).cpu() + self.scores[:, None]).flatten()
        # so many that `beams` of them go on, even if every beam ends with every end token
        best = totals.topk(min(max(2, 1 + len(self.end_ids)) * beams, len(totals)))
        ended: list[Hypothesis] = []
        going: list[tuple[float, int, int]] = []
        for rank, (score, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            beam, token = divmod(index, vocab)
            if last or token in self.end_ids:
                if rank < beams:
                    ended.append(Hypothesis((*self.beams[beam], token), score / length**self.settings.length_penalty))
            elif len(going) < beams:
                going.append((score, beam, token))
        self.finished = sorted([*self.finished, *ended], key=lambda found: -found.score)[:beams]
        self.done = last or self._settled(going[0][0] / length**self.settings.length_penalty)
        self.beams = [(*self.beams[beam], token) for _, beam, token in going]
        self.scores = torch.tensor([score for score, _, _ in going])
        return [(beam, token) for _, beam, token in going]

    def _settled(self, best: float) -> bool:
        """Whether no beam can better what is found, if the best beam's score grew no further than `best`."""
        if len(self.finished) < self.settings.num_beams:
            return False
        return self.settings.early_stopping or best <= self.finished[-1].score

    def _ruled(self, log_probs: Tensor, last: bool) -> Tensor:
        settings = self.settings
        rules = [(RULES[name], getattr(settings, name)) for name in settings.sampler_order]
        active = [(rule, value) for rule, value in rules if not rule.samples and value != rule.off]
        if not active:
            return log_probs
        rows = list(log_probs.double().cpu().numpy())
        for rule, value in active:
            for i, beam in enumerate(self.beams):
                rows[i] = rule.apply(rows[i], value, History(self.prefix, beam, self.end_ids, last))
        return torch.from_numpy(np.stack(rows)).float()


def replay(
    network: Network, prompt: Sequence[int], ids: Sequence[int], *, end_ids: frozenset[int] = frozenset()
) -> tuple[Sequence[int], Iterator[Step]]:
    """Return what `ids` follow (the prompt, or an encoder-decoder's start token) and their steps, as if just chosen."""
    with evaluating(network):
        device = next(network.parameters()).device
        cache, first = network.start(torch.tensor([prompt], device=device))
        tokens = torch.cat((first, torch.tensor([ids[:-1]], dtype=first.dtype, device=device)), dim=1)
        hidden = network.hidden(tokens, cache=cache)[0, first.shape[1] - 1 :]
        logits = network.head(hidden).double().cpu().numpy()  # (ids, vocab)

    def walk() -> Iterator[Step]:
        for position, (token, row) in enumerate(zip(ids, logits, strict=False)):
            last = position + 1 == len(ids)
            reason: FinishReason | None = None if not last else "stop" if token in end_ids else "length"
            yield Step(token, log_probability(row, token), Outlook(row), reason)

    return first[0].tolist(), walk()
