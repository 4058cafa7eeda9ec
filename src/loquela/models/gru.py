"""The GRU language model (Cho et al., 2014, arXiv:1406.1078): two gates where the LSTM has three, and no cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from loquela.models.rnn import RNN, RNNConfig


@dataclass
class GRUConfig(RNNConfig):
    """config.json of a GRU."""

    model_type: ClassVar[str] = "gru"
    hf_architecture: ClassVar[str] = "GRUForCausalLM"


class GRU(RNN):
    """The recurrent network with an update and a reset gate."""

    kernel = nn.GRU


CONFIG, NETWORK = GRUConfig, GRU
