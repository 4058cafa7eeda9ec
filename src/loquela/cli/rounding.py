"""`loquela convert --quantize`: a model in 8 or 4 bits, with what that costs said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loquela.errors import CheckpointError, UsageError

__all__ = ["round_model"]

_TEXT = 20_000  # characters of a shipped text that perplexity is measured on where none is named


def round_model(source: Path, target: Path, quantize: str, text: Path | None) -> dict[str, Any]:
    """Write the model directory `source` with matrices of few bits as `target`, a new directory.

    Embeddings and what chooses experts stay whole. Read again from the disk, the written model must give the
    logits of the source with its matrices replaced by what codes and scales stand for, else a `CheckpointError` says
    by how much they differ and nothing is kept. Returns `model`, `parity`, `parameters`, `bytes` (of the weights before
    and after) and, where there is a tokenizer, `perplexity` (`before`, `after`, `change`, `tokens`, `text`), computed
    as the engine computes.
    """
    import torch

    from loquela.checkpoint import few_bits
    from loquela.checkpoint.hub import resolve
    from loquela.checkpoint.store import atomic_directory, load_model, write_model
    from loquela.engine.decoder import compiled
    from loquela.engine.quantize import quantised

    if target.exists():
        raise UsageError(f"the target of a conversion must be a new path, but {target} exists: name another")
    source = resolve(source)
    if not source.is_dir() or target.suffix in (".gguf", ".bin"):
        raise UsageError(f"--quantize reads and writes model directories, but was given {source} and {target}")
    loaded = load_model(source, dtype="auto")
    network = loaded.network
    bits = {"int8": 8, "int4": 4}[quantize]
    rounded: dict[str, few_bits.Rounded] = {}
    for stored, layer in few_bits.matrices(network).values():
        made = quantised(layer.weight, bits)
        rounded[stored] = (made.bits, made.codes, made.scales)
    before = _figures(loaded, quantize, text, compiled)
    limit = min(network.context_length, 64)
    ids = torch.tensor([[i * network.vocab_size // limit for i in range(limit)]])
    with atomic_directory(target) as temporary:
        write_model(network, loaded.tokenizer, temporary, generation_config=loaded.generation_config, rounded=rounded)
        with torch.no_grad():
            for _, layer in few_bits.matrices(network).values():
                made = quantised(layer.weight, bits)
                layer.weight.copy_(made.dequantised())
            written = load_model(temporary).network
            expected, got = network.float()(ids), written(ids)
        difference = float((expected - got).abs().max())
        bound = 1e-2 * float(expected.abs().max()) if loaded_in_half(loaded) else 1e-5
        if not difference <= bound:
            raise CheckpointError(
                f"the written model may differ by {bound:g} from the rounded one, but differs by {difference:g}; "
                "nothing is kept"
            )
        sizes = [sum(f.stat().st_size for f in d.glob("*.safetensors")) for d in (source, temporary)]
    return {
        "model": str(target),
        "parity": {"max_abs_logit_diff": difference, "bound": bound, "tokens": limit},
        "parameters": network.parameter_count(),
        "tokenizer": loaded.tokenizer is not None,
        "bytes": {"before": sizes[0], "after": sizes[1]},
        "perplexity": before,
    }


def loaded_in_half(loaded: Any) -> bool:
    """Whether the weights were stored in 16 bits, to which the expected values were rounded once more."""
    return bool(next(loaded.network.parameters()).element_size() == 2)


def _figures(loaded: Any, quantize: str, text: Path | None, compiled: Any) -> dict[str, Any] | None:
    """Perplexity of the model and of its rounded form on a text; None without a tokenizer."""
    from loquela.data.corpora import path
    from loquela.data.readers import Piece, read_pieces
    from loquela.evaluation.perplexity import score

    if loaded.tokenizer is None:
        return None
    if text is None:
        first = next(iter(read_pieces(str(path("shakespeare")))))
        pieces = [Piece(first.text[:_TEXT], True)]
    else:
        pieces = list(read_pieces(str(text)))
    exact = score(compiled(loaded.network), loaded.tokenizer, pieces)
    near = score(compiled(loaded.network, quantize=quantize), loaded.tokenizer, pieces)
    return {
        "before": exact.perplexity,
        "after": near.perplexity,
        "change": near.perplexity / exact.perplexity - 1,
        "tokens": exact.tokens,
        "text": "shakespeare" if text is None else str(text),
    }
