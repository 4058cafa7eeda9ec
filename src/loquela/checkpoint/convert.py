"""From one kind of checkpoint to another, with a proof: what was written gives the logits of what was read.

A kind is a `Format`. A new one is one more file with its reader and, if it can be written, its writer, and its name in
`FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loquela.checkpoint import gguf, gguf_read, gguf_write, llama2c, textgenrnn
from loquela.checkpoint.files import MANIFEST
from loquela.checkpoint.hub import resolve
from loquela.checkpoint.store import Loaded, atomic_directory, load_model, write_model
from loquela.errors import CheckpointError, UsageError
from loquela.text.tokenizer import Tokenizer

__all__ = ["FORMATS", "Format", "convert"]

Check = Callable[[Path], None]


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint. `reads` and `writes` tell from a path whether it is, or is to be, of this kind.

    `write(model, target, check, dtype)` calls `check` with the finished files before they take the place of `target`,
    and leaves nothing behind when that raises. `bound` is the largest difference of logits that the kind may cause; one
    that stores weights in a way to be chosen names the ways in `dtypes`, each with its bound as a share of the largest
    logit.
    """

    name: str
    reads: Callable[[Path], bool]
    read: Callable[[Path], Loaded]
    writes: Callable[[Path], bool] | None = None
    write: Callable[[Loaded, Path, Check, str], None] | None = None
    bound: float = 1e-5
    dtypes: Mapping[str, float] = field(default_factory=dict)


def _write_directory(model: Loaded, target: Path, check: Check, dtype: str) -> None:
    with atomic_directory(target) as temporary:
        write_model(model.network, model.tokenizer, temporary, generation_config=model.generation_config)
        check(temporary)


_FILES = (".bin", ".gguf", ".h5", ".hdf5", ".json", ".npz", ".onnx", ".pt", ".pth", ".safetensors", ".zip")
FORMATS = (
    Format(
        "a model directory (config.json, safetensors)",
        reads=Path.is_dir,
        read=lambda path: load_model(path, dtype="auto"),
        writes=lambda path: path.suffix not in _FILES,  # model-1.5 is meant as a directory, model.gguf is not
        write=_write_directory,
    ),
    Format("a llama2.c checkpoint (.bin)", reads=lambda path: path.suffix == ".bin", read=llama2c.read),
    Format("textgenrnn's weights (.hdf5)", reads=lambda path: path.suffix == ".hdf5", read=textgenrnn.read),
    Format(
        "a GGUF file (.gguf)",
        reads=lambda path: path.suffix == ".gguf",
        read=gguf_read.read,
        writes=lambda path: path.suffix == ".gguf",
        write=gguf_write.write,
        dtypes=gguf.DTYPES,
    ),
)
_STORED = {torch.float16: "f16", torch.bfloat16: "bf16"}

PROBES = (
    "Once upon a time, there was a little girl named Lily.",
    "En un lugar de la Mancha, de cuyo nombre no quiero acordarme",
    "def f(x: int) -> float:\n\treturn 2.5 * x  # 1,234 + 5",
    "Ünïcödé, 日本語, русский, 🙂\r\n\r\n  <end>",
)
"""Prompts that are replayed; with them, ids from all over the vocabulary."""
_PROBE_TOKENS = 64


def convert(source: str | Path, target: str | Path, *, dtype: str | None = None) -> dict[str, Any]:
    """Convert the checkpoint `source` to `target`, a new path whose name says the kind.

    Weights keep the dtype that they are stored in; a GGUF file can have another (`gguf.DTYPES`). The written model is
    read again from the disk: its tokens must equal those of the source and its logits, computed in float32, must
    differ by no more than the bound, else a `CheckpointError` says by how much and nothing is left on the disk.

    Returns `model` (the path), `parity` (`max_abs_logit_diff`, `bound`, `tokens`), `parameters`, `tokenizer` (whether
    there is one), and `left_out`: the files of a source directory that nothing was read from.
    """
    source, target = resolve(source), Path(target)
    reader = _reader(source)
    kind, write = _writer(target)
    if dtype is not None and dtype not in kind.dtypes:
        ways = ", ".join(kind.dtypes) or "left out, since weights keep theirs"
        raise UsageError(f"the dtype of {kind.name} must be {ways}, but is {dtype!r}")
    model = reader.read(source)
    stored = dtype or _STORED.get(next(model.network.parameters()).dtype, "f32")
    parity: dict[str, Any] = {}
    written: set[str] = set()

    def check(path: Path) -> None:
        parity.update(_parity(model, kind.read(path), kind.bound, kind.dtypes.get(stored)))
        written.update(file.name for file in path.glob("*"))

    parameters = model.network.parameter_count()
    write(model, target, check, stored)
    left_out = sorted(file.name for file in source.iterdir()) if source.is_dir() and target.is_dir() else []
    return {
        "model": str(target),
        "parity": parity,
        "parameters": parameters,
        "tokenizer": model.tokenizer is not None,
        "left_out": [name for name in left_out if name not in written | {MANIFEST} and "safetensors" not in name],
    }


def _reader(source: Path) -> Format:
    if not source.exists():
        raise UsageError(f"a checkpoint to convert must exist, but {source} does not")
    for kind in FORMATS:
        if kind.reads(source):
            return kind
    known = "; ".join(kind.name for kind in FORMATS)
    raise UsageError(f"a checkpoint to convert must be one of: {known}; but {source} is none of them")


def _writer(target: Path) -> tuple[Format, Callable[[Loaded, Path, Check, str], None]]:
    if target.exists():
        raise UsageError(f"the target of a conversion must be a new path, but {target} exists: name another")
    known = []
    for kind in FORMATS:
        if kind.writes is not None and kind.write is not None:
            if kind.writes(target):
                return kind, kind.write
            known.append(kind.name)
    raise UsageError(f"the target of a conversion must be one of: {'; '.join(known)}; but is {target.name}")


def _parity(source: Loaded, written: Loaded, bound: float, share: float | None) -> dict[str, Any]:
    probes = _probes(source)
    if source.tokenizer and written.tokenizer and _encoded(written.tokenizer) != _encoded(source.tokenizer):
        raise CheckpointError("the written tokenizer must give the tokens of the source, but does not; nothing is kept")
    before, after = _logits(source, probes), _logits(written, probes)
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    if share is not None:
        bound = share * max(float(a.abs().max()) for a in before)
    if not difference <= bound:  # a NaN is no proof either
        raise CheckpointError(
            f"the logits of the written model may differ by {bound:g} from those of the source, but differ by "
            f"{difference:g}; nothing is kept"
        )
    return {"max_abs_logit_diff": difference, "bound": bound, "tokens": sum(map(len, probes))}


def _encoded(tokenizer: Tokenizer) -> list[list[int]]:
    return tokenizer.encode_batch(list(PROBES))


def _probes(model: Loaded) -> list[list[int]]:
    """Return token ids: the prompts, and a walk through the whole vocabulary."""
    size, window = model.network.vocab_size, min(model.network.context_length, _PROBE_TOKENS)
    walk = [(i * size) // window for i in range(window)]
    prompts = _encoded(model.tokenizer) if model.tokenizer else []
    return [walk, *(known for ids in prompts if (known := [i for i in ids if i < size][:window]))]


def _logits(model: Loaded, probes: list[list[int]]) -> list[Tensor]:
    network = model.network.float()
    compute: Callable[..., Tensor] = network.hidden if network.headless else network
    with torch.inference_mode():
        rows = [torch.tensor([ids]) for ids in probes]
        if network.kind == "encoder-decoder":
            return [compute(row, source=row) for row in rows]
        return [compute(row) for row in rows]
