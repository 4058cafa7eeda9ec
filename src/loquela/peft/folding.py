"""A model directory with adapters folded into its weights, or taken out again, and the proof that it is the same.

Prompts are replayed before and after: what is written is read again from the disk, and kept only if its logits are
those of the base that wears the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loquela.checkpoint.convert import PROBES
from loquela.checkpoint.store import DTYPES, Loaded, atomic_directory, load_model, write_model
from loquela.checkpoint.tensors import write_bytes
from loquela.errors import CheckpointError, UsageError
from loquela.models.base import Network
from loquela.peft.attaching import adapter_of, put_on, wearing
from loquela.peft.merging import How, combine, merge, subtract
from loquela.text.tokenizer import Tokenizer

__all__ = ["BOUNDS", "write_merged", "write_unmerged"]

BOUNDS = {"float64": 1e-4, "float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
"""How weights are stored → the largest difference of logits that merging may cause, as a share of the largest logit."""
_PROBE_TOKENS = 64


def write_merged(
    model: Loaded,
    names: Sequence[str],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    how: How = "weighted",
    density: float = 0.2,
    dtype: str = "float32",
    extra_files: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Write `model` with the adapters `names` of its network folded in, as a new directory that needs no adapter.

    Several adapters, or one with a weight, are joined first; see `combine`. Weights are stored as `dtype`. Returns
    `model` (the directory), `adapters`, `weights`, `how` and `parity` (`max_abs_logit_diff`, `bound`, `tokens`). Raises
    `CheckpointError`, and leaves nothing behind, when the probes differ by more than the bound; `UsageError` for what
    cannot be merged. The network's weights are changed.
    """
    network = model.network
    if weights is not None or len(names) > 1:
        weights = [1.0] * len(names) if weights is None else weights
        combine(network, names, weights, how, into=(worn := "+".join(names) + " combined"), density=density)
    else:
        worn = names[0]
    with wearing(network, worn):  # the window is less what a soft prompt takes
        probes = _probes(network, model.tokenizer)
    before = _logits(network, probes, worn)
    merge(network, worn)

    def after(written: Network) -> list[Tensor]:
        return _logits(written, probes, None)

    parity = _write(model, Path(output), dtype, before, after, extra_files or {})
    parity["tokens"] = sum(map(len, probes))
    return {
        "model": str(output),
        "adapters": list(names),
        "weights": [1.0] * len(names) if weights is None else list(weights),
        "how": how if len(names) > 1 else None,
        "parity": parity,
    }


def write_unmerged(
    model: Loaded,
    name: str,
    output: str | Path,
    *,
    dtype: str = "float32",
    extra_files: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Write `model`, whose weights the adapter `name` was merged into, with the adapter taken out; see `write_merged`.

    The probes are those of the merged model, replayed by the written one as it wears the adapter.
    """
    network = model.network
    probes = _probes(network, model.tokenizer)
    before = _logits(network, probes, None)
    subtract(network, name)

    def after(written: Network) -> list[Tensor]:
        put_on(written, adapter_of(network, name))
        return _logits(written, probes, name)

    parity = _write(model, Path(output), dtype, before, after, extra_files or {})
    parity["tokens"] = sum(map(len, probes))
    return {"model": str(output), "adapters": [name], "parity": parity}


def _write(
    model: Loaded,
    output: Path,
    dtype: str,
    before: Sequence[Tensor],
    after: Any,
    extra_files: Mapping[str, bytes],
) -> dict[str, Any]:
    if dtype not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, but is {dtype!r}")
    if output.exists():
        raise UsageError(f"the output of a merge must be a new path, but {output} exists: name another")
    bound = BOUNDS[dtype] * max(float(logits.abs().max()) for logits in before)
    network = model.network.to(DTYPES[dtype])
    with atomic_directory(output) as temporary:
        write_model(network, model.tokenizer, temporary, generation_config=model.generation_config)
        for name, content in extra_files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(temporary / name, content)
        found = after(load_model(temporary, verify=False).network)
        difference = max(float((a - b).abs().max()) for a, b in zip(before, found, strict=True))
        if not difference <= bound:  # a NaN is no proof either
            raise CheckpointError(
                f"the logits of the written model may differ by {bound:g} from those of the base with its adapter, but "
                f"differ by {difference:g}; nothing is kept"
            )
    return {"max_abs_logit_diff": difference, "bound": bound}


def _probes(network: Network, tokenizer: Tokenizer | None) -> list[list[int]]:
    """Return token ids: a walk through the whole vocabulary, and prompts."""
    size, window = network.vocab_size, min(network.context_length, _PROBE_TOKENS)
    walk = [(i * size) // window for i in range(window)]
    prompts = [] if tokenizer is None else tokenizer.encode_batch(list(PROBES))
    return [walk, *(known for ids in prompts if (known := [i for i in ids if i < size][:window]))]


def _logits(network: Network, probes: Sequence[Sequence[int]], worn: str | None) -> list[Tensor]:
    compute: Any = network.hidden if network.headless else network
    network.eval()
    with torch.no_grad(), wearing(network, worn):
        rows = [torch.tensor([ids]) for ids in probes]
        if network.kind == "encoder-decoder":
            return [compute(row, source=row).float() for row in rows]
        return [compute(row).float() for row in rows]
