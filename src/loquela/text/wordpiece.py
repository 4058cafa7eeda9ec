"""BERT's WordPiece (Devlin et al., arXiv:1810.04805) from its list of pieces."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from loquela.errors import TokenizerError

__all__ = ["ROLES", "build"]

ROLES = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}


def build(pieces: Sequence[str], *, lowercase: bool | None = None) -> tokenizers.Tokenizer:
    """Return the tokenizer of `pieces`, ids in order, `##` before one that continues a word.

    Without `lowercase`, a vocabulary that has no capital letter is taken to be of lower-cased text, whose accents are
    removed too. Raises `TokenizerError` when [UNK], [CLS] or [SEP] is missing.
    """
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if len(vocabulary) < len(pieces):
        raise TokenizerError("the pieces of a vocabulary must differ from each other, but do not")
    if missing := [ROLES[role] for role in ("unk", "cls", "sep") if ROLES[role] not in vocabulary]:
        raise TokenizerError(f"a WordPiece vocabulary must have {', '.join(missing)}, but does not")
    if lowercase is None:
        lowercase = not any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=ROLES["unk"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(
        (ROLES["sep"], vocabulary[ROLES["sep"]]), (ROLES["cls"], vocabulary[ROLES["cls"]])
    )
    special = [name for name in ROLES.values() if name in vocabulary]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return backend
