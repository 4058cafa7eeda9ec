"""llama2.c's files against its own program, written down again in NumPy and plain Python."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from loquela.checkpoint import llama2c
from loquela.checkpoint.store import Loaded, load_model, save_model
from loquela.errors import CheckpointError, ConfigError, LoquelaError, TokenizerError
from loquela.models.llama import LlamaConfig

Array = np.ndarray[Any, np.dtype[np.float32]]
SHAPE = {"dim": 24, "hidden": 40, "layers": 2, "heads": 4, "kv_heads": 2, "vocabulary": 290, "context": 20}


@dataclass
class Reference:
    """`run.c`: the forward pass of a .bin file, position by position, with neighbouring pairs rotated."""

    header: tuple[int, ...]
    weights: dict[str, Array]

    @classmethod
    def read(cls, data: bytes) -> Reference:
        header = struct.unpack_from("<7i", data)
        dim, hidden, layers, heads, kv_heads, vocabulary, context = header
        kv, size = dim // heads * kv_heads, abs(vocabulary)
        shapes = {
            "embedding": (size, dim),
            "rms_attention": (layers, dim),
            "wq": (layers, dim, dim),
            "wk": (layers, kv, dim),
            "wv": (layers, kv, dim),
            "wo": (layers, dim, dim),
            "rms_ffn": (layers, dim),
            "w1": (layers, hidden, dim),
            "w2": (layers, dim, hidden),
            "w3": (layers, hidden, dim),
            "rms_final": (dim,),
            "cosines": (context, dim // heads // 2),
            "sines": (context, dim // heads // 2),
        }
        if vocabulary < 0:
            shapes["head"] = (size, dim)
        values, weights, start = np.frombuffer(data, "<f4", offset=28), {}, 0
        for name, shape in shapes.items():
            weights[name] = values[start : start + int(np.prod(shape))].reshape(shape)
            start += weights[name].size
        assert start == values.size
        weights.setdefault("head", weights["embedding"])
        return cls(header, weights)

    def logits(self, ids: list[int]) -> Array:
        dim, _, layers, heads, kv_heads, _, _ = self.header
        w, size = self.weights, dim // heads
        keys: list[list[Array]] = [[] for _ in range(layers)]
        values: list[list[Array]] = [[] for _ in range(layers)]
        rows = []
        for position, token in enumerate(ids):
            x = w["embedding"][token].astype(np.float64)
            for layer in range(layers):
                h = _rms(x, w["rms_attention"][layer])
                q = _rotated(w["wq"][layer] @ h, position, size).reshape(heads, size)
                keys[layer].append(_rotated(w["wk"][layer] @ h, position, size).reshape(kv_heads, size))
                values[layer].append((w["wv"][layer] @ h).reshape(kv_heads, size))
                out = []
                for head in range(heads):
                    shared = head // (heads // kv_heads)
                    scores = np.array([q[head] @ k[shared] for k in keys[layer]]) / np.sqrt(size)
                    scores = np.exp(scores - scores.max())
                    out.append(sum(p * v[shared] for p, v in zip(scores / scores.sum(), values[layer], strict=True)))
                x = x + w["wo"][layer] @ np.concatenate(out)
                h = _rms(x, w["rms_ffn"][layer])
                gate = w["w1"][layer] @ h
                x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
            rows.append(w["head"] @ _rms(x, w["rms_final"]))
        return np.stack(rows).astype(np.float32)


def _rms(x: Array, weight: Array) -> Array:
    return weight * (x / np.sqrt((x * x).mean() + 1e-5))


def _rotated(x: Array, position: int, size: int) -> Array:
    x = x.copy()
    for i in range(0, len(x), 2):
        angle = position / 10000.0 ** (i % size / size)
        a, b = x[i], x[i + 1]
        x[i], x[i + 1] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return x


class Pieces:
    """`run.c`: encode by joining the pair of the best score again and again, decode piece by piece."""

    def __init__(self, data: bytes) -> None:
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        position = 4
        while position < len(data):
            score, length = struct.unpack_from("<fi", data, position)
            self.pieces.append(data[position + 8 : position + 8 + length])
            self.scores.append(score)
            position += 8 + length
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}

    def encode(self, text: str) -> list[int]:
        ids = [1]
        if text:
            ids.append(self.ids[b" "])
        for character in text:
            raw = character.encode()
            ids += [self.ids[raw]] if raw in self.ids else [byte + 3 for byte in raw]
        while True:
            best, where, joined = -1e10, -1, -1
            for i in range(len(ids) - 1):
                found = self.ids.get(self.pieces[ids[i]] + self.pieces[ids[i + 1]])
                if found is not None and self.scores[found] > best:
                    best, where, joined = self.scores[found], i, found
            if where < 0:
                return ids
            ids[where : where + 2] = [joined]

    def decode(self, ids: list[int]) -> bytes:
        text = b""
        for before, token in pairwise(ids):
            piece = self.pieces[token]
            if before == 1 and piece.startswith(b" "):
                piece = piece[1:]
            byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", piece)
            text += bytes([int(byte[1], 16)]) if byte else piece
        return text


def checkpoint(seed: int = 0, *, shape: dict[str, int] = SHAPE) -> bytes:
    """A random .bin file; norms and all."""
    dim, hidden, layers, heads, kv_heads, vocabulary, context = shape.values()
    kv, size = dim // heads * kv_heads, abs(vocabulary)
    count = size * dim * (2 if vocabulary < 0 else 1) + layers * (2 * dim + 2 * dim * dim + 2 * kv * dim)
    count += layers * 3 * hidden * dim + dim + context * (dim // heads // 2) * 2
    values = np.random.default_rng(seed).normal(0, 0.3, count).astype("<f4")
    return struct.pack("<7i", *shape.values()) + values.tobytes()


def vocabulary(size: int = SHAPE["vocabulary"]) -> bytes:
    """A tokenizer file: special tokens, bytes, some pieces by falling score, then characters."""
    joined = [" t", "he", " the", "ab", "abc", "bc", "aa", "aaa", "aaaa", "é!", "\n\n"]
    single = [" ", "t", "h", "e", "a", "b", "c", "é", "!", "日", "本", "n", "o", "s", "<", ">", "/", "u", "k", "x"]
    pieces = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0), *((f"<0x{b:02X}>", 0.0) for b in range(256))]
    pieces += [(piece, -float(rank)) for rank, piece in enumerate(joined + single)]
    assert len(pieces) == size
    entries = ((score, text.encode()) for text, score in pieces)
    return struct.pack("<i", 8) + b"".join(struct.pack("<fi", score, len(raw)) + raw for score, raw in entries)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.bin").write_bytes(vocabulary())
    (tmp_path / "model.bin").write_bytes(checkpoint())
    return tmp_path


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_run_c(files: Path, own_head: bool, kv_heads: int) -> None:
    shape = {**SHAPE, "kv_heads": kv_heads, "vocabulary": -290 if own_head else 290}
    data = checkpoint(kv_heads, shape=shape)
    (files / "model.bin").write_bytes(data)
    model = llama2c.read(files / "model.bin")
    ids = [1, 259, 260, 3, 289, 17, 259, 2, 1, 100, 200]
    with torch.no_grad():
        got = model.network(torch.tensor([ids]))[0].numpy()
    expected = Reference.read(data).logits(ids)
    assert np.abs(got - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert (model.network.get_parameter("lm_head.weight") is model.network.get_parameter("token_embedding.weight")) == (
        not own_head
    )


@cache
def tokenizers() -> tuple[Any, Pieces]:
    from tempfile import TemporaryDirectory

    config = LlamaConfig(vocab_size=290, max_position_embeddings=64)
    with TemporaryDirectory() as directory:
        (Path(directory) / "tokenizer.bin").write_bytes(vocabulary())
        return llama2c.read_tokenizer(Path(directory) / "tokenizer.bin", config), Pieces(vocabulary())


ALPHABET = st.text(st.sampled_from("  thetheaaaabcé!日本\n<0x41>uno/🙂\x00") | st.characters(exclude_categories=["Cs"]))


@given(ALPHABET.filter(lambda text: "\u2581" not in text and not re.search("</?s>|<unk>", text)))
def test_tokens_are_those_of_run_c(text: str) -> None:
    ours, theirs = tokenizers()
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == text == theirs.decode(ids).decode()


@given(st.lists(st.integers(3, 289)).filter(lambda ids: ids[:1] != [3 + ord(" ")]))
def test_decoding_any_tokens_is_that_of_run_c(ids: list[int]) -> None:
    """Bytes that are no text show as U+FFFD, one for each byte of a broken run.

    At the beginning, transformers' decoder takes a blank that is written as a byte for the one that stands in front of
    every text, and so does ours; run.c keeps it. No text is encoded like that: a blank has a token of its own.
    """
    ours, theirs = tokenizers()
    expected = theirs.decode([1, *ids])
    try:
        assert ours.decode([1, *ids]) == expected.decode()
    except UnicodeDecodeError:
        assert "\N{REPLACEMENT CHARACTER}" in ours.decode([1, *ids])


def test_the_tokenizer_beside_the_model(files: Path) -> None:
    (files / "tokenizer.bin").rename(files / "tok290.bin")
    assert llama2c.read(files / "model.bin").tokenizer is not None
    (files / "tok290.bin").rename(files / "elsewhere.bin")
    with pytest.raises(TokenizerError, match=r"beside it as tok290\.bin or tokenizer\.bin"):
        llama2c.read(files / "model.bin")
    assert llama2c.read(files / "model.bin", files / "elsewhere.bin").tokenizer is not None


def header(**changes: int) -> bytes:
    return struct.pack("<7i", *{**SHAPE, **changes}.values())


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off in the header": lambda data: data[:27],
    "only the header": lambda data: data[:28],
    "cut off": lambda data: data[:-1],
    "four bytes too many": lambda data: data + bytes(4),
    "another width": lambda data: header(dim=28) + data[28:],
    "no layers": lambda data: header(layers=0) + data[28:],
    "negative": lambda data: header(hidden=-40) + data[28:],
    "no vocabulary": lambda data: header(vocabulary=0) + data[28:],
    "absurd layers": lambda data: header(layers=2**31 - 1) + data[28:],
    "absurd everything": lambda data: struct.pack("<7i", *[2**31 - 1] * 7) + data[28:],
    "heads that do not divide": lambda data: header(heads=5) + data[28:],
    "odd heads": lambda data: header(heads=8, kv_heads=8) + data[28:],
    "a newer layout": lambda data: struct.pack("<Ii", 0x616B3432, 1) + data[8:],
    "a pickle": lambda data: b"\x80\x02" + data,
    "a zip": lambda data: b"PK\x03\x04" + data,
    "noise": lambda data: bytes(range(256)) * 8,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_file(files: Path, name: str) -> None:
    (files / "model.bin").write_bytes(WRONG[name](checkpoint()))
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        llama2c.read(files / "model.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + bytes(3),
        lambda data: data + struct.pack("<fi", 0, 1) + b"z",
        lambda data: data[:4] + struct.pack("<fi", 0, -1) + data[12:],
        lambda data: data[:4] + struct.pack("<fi", 0, 2**31 - 1) + data[12:],
        lambda data: data[:4] + struct.pack("<fi", float("nan"), 5) + data[12:],
        lambda data: data.replace(b"<0x41>", b"<0x42>"),
        lambda data: data.replace("日".encode(), b"\xff\xfe\xfd"),
        lambda data: data.replace("日".encode(), "本".encode()),
        lambda data: bytes(len(data)),
    ],
)
def test_a_wrong_tokenizer_file(files: Path, change: Callable[[bytes], bytes]) -> None:
    (files / "tokenizer.bin").write_bytes(change(vocabulary()))
    with pytest.raises(TokenizerError) as caught:
        llama2c.read(files / "model.bin")
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=80))
def test_noise_is_a_typed_error(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "m.bin"
    path.write_bytes(noise)
    with pytest.raises(LoquelaError):
        llama2c.read(path, path)


# -- a trained model


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K, saved as a directory."""
    model = llama2c.read(shared_data / "models" / "stories260K" / "stories260K.bin")
    directory = tmp_path_factory.mktemp("stories") / "model"
    save_model(model.network, model.tokenizer, directory, generation_config=model.generation_config)
    return directory


def greedy(model: Loaded, steps: int) -> list[int]:
    ids, memory = [1], model.network.new_cache()
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model.network(torch.tensor([ids[-1:]]), cache=memory)[0, -1].argmax()))
    return ids


def test_greedy_text_is_that_of_run_c_byte_for_byte(stories: Path, shared_data: Path) -> None:
    readme = (shared_data / "README.md").read_text()
    quoted = re.search(r"`(Once upon a time, there was .*?)` \(200 steps\)", readme)
    assert quoted
    model = load_model(stories)
    ids = greedy(model, 200)
    assert model.tokenizer is not None
    assert model.tokenizer.decode(ids).encode() == quoted[1].replace("\\n", "\n").encode()
    stream = model.tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == model.tokenizer.decode(ids)


def test_the_directory_opens_in_transformers_with_the_same_logits_and_text(stories: Path, shared_data: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(stories)
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    model = load_model(stories)
    assert model.tokenizer is not None
    ids = greedy(model, 200)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits
        gap = (logits - model.network(torch.tensor([ids]))).abs().max()
    assert gap <= 1e-5 * logits.abs().max()  # the logits of this model reach 25, where float32 has steps of 2e-6
    expected = Reference.read((shared_data / "models" / "stories260K" / "stories260K.bin").read_bytes()).logits(
        ids[:40]
    )
    with torch.no_grad():
        assert np.abs(model.network(torch.tensor([ids[:40]]))[0].numpy() - expected).max() <= 1e-4
    assert tokenizer.decode(ids, skip_special_tokens=True) == model.tokenizer.decode(ids)
    generated = theirs.generate(torch.tensor([[1]]), max_new_tokens=60, do_sample=False)[0].tolist()
    assert generated == ids[:61]
    for text in ("Once upon a time", " Lily's  ball\n", "ça va? 日本 🙂"):
        assert tokenizer.encode(text) == model.tokenizer.encode(text)


def test_tokens_of_real_text_are_those_of_run_c(stories: Path, shared_data: Path) -> None:
    reference = Pieces((shared_data / "models" / "stories260K" / "tok512.bin").read_bytes())
    tokenizer = load_model(stories).tokenizer
    assert tokenizer is not None
    text = (shared_data / "lm" / "tinystories_sample.txt").read_text().replace("<|endoftext|>", "")
    for part in re.findall(r".{1,200}", text, re.DOTALL):
        assert tokenizer.encode(part) == reference.encode(part)
        assert tokenizer.decode(tokenizer.encode(part)) == part
