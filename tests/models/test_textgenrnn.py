"""A trained LSTM of 2017 out of a Keras file: the formulas on its raw numbers, and the text that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loquela.checkpoint.convert import convert
from loquela.checkpoint.store import Loaded, load_model
from loquela.checkpoint.textgenrnn import read
from loquela.errors import CheckpointError, TokenizerError
from loquela.evaluation.perplexity import score
from loquela.generation.decode import generate_ids
from loquela.generation.sampling import GenerationSettings

h5py: Any = pytest.importorskip("h5py", reason="pip install loquela[keras]")
TEXT = "TIL that a man in the world of Game of Thrones is the first person"


@pytest.fixture(scope="module")
def weights(shared_data: Path) -> Path:
    return shared_data / "models" / "textgenrnn" / "textgenrnn_weights.hdf5"


@pytest.fixture(scope="module")
def loaded(weights: Path) -> Loaded:
    return read(weights)


def by_hand(path: Path, window: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Logits after one window, by the formulas of Keras and textgenrnn."""
    with h5py.File(path) as file:
        w = {name: item[()].astype(np.float64) for name, item in datasets(file).items()}

    def sigmoid(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))

    x = w["embedding/embedding/embeddings:0"][window]
    made = [x]
    for name in ("rnn_1/rnn_1", "rnn_2/rnn_2"):
        kernels = np.split(w[f"{name}/kernel:0"], 4, axis=1)  # Keras turns each about when it leaves cuDNN
        kernel = np.concatenate([k.T.reshape(k.shape, order="F") for k in kernels], axis=1)
        recurrent = np.concatenate([k.T for k in np.split(w[f"{name}/recurrent_kernel:0"], 4, axis=1)], axis=1)
        bias = sum(np.split(w[f"{name}/bias:0"], 2))
        h = c = np.zeros(128)
        rows = []
        for token in made[-1]:
            i, f, g, o = np.split(token @ kernel + h @ recurrent + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            rows.append(h)
        made.append(np.stack(rows))
    y = np.concatenate(made, axis=1)
    attention = np.exp(y @ w["attention/attention/attention_W:0"])
    average = (y * attention / attention.sum()).sum(0)
    logits: np.ndarray[Any, np.dtype[np.float64]] = average @ w["output/output/kernel:0"] + w["output/output/bias:0"]
    return logits


def datasets(file: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def test_the_formulas_on_the_raw_numbers(weights: Path, loaded: Loaded) -> None:
    assert loaded.tokenizer is not None
    ids = loaded.tokenizer.encode(TEXT)
    with torch.no_grad():
        logits = loaded.network(torch.tensor([ids]))[0]
    for length in (1, 7, 40, len(ids)):
        window = ([0] * 40 + ids[:length])[-40:]
        assert logits[length - 1].numpy() == pytest.approx(by_hand(weights, window), abs=2e-4)


def test_it_knows_english_and_writes_it(loaded: Loaded) -> None:
    assert loaded.tokenizer is not None
    assert score(loaded.network, loaded.tokenizer, TEXT).bits_per_byte < 1.6
    assert score(loaded.network, loaded.tokenizer, TEXT[::-1]).bits_per_byte > 4
    settings = GenerationSettings(max_new_tokens=60, temperature=0)
    ids = [step.id for step in generate_ids(loaded.network, loaded.tokenizer.encode("The "), settings)]
    assert loaded.tokenizer.decode(ids).startswith("state of the state")


def test_cut_and_padded_anywhere(loaded: Loaded) -> None:
    network = loaded.network
    torch.manual_seed(0)
    tokens, padding = torch.randint(1, 465, (2, 50)), torch.ones(2, 50, dtype=torch.bool)
    padding[0, :4], padding[1, 20:26] = False, False
    cache = network.new_cache()
    with torch.no_grad():
        first = network(tokens[:, :23], padding=padding[:, :23], cache=cache)
        got = torch.cat((first, network(tokens[:, 23:], padding=padding, cache=cache)), 1)
        for row, mask in enumerate(padding):
            alone = network(tokens[row : row + 1, mask])[0]
            assert (got[row, mask] - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_converted_with_its_proof(weights: Path, loaded: Loaded, tmp_path: Path) -> None:
    result = convert(weights, tmp_path / "model")
    assert result["parity"]["max_abs_logit_diff"] == 0
    again = load_model(tmp_path / "model")
    assert again.tokenizer is not None
    assert loaded.tokenizer is not None
    assert again.tokenizer.encode(TEXT) == loaded.tokenizer.encode(TEXT)
    assert again.tokenizer.decode(again.tokenizer.encode(TEXT)) == TEXT


def test_files_that_are_not_what_they_say(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a_weights.hdf5").write_bytes(b"\x89HDF\r\n\x1a\nnothing")
    with pytest.raises(CheckpointError, match="cannot be read as HDF5"):
        read(tmp_path / "a_weights.hdf5")
    (tmp_path / "b_weights.hdf5").write_bytes(weights.read_bytes())
    with pytest.raises(TokenizerError, match=r"b_vocab\.json"):
        read(tmp_path / "b_weights.hdf5")
    (tmp_path / "b_vocab.json").write_text('{"<s>": 1, "a": 7}')
    with pytest.raises(TokenizerError, match="from 1 to 464"):
        read(tmp_path / "b_weights.hdf5")
    with h5py.File(tmp_path / "c_weights.hdf5", "w") as file:
        file["embedding"] = h5py.ExternalLink(str(weights), "embedding")
    with pytest.raises(CheckpointError, match="is a link"):
        read(tmp_path / "c_weights.hdf5")
    with h5py.File(tmp_path / "d_weights.hdf5", "w") as file:
        (tmp_path / "secret").write_bytes(bytes(400))
        file.create_dataset("x", (100,), "f4", external=[(str(tmp_path / "secret"), 0, 400)])
    with pytest.raises(CheckpointError, match="plain numbers in the file itself"):
        read(tmp_path / "d_weights.hdf5")
    with h5py.File(tmp_path / "e_weights.hdf5", "w") as file:
        file.create_dataset("x", (3,), "f4")
    with pytest.raises(CheckpointError, match="must be a textgenrnn model"):
        read(tmp_path / "e_weights.hdf5")
