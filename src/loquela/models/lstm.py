"""The LSTM language model (Hochreiter and Schmidhuber, 1997): gates decide what a cell keeps, so gradients last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from loquela.models.rnn import RNN, RNNConfig


@dataclass
class LSTMConfig(RNNConfig):
    """config.json of an LSTM."""

    model_type: ClassVar[str] = "lstm"
    hf_architecture: ClassVar[str] = "LSTMForCausalLM"


class LSTM(RNN):
    """The recurrent network with gates and cells."""

    kernel = nn.LSTM

    def initialise(self) -> None:
        """As a plain recurrent network, but the forget gate starts open (Jozefowicz et al., 2015)."""
        super().initialise()
        for name, parameter in self.named_parameters():
            if ".bias_ih" in name:
                forget = parameter.detach().chunk(4)[1]  # gates in torch's order: input, forget, cell, output
                nn.init.ones_(forget)


CONFIG, NETWORK = LSTMConfig, LSTM
