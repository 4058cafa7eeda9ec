"""The reader of safetensors against the library, the format's rules, and a hundred thousand damaged files."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loquela.checkpoint.tensors import MAX_HEADER, read_metadata, read_tensors, write_bytes, write_tensors
from loquela.errors import CheckpointError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]
names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)


def random_tensor(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    bits = torch.randint(0, 256, (*shape, dtype.itemsize), generator=torch.Generator().manual_seed(seed))
    return (bits % 2 if dtype == torch.bool else bits).to(torch.uint8).view(dtype).view(shape)


@given(
    st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4)), max_size=6),
    st.none() | st.just({"format": "pt"}),
)
@settings(max_examples=80)
def test_what_we_write_is_byte_for_byte_what_the_library_writes(
    tmp_path_factory: pytest.TempPathFactory, spec: dict[str, Any], metadata: dict[str, str] | None
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "t.safetensors"
    tensors = {name: random_tensor(dtype, shape, i) for i, (name, (dtype, shape)) in enumerate(spec.items())}
    write_tensors(path, tensors, metadata)
    assert path.read_bytes() == safetensors.torch.save(tensors, metadata)
    stored = read_tensors(path)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        again = stored[name].read()
        assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
        assert again.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    assert read_metadata(path) == (metadata or {})


def test_parts_of_larger_tensors_and_transposed_ones_are_written_as_they_are_seen(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    write_tensors(tmp_path / "t", {"columns": whole[:, 1:3], "turned": whole.t(), "gradient": whole.requires_grad_()})
    stored = read_tensors(tmp_path / "t")
    assert stored["columns"].read().equal(whole[:, 1:3])
    assert stored["turned"].read().equal(whole.t())


def test_what_was_read_is_its_own_memory(tmp_path: Path) -> None:
    """The file may change or shrink later, and a weight may be changed without changing the file."""
    write_tensors(tmp_path / "t", {"a": torch.zeros(1000)})
    tensor = read_tensors(tmp_path / "t")["a"].read()
    content = (tmp_path / "t").read_bytes()
    tensor += 1
    assert (tmp_path / "t").read_bytes() == content
    stored = read_tensors(tmp_path / "t")["a"]
    (tmp_path / "t").write_bytes(content[:-100])
    assert tensor.sum() == 1000
    with pytest.raises(CheckpointError, match="shortened while it was read"):
        stored.read()


def file_of(header: bytes | dict[str, Any], data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int = 0, end: int = 16, dtype: Any = "F32", shape: Any = (4,), **more: Any) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": shape if isinstance(shape, str) else list(shape),
        "data_offsets": [start, end],
        **more,
    }


TWICE = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
VIOLATIONS: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": bytes(7),
    "header longer than the file": file_of({"a": entry()}, length=10_000),
    "header of 2^64 - 1": file_of({"a": entry()}, length=2**64 - 1),
    "header not an object": file_of(b"[1, 2]"),
    "header not JSON": file_of(b"{'a': 1}"),
    "header not UTF-8": file_of(b'{"\xff": 1}'),
    "half a character": file_of({"\ud800": entry()}),
    "header nested 100,000 deep": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "the same name twice": file_of(TWICE),
    "the same key twice": file_of(b'{"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "overlap": file_of({"a": entry(0, 12, shape=[3]), "b": entry(8, 16, shape=[2])}),
    "two names for the same bytes": file_of({"a": entry(), "b": entry()}),
    "hole": file_of({"a": entry(0, 4, shape=[1]), "b": entry(8, 16, shape=[2])}),
    "hole at the beginning": file_of({"a": entry(4, 16, shape=[3])}),
    "bytes left over": file_of({"a": entry(0, 12, shape=[3])}),
    "past the end": file_of({"a": entry(0, 20, shape=[5])}),
    "backwards": file_of({"a": entry(16, 0)}),
    "negative": file_of({"a": entry(-16, 0)}),
    "offsets beyond 64 bits": file_of({"a": entry(2**64, 2**64 + 16)}),
    "three offsets": file_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}}),
    "offsets not whole": file_of({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0.0, 16.0]}}),
    "shape that overflows": file_of({"a": entry(shape=[2**32, 2**32])}, b""),
    "shape that overflows to nothing": file_of({"a": entry(0, 0, shape=[2**62, 2**62, 0])}, b""),
    "shape of 2^63": file_of({"a": entry(0, 0, shape=[0, 2**63])}, b""),
    "shape not whole": file_of({"a": entry(shape=[4.0])}),
    "shape true": file_of({"a": entry(0, 4, shape=[True])}, bytes(4)),
    "shape negative": file_of({"a": entry(shape=[-4])}),
    "shape of 1,000 dimensions": file_of({"a": entry(0, 4, shape=[1] * 1000)}, bytes(4)),
    "shape a string": file_of({"a": entry(shape="4444")}),
    "shape too small for its bytes": file_of({"a": entry(shape=[3])}),
    "dtype unknown": file_of({"a": entry(dtype="F33")}),
    "dtype a list": file_of({"a": entry(dtype=["F32"])}),
    "dtype missing": file_of({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    "one key too many": file_of({"a": entry(strides=[1])}),
    "tensor not an object": file_of({"a": [0, 16]}),
    "metadata not an object": file_of({"__metadata__": "pt", "a": entry()}),
    "metadata not strings": file_of({"__metadata__": {"format": 1}, "a": entry()}),
    "number of 5,000 digits": file_of(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}'),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n(S'true'\ntR.",
    "a zip": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_header_that_lies_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(VIOLATIONS[name])
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_header_of_more_than_100_mb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(file_of(b'{"a', b"", length=MAX_HEADER + 1))
        file.truncate(MAX_HEADER + 100)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="at most 100,000,000 bytes, but is 100,000,001"):
        read_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_message_does_not_repeat_an_endless_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"\u202e\n\x1b" * 100_000: [0, 16]}))
    with pytest.raises(CheckpointError, match=r"characters") as caught:
        read_tensors(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_tensors(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_tensors(tmp_path)


# -- mutants

Mutation = Callable[[random.Random, bytearray], bytes]
INTERESTING = [0, 1, -1, 2, 7, 8, 15, 16, 17, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, 1e999]
VALUES: list[Any] = [*INTERESTING, None, True, "", "F32", "BF16", "I8", "F8_E4M3", [], {}, [0, 16], [[4]], "x" * 300]


def original() -> bytes:
    tensors = {
        "model.embed_tokens.weight": torch.arange(24.0).view(6, 4),
        "model.norm.weight": torch.ones(4, dtype=torch.bfloat16),
        "ids": torch.arange(3),
        "empty": torch.zeros(0, 7),
        "scalar": torch.tensor(True),
    }
    return safetensors.torch.save(tensors, {"format": "pt"})


def flip(rng: random.Random, file: bytearray) -> bytes:
    for _ in range(rng.randint(1, 4)):
        file[rng.randrange(len(file))] ^= 1 << rng.randrange(8)
    return bytes(file)


def cut(rng: random.Random, file: bytearray) -> bytes:
    start = rng.randrange(len(file))
    return bytes(file[:start] + (b"" if rng.random() < 0.5 else file[start + rng.randint(1, 40) :]))


def grow(rng: random.Random, file: bytearray) -> bytes:
    place = rng.randrange(len(file) + 1)
    return bytes(file[:place] + rng.choice([rng.randbytes(rng.randint(1, 40)), file[:40], b" " * 8]) + file[place:])


def length(rng: random.Random, file: bytearray) -> bytes:
    number = int.from_bytes(file[:8], "little") + rng.choice([-1, 1, 8, -8, rng.randint(-400, 400), 2**32, 2**60])
    return (number % 2**64).to_bytes(8, "little") + file[8:]


def header(rng: random.Random, file: bytearray) -> bytes:
    """Change the header as JSON, so that what comes is well-formed and lies."""
    size = int.from_bytes(file[:8], "little")
    entries, data = json.loads(file[8 : 8 + size]), bytes(file[8 + size :])
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(entries))
        change = rng.randrange(7)
        if change == 0:
            entries[name] = rng.choice(VALUES)
        elif change == 1:
            entries[rng.choice([name + "x", "__metadata__", "\ud800", ""])] = entries[name]
        elif change == 2:
            del entries[name]
            if not entries:
                break
        elif isinstance(entries[name], dict) and entries[name]:
            key = rng.choice(list(entries[name]))
            value = entries[name][key]
            if change == 3 and isinstance(value, list) and value:
                value[rng.randrange(len(value))] = rng.choice(VALUES)
            elif change == 4 and isinstance(value, list):
                value.append(rng.choice(INTERESTING))
            elif change == 5 and isinstance(value, list):
                entries[name][key] = [n + rng.choice([-8, -1, 1, 4, 8]) if type(n) is int else n for n in value]
            else:
                entries[name][key] = rng.choice(VALUES)
    return file_of(entries, data)


def twice(rng: random.Random, file: bytearray) -> bytes:
    """Repeat a piece of the header's text, which makes names appear twice."""
    size = int.from_bytes(file[:8], "little")
    text = bytes(file[8 : 8 + size])
    commas = [i for i, c in enumerate(text) if c == ord(",")]
    first, last = sorted(rng.sample(commas, 2))
    return file_of(text[:last] + text[first:], bytes(file[8 + size :]))


MUTATIONS: list[Mutation] = [flip, cut, grow, length, header, header, header, twice]


def survive(path: Path, file: bytes) -> bool:
    """Read a mutant whole: a valid load, which the library then agrees with, or a `CheckpointError`."""
    path.write_bytes(file)
    try:
        tensors = {name: stored.read() for name, stored in read_tensors(path).items()}
    except CheckpointError:
        return False
    for name, tensor in safetensors.torch.load(file).items():
        assert tensors[name].shape == tensor.shape
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    return True


def mutants(count: int, seed: int) -> list[bytes]:
    rng, file = random.Random(seed), original()
    return [rng.choice(MUTATIONS)(rng, bytearray(file)) for _ in range(count)]


def test_mutants_load_or_are_refused(tmp_path: Path) -> None:
    alive = [survive(tmp_path / "m.safetensors", mutant) for mutant in mutants(1000, seed=1)]
    assert 20 < sum(alive) < 500  # both happen, or the mutations teach nothing


@pytest.mark.soak
def test_100_000_mutants_load_or_are_refused_at_once(tmp_path: Path) -> None:
    path, slowest = tmp_path / "m.safetensors", 0.0
    tracemalloc.start()
    for batch in range(100):
        for mutant in mutants(1000, seed=batch):
            begin = time.process_time()
            survive(path, mutant)
            slowest = max(slowest, time.process_time() - begin)
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()
    assert slowest < 0.05


# -- writing


def test_a_disk_that_writes_a_few_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    write_tensors(tmp_path / "t", {"a": torch.arange(100.0)})
    monkeypatch.undo()
    assert read_tensors(tmp_path / "t")["a"].read().equal(torch.arange(100.0))


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    write_bytes(tmp_path / "t", b"first")
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "t", b"second")
    assert (tmp_path / "t").read_bytes() == b"first"
