"""Many dimensions brought down to two or three, and who lies close to whom."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from loquela.errors import MissingExtraError, UsageError

__all__ = ["METHODS", "nearest_rows", "pca", "project"]

Points = npt.NDArray[np.float64]
METHODS = ("pca", "tsne", "umap")


def pca(x: Points, dims: int) -> tuple[Points, list[float]]:
    """Return (n, dims) coordinates along the directions in which `x` (n, width) varies most, and each one's share.

    By the singular value decomposition of the centred rows (Pearson, 1901). The sign of each direction is free; it is
    chosen so that its largest coordinate is positive. Directions that `x` does not have are 0.
    """
    centred = x - x.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    y = u * s
    total = float((s**2).sum()) or 1.0
    found = np.zeros((len(x), dims))
    have = min(dims, y.shape[1])
    found[:, :have] = y[:, :have]
    largest = np.abs(found).argmax(0)
    signs = np.where(found[largest, np.arange(dims)] < 0, -1.0, 1.0)
    return found * signs, [float(v**2 / total) for v in s[:have]] + [0.0] * (dims - have)


def project(x: Points, dims: int, method: str, seed: int = 0) -> tuple[Points, list[float] | None]:
    """Return (n, dims) coordinates by one of `METHODS`, and for PCA the share of the variance along each.

    Raises `MissingExtraError` where t-SNE or UMAP is asked for without the extra `maps`, `UsageError` for fewer than
    four points to them.
    """
    if method not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, but is {method!r}")
    if method == "pca":
        return pca(x, dims)
    if len(x) < 4:
        raise UsageError(f"{method} needs at least 4 points, but there are {len(x)}: use pca")
    return _neighbouring(x, dims, method, seed), None


def _neighbouring(x: Points, dims: int, method: str, seed: int) -> Points:
    made: Any
    try:
        if method == "tsne":
            made = importlib.import_module("sklearn.manifold").TSNE(
                dims, perplexity=min(30.0, (len(x) - 1) / 3), init="pca", random_state=seed
            )
        else:
            made = importlib.import_module("umap").UMAP(
                n_components=dims, n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1, init="random"
            )
    except ImportError:
        raise MissingExtraError(
            f"{method} needs the extra `maps`, which is not installed: pip install 'loquela[maps]', or use pca"
        ) from None
    return np.asarray(made.fit_transform(x), dtype=np.float64)


def nearest_rows(table: Tensor, vectors: Tensor, count: int, without: list[set[int]]) -> list[list[tuple[int, float]]]:
    """Return for each of `vectors` (n, width) the `count` rows of `table` (rows, width) with the highest cosine.

    Row numbers in `without`, a set for each vector, are passed over.
    """
    found = []
    norms = table.norm(dim=-1).clamp_min(1e-12)
    for vector, skip in zip(F.normalize(vectors, dim=-1), without, strict=True):
        cosines = table @ vector / norms
        if skip:
            cosines[torch.tensor(sorted(skip), device=cosines.device)] = -2
        best = cosines.topk(min(count, len(table) - len(skip)))
        found.append([(int(i), float(c)) for i, c in zip(best.indices, best.values, strict=True)])
    return found
