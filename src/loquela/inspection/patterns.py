"""What an attention head does, told from numbers: how much of it goes to the token before, to the first, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PATTERNS", "describe", "induction", "rollout"]

Weights = npt.NDArray[np.float64]
"""(layers, heads, queries, keys), each row a distribution."""

PATTERNS = ("previous", "first", "itself", "induction")
_CLEAR = 0.4
"""A head is called after a pattern that takes at least this share of its attention."""


def describe(weights: Weights, echoed: npt.NDArray[np.float64] | None, *, square: bool) -> list[dict[str, Any]]:
    """Return for each head its scores, highest first by its pattern.

    Each is a mean over queries from the second on: the share of attention that goes to the token before (`previous`),
    to the `first`, and to `itself`; `induction` is measured on a text of its own, see `induction`. `entropy` is in
    bits. None stands where a pattern has no meaning, such as between a decoder and its source.
    """
    heads = []
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.where(weights > 0, weights * np.log2(weights), 0).sum(-1).mean(-1)
    layers, count, queries, _ = weights.shape
    later = np.arange(1, queries)
    for layer in range(layers):
        for head in range(count):
            rows = weights[layer, head]
            known = square and queries > 1
            scores = {
                "previous": float(rows[later, later - 1].mean()) if known else None,
                "first": float(rows[1:, 0].mean()) if queries > 1 else None,
                "itself": float(rows[later, later].mean()) if known else None,
                "induction": None if echoed is None else float(echoed[layer, head]),
            }
            name, best = max(((n, s) for n, s in scores.items() if s is not None), key=lambda p: p[1], default=("", 0))
            heads.append(
                {
                    "layer": layer,
                    "head": head,
                    "pattern": name if best >= _CLEAR else "mixed",
                    **{key: None if score is None else round(score, 6) for key, score in scores.items()},
                    "entropy": round(float(bits[layer, head]), 6),
                }
            )
    return sorted(heads, key=lambda h: -max(h[p] or 0 for p in PATTERNS))


def induction(weights: Weights, period: int) -> npt.NDArray[np.float64]:
    """Return how much each head (layers, heads) goes from a token to the one that followed it last time.

    `weights` are those on random tokens written twice, `period` long: only copying can predict the second half (Olsson
    et al., 2022, arXiv:2209.11895).
    """
    again = np.arange(period, 2 * period)
    score: npt.NDArray[np.float64] = weights[:, :, again, again - period + 1].mean(-1)
    return score


def rollout(weights: Weights) -> Weights:
    """Return (queries, keys): how much of each token reaches a position through all layers.

    Half of each layer's mixture is the residual stream, heads are averaged, layers multiplied (Abnar and Zuidema,
    2020, arXiv:2005.00928).
    """
    mixed = np.eye(weights.shape[-1])
    for layer in weights.mean(1):
        step = 0.5 * layer + 0.5 * np.eye(len(layer))
        mixed = step / step.sum(-1, keepdims=True) @ mixed
    return mixed


def repeated(vocab_size: int, period: int, forbidden: Sequence[int], seed: int = 0) -> list[int]:
    """Return random tokens written twice, none of them `forbidden`."""
    allowed = np.setdiff1d(np.arange(vocab_size), np.array(forbidden, dtype=np.int64))
    once = np.random.default_rng(seed).choice(allowed, period).tolist()
    return [*once, *once]
