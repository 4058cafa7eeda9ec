"""Documents side by side in one row, none of which sees another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loquela.layers.masks import causal_mask, positions_from_segments
from loquela.models import config_from_dict
from loquela.models.base import Network, architecture

SHAPES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "qwen3": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "mistral": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "sliding_window": 4,
    },
    "gemma2": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 4,
    },
    "phi3": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    },
    **{
        f"position_switch/{position}": {
            "position": position,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        }
        for position in ("sinusoidal", "learned", "rotary", "relative", "alibi", "none")
    },
}


def network_of(name: str) -> Network:
    model_type = name.split("/")[0]
    torch.manual_seed(0)
    config = config_from_dict({"model_type": model_type, "vocab_size": 40, **SHAPES[name]})
    network: Network = architecture(model_type).NETWORK(config).eval().double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("name", SHAPES)
def test_a_document_in_a_row_is_read_as_if_it_stood_alone(name: str) -> None:
    network, lengths = network_of(name), (7, 1, 12)
    read: Any = network.hidden
    tokens = torch.randint(40, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    segments = torch.repeat_interleave(torch.tensor([3, 4, 9]), torch.tensor(lengths))[None]
    with torch.no_grad():
        packed = read(tokens, segments=segments)
        alone = [network.hidden(part) for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-6, atol=1e-9)
    whole = network.hidden(tokens)
    assert not torch.allclose(packed[:, 7:], whole[:, 7:], atol=1e-3), "else the border makes no difference"


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), window=st.none() | st.integers(1, 4))
def test_the_mask_of_documents_is_causal_inside_each(lengths: list[int], window: int | None) -> None:
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    n = sum(lengths)
    mask = causal_mask(n, n, window=window, segments=segments)[0, 0]
    for query in range(n):
        for key in range(n):
            near = window is None or query - key < window
            assert bool(mask[query, key]) == (key <= query and near and segments[0, query] == segments[0, key])
    expected = [i for length in lengths for i in range(length)]
    assert positions_from_segments(segments).tolist() == [expected]
