"""Byte-level BPE as GPT-2 and its heirs have it: one vocabulary, one list of merges, and how each cuts a text first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from loquela.errors import TokenizerError

__all__ = ["CUTS", "Cut", "build", "cut_of"]

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Cut:
    """How a text is cut into words before any merge: by a regular expression of its own, or by GPT-2's."""

    regex: str | None = None
    digits: bool = False
    """Whether every digit stands alone."""
    nfc: bool = False
    """Whether the text is composed (Unicode's NFC) first."""
    whole_words: bool = False
    """Whether a word that is in the vocabulary is taken as it is, whatever its merges would give."""


CUTS: Mapping[str, Cut] = {
    "gpt-2": Cut(),
    "olmo": Cut(nfc=True),
    "smollm": Cut(digits=True),
    "llama-bpe": Cut(_LLAMA3, whole_words=True),
    "qwen2": Cut(_QWEN2, nfc=True),
}
"""llama.cpp's name of each way (`tokenizer.ggml.pre`)."""


def build(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    cut: Cut = CUTS["gpt-2"],
    added: Sequence[AddedToken] = (),
) -> tokenizers.Tokenizer:
    """Return the tokenizer; a merge of pieces that are not in the vocabulary is a `TokenizerError`."""
    for pair in merges:
        if not (pair[0] in vocabulary and pair[1] in vocabulary and pair[0] + pair[1] in vocabulary):
            raise TokenizerError(f"a merge must join two pieces of the vocabulary to a third, but {pair} does not")
    core = models.BPE(vocab=dict(vocabulary), merges=list(merges), ignore_merges=cut.whole_words)
    backend = tokenizers.Tokenizer(core)
    if cut.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _words(cut)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_tokens(list(added))
    return backend


def cut_of(description: Mapping[str, Any]) -> str | None:
    """Return the name in `CUTS` of what a tokenizer.json does, or None when it is none of them."""
    model = description["model"]
    if model["type"] != "BPE" or (description["decoder"] or {}).get("type") != "ByteLevel":
        return None
    steps, normaliser = _steps(description["pre_tokenizer"]), _types(description["normalizer"])
    if not model["merges"] and steps in (_steps(_json(_words(CUTS["gpt-2"]))), [("ByteLevel", False, False)]):
        return "gpt-2" if not normaliser else None  # every byte is a token, wherever the text is cut
    for name, cut in CUTS.items():
        same = steps == _steps(_json(_words(cut))) and normaliser == (["NFC"] if cut.nfc else [])
        if same and bool(model.get("ignore_merges")) == cut.whole_words:
            return name
    return None


def _words(cut: Cut) -> pre_tokenizers.PreTokenizer:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.regex is None)
    if cut.regex is not None:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cut.regex), "isolated"), last])
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), last]) if cut.digits else last


def _json(step: pre_tokenizers.PreTokenizer) -> Any:
    return json.loads(step.__getstate__())


def _steps(step: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    """What a pre-tokenizer does, without what only moves offsets."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for part in step["pretokenizers"] for inner in _steps(part)]
    keys = {"ByteLevel": ("add_prefix_space", "use_regex"), "Digits": ("individual_digits",), "Split": ("behavior",)}
    values = [step.get(key, key == "use_regex") for key in keys.get(step["type"], ())]
    return [(step["type"], *values, *([json.dumps(step["pattern"])] if step["type"] == "Split" else []))]


def _types(step: Mapping[str, Any] | None) -> list[str]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [name for part in step["normalizers"] for name in _types(part)]
    return [str(step["type"])]
