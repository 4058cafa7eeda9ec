"""Other libraries' vocabularies against llama.cpp's expected ids and SentencePiece."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loquela.errors import TokenizerError
from loquela.text.tokenizer import Tokenizer


@pytest.mark.parametrize("name", ["gpt-2", "bert-bge", "llama-spm"])
def test_gguf_vocabularies_give_the_ids_of_llama_cpp(shared_data: Path, name: str) -> None:
    path = shared_data / "models" / "gguf" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(n) for n in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    assert len(expected) == 46
    assert Tokenizer.load(path).encode_batch(texts[:46], add_special_tokens=False) == expected


@pytest.mark.parametrize("name", ["mistral_v1_tokenizer.model", "fairseq2_test_1000.spm"])
def test_sentencepiece_models_cut_fifteen_languages_as_sentencepiece_does(shared_data: Path, name: str) -> None:
    oracle = pytest.importorskip("sentencepiece")
    path = shared_data / "models" / "tokenizers" / name
    lines = (shared_data / "lm" / "udhr_15_languages.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    reference = oracle.SentencePieceProcessor(model_file=str(path))
    assert Tokenizer.load(path).encode_batch(texts, add_special_tokens=False) == [reference.encode(t) for t in texts]


@pytest.mark.parametrize("name", ["x.model", "x.gguf", "vocab.txt", "vocab.json", "tokenizer.json.gz"])
def test_a_file_that_is_no_vocabulary_is_one_typed_error(tmp_path: Path, name: str) -> None:
    for content in (b"", b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, b"\x0a\xff\xff\xff\xff\x0f", b"{}", b"\x1f\x8b\x08"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TokenizerError):
            Tokenizer.load(tmp_path / name)
