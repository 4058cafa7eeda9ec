"""How far back the model can learn from, and how learning fades with depth: norms of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import plotly.graph_objects as go
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.errors import UsageError
from loquela.inspection.gradients import gradient_norms
from loquela.inspection.reading import Inspected, Reading, Text, UnavailableError, layers_of, model_name, read
from loquela.inspection.reading import head as head_of
from loquela.inspection.theme import COLOURS, figure
from loquela.models.base import Network, architecture, config_from_dict

__all__ = ["VIEWS", "data", "gradients_through_depth", "terminal"]

_MOST = 1024
_SEED = 11
_WIDTH = 64
_FRESH: dict[str, dict[str, Any]] = {
    "rnn": {"hidden_size": _WIDTH, "num_hidden_layers": 1},
    "lstm": {"hidden_size": _WIDTH, "num_hidden_layers": 1},
    "gru": {"hidden_size": _WIDTH, "num_hidden_layers": 1},
    "gpt2": {"n_embd": _WIDTH, "n_layer": 2, "n_head": 4},
}


def data(
    model: Inspected,
    text: Text,
    *,
    other: Annotated[Inspected | None, "A second model to compare with."] = None,
    compare: Annotated[bool, "Beside it an RNN, LSTM, GRU and transformer, fresh and small."] = True,
) -> dict[str, Any]:
    """Return norms of gradients of the loss, on a text.

    - `distance`: for each curve its `name`, `distances` (tokens back) and `norms`: of the gradient of the last token's
      loss at the embedding so many tokens before; the model first, then what it is compared with. Averaged over the
      ends of the text that leave the same distances.
    - `depth`: `layers` (names, from the embedding on) and `norms`: of the gradient of the mean loss at what each layer
      gives out, over all tokens; None for a network whose layers cannot be looked between
    """
    reading = read(model, text, most=_MOST)
    missing: dict[str, str] = {}
    curves: list[dict[str, Any]] = []
    if model.network.kind != "decoder":
        missing["distance"] = "a distance back is one for a model that reads from left to right"
    elif len(reading.ids) < 4:
        raise UsageError(f"gradients by distance need a text of 4 tokens or more, but it has {len(reading.ids)}")
    else:
        try:
            curves.append(_curve(model_name(model), model.network, reading.ids))
            if other is not None:
                curves.append(_curve(model_name(other), other.network, read(other, text, most=_MOST).ids))
        except UsageError as error:
            missing["distance"] = str(error)
        if compare and curves:
            curves += [_curve(f"{name}, untrained", _fresh(name, reading.ids), reading.ids) for name in _FRESH]
    depth = None
    try:
        names, norms = gradients_through_depth(reading)
        depth = {"layers": names, "norms": norms}
    except UnavailableError as error:
        missing["depth"] = str(error)
    if not curves and depth is None:
        raise UnavailableError(f"gradients are unavailable: {missing['depth']}")
    return {"distance": curves or None, "depth": depth, "unavailable": missing}


def _curve(name: str, network: Network, ids: Sequence[int]) -> dict[str, Any]:
    """Average over the last quarter of the text, each token of it predicted in turn, over the distances all have."""
    first = max(2, len(ids) - max(1, len(ids) // 4))
    ends = list(range(first, len(ids)))[-max(2, min(16, _MOST // len(ids))) :]
    shortest = ends[0]
    total: dict[int, float] = dict.fromkeys(range(1, shortest + 1), 0.0)
    for end in ends:
        norms = gradient_norms(network, torch.tensor([ids[end - shortest : end + 1]]))
        for k, norm in norms.items():
            total[k] += norm / len(ends)
    return {"name": name, "distances": list(total), "norms": list(total.values())}


def _fresh(model_type: str, ids: Sequence[int]) -> Network:
    """A network as training from scratch starts it; the global generator is as it was afterwards."""
    sizes = {"n_positions": len(ids) + 1} if "n_embd" in _FRESH[model_type] else {}
    raw = {"model_type": model_type, "vocab_size": max(ids) + 1, **_FRESH[model_type], **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network: Network = architecture(model_type).NETWORK(config_from_dict(raw))
        network.initialise()
    return network


def gradients_through_depth(reading: Reading) -> tuple[list[str], list[float]]:
    """Return names and the norm of the gradient of the mean loss at the input of the first layer and each output.

    An encoder's loss is that of its own tokens. Raises `UnavailableError`.
    """
    network = reading.network
    layers = list(layers_of(network))
    if not layers:
        raise UnavailableError(f"{network.config.model_type} has no layers that can be looked between")
    caught: dict[str, Tensor] = {}

    def enters(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        caught["embedding"] = inputs[0] if inputs[0].requires_grad else inputs[0].requires_grad_()
        return (caught["embedding"], *inputs[1:])

    def leaves(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            caught[name] = output

        return hook

    handles = [layers[0][1].register_forward_pre_hook(enters)]
    handles += [layer.register_forward_hook(leaves(name)) for name, layer in layers]
    training = network.training
    try:
        with torch.enable_grad():
            network.eval()
            hidden = reading.hidden()[0]
            ids = torch.tensor(reading.written, device=hidden.device)
            rows, labels = (hidden, ids) if network.kind == "encoder" else (hidden[:-1], ids[1:])
            loss = F.cross_entropy(head_of(network, rows).float(), labels)
            gradients = torch.autograd.grad(loss, list(caught.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    names = [name.replace(".layers.", " layer ") for name in caught]
    return names, [0.0 if g is None else float(g.norm()) for g in gradients]


def distance(content: dict[str, Any]) -> go.Figure | None:
    """Gradient norms by distance."""
    if content["distance"] is None:
        return None
    traces = [
        go.Scatter(
            x=curve["distances"],
            y=[norm if norm > 1e-30 else None for norm in curve["norms"]],
            mode="lines+markers" if i == 0 else "lines",
            name=curve["name"],
            line={"color": COLOURS[i % len(COLOURS)], "width": 3 if i == 0 else 2, "dash": _DASHES[i % len(_DASHES)]},
            marker={"size": 5},
            hovertemplate="%{x} tokens back: %{y:.2e}<extra>" + curve["name"] + "</extra>",
        )
        for i, curve in enumerate(content["distance"])
    ]
    made = figure(
        traces,
        title="How far back a prediction can learn from",
        caption="The norm of the gradient of a token's loss at the embedding that many tokens before it. A line that "
        "falls steeply is a network that cannot learn from far back: the gradient has vanished on the way. Attention "
        "reaches every token in one step. Untrained networks are drawn as training would start them.",
        height=480,
        legend={"orientation": "h", "y": -0.22},
    )
    made.update_yaxes(type="log", title="gradient norm (log scale)", exponentformat="power", dtick=1)
    return made.update_xaxes(title="distance (tokens back)")


_DASHES = ("solid", "solid", "dash", "dot", "dashdot")


def depth(content: dict[str, Any]) -> go.Figure | None:
    """Gradient norms by layer."""
    if content["depth"] is None:
        return None
    made = figure(
        go.Bar(
            x=content["depth"]["layers"],
            y=content["depth"]["norms"],
            marker={"color": COLOURS[0]},
            hovertemplate="%{x}: %{y:.3e}<extra></extra>",
        ),
        title="How much of the gradient reaches each layer",
        caption="The norm of the gradient of the text's mean loss at what each layer gives out. Learning goes from "
        "right to left; if a bar is far lower than those to its right, little reaches the layers before it.",
    )
    return made.update_yaxes(title="gradient norm", rangemode="tozero")


VIEWS = {"distance": distance, "depth": depth}


def terminal(content: dict[str, Any]) -> Any:
    """Norms at some distances, and by layer."""
    from rich.console import Group
    from rich.table import Table

    drawn: list[Any] = []
    if content["distance"] is not None:
        longest = content["distance"][0]["distances"][-1]
        shown = sorted({k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, longest) if k <= longest})
        table = Table(box=None, pad_edge=False, title="gradient norm by distance (tokens back)", title_justify="left")
        table.add_column("model")
        for k in shown:
            table.add_column(str(k), justify="right")
        for curve in content["distance"]:
            by = dict(zip(curve["distances"], curve["norms"], strict=True))
            table.add_row(curve["name"], *(f"{by[k]:.1e}" if k in by else "" for k in shown))
        drawn.append(table)
    if content["depth"] is not None:
        table = Table(box=None, pad_edge=False, title="\ngradient norm by layer", title_justify="left")
        table.add_column("layer")
        table.add_column("norm", justify="right")
        for name, norm in zip(content["depth"]["layers"], content["depth"]["norms"], strict=True):
            table.add_row(name, f"{norm:.3e}")
        drawn.append(table)
    return Group(*drawn)
