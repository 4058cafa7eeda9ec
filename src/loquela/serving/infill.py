"""Code at a cursor: what comes before it and after it, in the marks that a model was trained with.

The order is prefix, suffix, middle (arXiv:2207.14255); the model then writes the middle.
"""

from __future__ import annotations

from loquela.errors import UsageError
from loquela.text.tokenizer import Tokenizer

__all__ = ["infill_ids", "infill_marks"]

_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<|fim▁begin|>", "<|fim▁hole|>", "<|fim▁end|>"),  # DeepSeek-Coder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)


def infill_marks(tokenizer: Tokenizer) -> tuple[int, int, int] | None:
    """Return the ids of the marks before the prefix, the suffix and the middle, or None where there are none."""
    for marks in _MARKS:
        ids = [tokenizer.id_of(mark) for mark in marks]
        if None not in ids:
            return ids[0], ids[1], ids[2]  # type: ignore[return-value]
    return None


def infill_ids(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """Return the prompt whose completion stands between `prefix` and `suffix`; raises `UsageError` without marks."""
    marks = infill_marks(tokenizer)
    if marks is None:
        raise UsageError("a suffix needs a model that fills gaps, but this tokenizer has no marks for it: leave it out")
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (prefix, suffix))
    start = [] if tokenizer.bos_id is None or tokenizer.encode("")[:1] != [tokenizer.bos_id] else [tokenizer.bos_id]
    return [*start, marks[0], *before, marks[1], *after, marks[2]]
