"""The start of an encoder whose first layers look at the tokens beside each token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from loquela.errors import RecipeError, UsageError
from loquela.models import config_from_dict
from loquela.models.base import architecture
from loquela.models.encoder_only import EncoderOnly
from loquela.text.tokenizer import Tokenizer
from loquela.training.recipe import Recipe
from loquela.training.run import fresh

SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 300}


def network(model_type: str, heads: int, places: int, dim: int = 128) -> EncoderOnly:
    shape = SHAPE | {"num_attention_heads": heads, "max_position_embeddings": places, "hidden_size": dim}
    if model_type == "distilbert":
        names = {"dim": dim, "hidden_dim": 64, "n_layers": 3, "n_heads": heads, "vocab_size": 300}
        shape = {**names, "max_position_embeddings": places}
    torch.manual_seed(0)
    made = architecture(model_type).NETWORK(config_from_dict({"model_type": model_type, **shape}))
    made.initialise()
    assert isinstance(made, EncoderOnly)
    return made.eval()


def looks(made: EncoderOnly, length: int) -> list[Tensor]:
    """The weights (heads, length, length) of each layer, mean over some random texts."""
    seen: list[Tensor] = []
    for layer in made.encoder.layers:
        layer.attention.probe = lambda weights: seen.append(weights.mean(0))
    with torch.no_grad():
        made.hidden(torch.randint(5, 300, (8, length), generator=torch.Generator().manual_seed(1)))
    return seen


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize(("heads", "length"), [(4, 60), (2, 100)])
def test_each_head_looks_at_a_neighbour_of_its_own(model_type: str, heads: int, length: int) -> None:
    made = network(model_type, heads, 128)
    before = looks(made, length)
    made.look_at_neighbours()
    first, second, third = looks(made, length)
    offsets = (-1, 1, -2, 2)
    inside = torch.arange(2, length - 2)
    for number, weights in enumerate((first, second)):
        for head in range(heads):
            offset = offsets[(number * heads + head) % 4]
            assert (weights[head].argmax(-1)[inside] == inside + offset).all(), (number, head)
            assert weights[head][inside, inside + offset].mean() > 0.25
            assert before[number][head][inside, inside + offset].mean() < 0.05
    assert third.max() < 0.2, "later layers start as ever"


def test_a_head_of_an_odd_width_cannot_turn_waves() -> None:
    with pytest.raises(UsageError, match="even width"):
        network("bert", 2, 32, dim=6).look_at_neighbours()


def recipe(model: dict[str, Any] | str, **changes: Any) -> Recipe:
    return Recipe.load({"model": model, "data": "x.txt", "output_dir": "o", "init": "neighbours", **changes})


def test_a_recipe_asks_for_it() -> None:
    tokenizer = Tokenizer.train("byte", [], special_tokens=("<pad>", "<mask>", "<s>"))
    shape = {"model_type": "bert", **SHAPE, "num_attention_heads": 4, "max_position_embeddings": 64}
    del shape["vocab_size"]
    changed = fresh(recipe(shape, objective="masked"), tokenizer)
    plain = fresh(recipe(shape, objective="masked", init="default"), tokenizer)
    differing = {name for name, p in changed.named_parameters() if not torch.equal(p, plain.get_parameter(name))}
    layers = [f"encoder.layers.{n}.attention.{part}.weight" for n in (0, 1) for part in ("q_proj", "k_proj")]
    assert differing == {"position_embedding.weight", *layers}
    with pytest.raises(RecipeError, match="init neighbours must have an encoder, but gpt2 is a decoder"):
        fresh(recipe({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}), tokenizer)
    with pytest.raises(RecipeError, match="init must not be given for a model that is there already"):
        recipe("directory")
