"""The token ids that mean something to an objective, and who reads its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from loquela.data.batch import Ids
from loquela.data.tokens import end_of
from loquela.models.base import EncoderDecoder, Network
from loquela.text.tokenizer import Tokenizer

__all__ = ["FIM", "SENTINEL", "Reader", "Special"]

Reader = Literal["decoder", "encoder", "encoder-decoder"]
SENTINEL = "<extra_id_{}>"
"""T5's names of the tokens that stand for a span which was taken out."""
FIM = (
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),  # StarCoder
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),  # Qwen, CodeGemma
    ("<PRE>", "<MID>", "<SUF>"),  # the paper's, and CodeLlama's with a blank
    ("▁<PRE>", "▁<MID>", "▁<SUF>"),
)
"""Names of the three tokens of fill-in-the-middle, by the models that have them."""
_SENTENCE_ENDS = (".", "!", "?", "。", "！", "？", "\n")


@dataclass(frozen=True)
class Special:
    """What an objective must know of the tokenizer and the network.

    `before` and `after` are what the tokenizer puts around a text ([CLS] … [SEP], … </s>). `start` is the token from
    which an encoder-decoder writes. `names` are the tokens by id, as a person reads them.
    """

    vocab_size: int
    reader: Reader = "decoder"
    pad: int | None = None
    eos: int | None = None
    mask: int | None = None
    start: int | None = None
    sentinels: tuple[int, ...] = ()
    fim: tuple[int, int, int] | None = None
    """The tokens before prefix, middle and suffix."""
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    marks: frozenset[int] = frozenset()
    """Tokens that mark rather than say something; none is hidden, and none stands in for another."""
    names: Sequence[str] = field(default=(), repr=False)
    inner_mark: str = ""
    """What a token begins with that continues a word, where only that tells (WordPiece: `##`)."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, network: Network | None = None) -> Special:
        """Read off a tokenizer, and for an encoder-decoder its start token too."""
        before, after = _around(tokenizer)
        sentinels: list[int] = []
        while (token := tokenizer.id_of(SENTINEL.format(len(sentinels)))) is not None:
            sentinels.append(token)
        fim = next((ids for names in FIM if None not in (ids := tuple(map(tokenizer.id_of, names)))), None)
        return cls(
            vocab_size=tokenizer.vocab_size,
            reader="decoder" if network is None else network.kind,
            pad=tokenizer.pad_id,
            eos=next(iter(end_of(tokenizer)), None),
            mask=tokenizer.mask_id,
            start=network.start_token_id if isinstance(network, EncoderDecoder) else None,
            sentinels=tuple(sentinels),
            fim=fim,  # type: ignore[arg-type]
            before=before,
            after=after,
            marks=frozenset(tokenizer.special_tokens.values()),
            names=_Names(tokenizer),
            inner_mark="##" if tokenizer.kind == "wordpiece" else "",
        )

    @property
    def filling(self) -> int:
        """The id that fills short rows up; any will do, since nobody looks at it."""
        return 0 if self.pad is None else self.pad

    @cached_property
    def is_mark(self) -> npt.NDArray[np.bool_]:
        """(vocab_size,): which tokens are marks."""
        found = np.zeros(self.vocab_size, dtype=bool)
        found[sorted(token for token in self.marks if token < self.vocab_size)] = True
        return found

    @cached_property
    def ordinary(self) -> Ids:
        """The ids that say something."""
        return np.flatnonzero(~self.is_mark)

    def words(self, tokens: Ids) -> Ids:
        """Return the number of the word of each token of `tokens` (n,), from 0.

        A token goes on with the word before it if both are letters or digits where they meet.
        """
        goes_on, is_open = self._joints
        joined = goes_on[tokens[1:]] & is_open[tokens[:-1]]
        return np.concatenate(([0], np.cumsum(~joined))) if len(tokens) else np.empty(0, np.int64)

    def sentences(self, tokens: Ids) -> list[Ids]:
        """Cut `tokens` (n,) after each that ends a sentence: a full stop, a question or exclamation mark, a line."""
        return [part for part in np.split(tokens, np.flatnonzero(self._ends[tokens]) + 1) if len(part)]

    @cached_property
    def _joints(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(vocab_size,) each: whether a token goes on with an open word, and whether it leaves its word open."""
        goes_on, is_open = np.zeros(self.vocab_size, dtype=bool), np.zeros(self.vocab_size, dtype=bool)
        for token in self.ordinary:
            name = self.names[token]
            if self.inner_mark:
                goes_on[token], is_open[token] = name.startswith(self.inner_mark), True
            else:
                part = name.startswith("<0x")  # of a character
                goes_on[token], is_open[token] = part or name[:1].isalnum(), part or name[-1:].isalnum()
        return goes_on, is_open

    @cached_property
    def _ends(self) -> npt.NDArray[np.bool_]:
        ends = np.zeros(self.vocab_size, dtype=bool)
        for token in self.ordinary:
            ends[token] = self.names[token].rstrip(" ").endswith(_SENTENCE_ENDS)
        return ends


class _Names(Sequence[str]):
    """The names of a tokenizer's tokens; an id without a token has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return self.tokenizer.vocab_size

    def __getitem__(self, token: int) -> str:  # type: ignore[override]
        if self.tokenizer.backend.id_to_token(int(token)) is None:
            return ""
        return self.tokenizer.token(int(token))


def _around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and after a text."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=flag) for flag in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()
