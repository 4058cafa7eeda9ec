"""A loaded network taken apart as a diagram draws it: boxes in the order of computation, with shapes and costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from loquela.generation.decode import evaluating
from loquela.inspection.reading import Reading
from loquela.layers.attention import CrossAttention, MultiHeadAttention
from loquela.layers.experts import MixtureOfExperts
from loquela.models.base import EncoderDecoder, Network
from loquela.peft.base import Adapter

__all__ = ["Box", "take_apart"]


@dataclass
class Box:
    """A part of the network. `repeat` alike layers stand behind one box; counts are those of one of them."""

    side: str
    """`encoder`, `decoder`, or nothing for what belongs to neither."""
    place: str
    """`input`, `layer` or `output`."""
    layers: tuple[int, int] | None
    """The first and the last of the layers that it stands for."""
    name: str
    kind: str
    detail: str
    parameters: int
    flops: int
    tensors: list[dict[str, Any]]
    adapter: list[dict[str, Any]] = field(default_factory=list)
    """The tensors that an adapter adds to one of them."""

    @property
    def repeat(self) -> int:
        """How many layers it stands for."""
        return 1 if self.layers is None else self.layers[1] - self.layers[0] + 1


class _Taker:
    def __init__(self, network: Network, length: int, adapter: Adapter | None) -> None:
        self.network, self.length, self.adapter = network, length, adapter
        self.seen: set[int] = set()
        self.called = _call_order(network)
        self.order = {name: i for i, name in enumerate(self.called)}

    def boxes(self) -> list[Box]:
        """Return the boxes from the input to the output."""
        found: list[Box] = []
        for name, module in self._in_order("", self.network):
            side = next((side for side in ("encoder", "decoder") if name.startswith(side)), "")
            layers = getattr(module, "layers", module if isinstance(module, nn.ModuleList) else None)
            if isinstance(layers, nn.ModuleList):
                path = name if layers is module else f"{name}.layers"
                found += self._stack(side, path, layers, getattr(module, "windows", None))
                norm = getattr(module, "norm", None)
                if isinstance(norm, nn.Module):
                    found.append(self._box(side, "output", f"{name}.norm", norm))
            else:
                place = (
                    "output" if any(box.place == "layer" for box in found if box.side in (side, "decoder")) else "input"
                )
                place = "output" if any(word in name for word in ("head", "classifier", "pooler")) else place
                box = self._box(side, place, name, module)
                if box.parameters or box.tensors or box.kind == "positions":
                    found.append(box)
        return found

    def _in_order(self, prefix: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
        def first(item: tuple[str, nn.Module]) -> int:
            path = f"{prefix}{item[0]}"
            if path in self.order:
                return self.order[path]
            inside = [self.order[name] for name in self.order if name.startswith(f"{path}.")]
            return min(inside, default=10**9)

        children = [c for c in module.named_children() if not isinstance(c[1], nn.Dropout)]
        return sorted(children, key=first)

    def _stack(self, side: str, path: str, layers: nn.ModuleList, windows: Any) -> Iterable[Box]:
        looks = [_signature(layer) + repr(windows[i] if windows else None) for i, layer in enumerate(layers)]
        start = 0
        for i in range(1, len(layers) + 1):
            if i == len(layers) or looks[i] != looks[start]:
                window = windows[start] if windows else None
                parts = self._in_order(f"{path}.{start}.", layers[start])
                if not parts or not any(True for _ in layers[start].children()):
                    parts = [("", layers[start])]
                for name, part in parts:
                    whole = f"{path}.{start}.{name}".rstrip(".")
                    box = self._box(side, "layer", whole, part, window=window)
                    box.layers = (start, i - 1)
                    yield box
                for j in range(start + 1, i):  # a tensor that later layers share is theirs, not the head's
                    self.seen.update(id(p) for p in layers[j].parameters())
                start = i

    def _box(self, side: str, place: str, path: str, module: nn.Module, *, window: int | None = None) -> Box:
        tensors, parameters = [], 0
        for name, parameter in module.named_parameters():
            tied = id(parameter) in self.seen
            self.seen.add(id(parameter))
            count = parameter.numel()
            parameters += 0 if tied else count
            tensors.append({"name": name, "shape": list(parameter.shape), "parameters": count, "tied": tied})
        kind = _kind(path.rsplit(".", 1)[-1], module)
        length = min(self.length, window or self.length)
        return Box(
            side,
            place,
            None,
            path.rsplit(".", 1)[-1].replace("_", " "),
            kind,
            _detail(module, window),
            parameters,
            _flops(module, length),
            tensors,
            self._adapter(path),
        )

    def _adapter(self, path: str) -> list[dict[str, Any]]:
        if self.adapter is None:
            return []
        return [
            {"name": f"{layer}.{leaf}", "shape": list(p.shape), "parameters": p.numel()}
            for layer, part in self.adapter.parts.items()
            if layer == path or layer.startswith(f"{path}.")
            for leaf, p in part.tensors.items()
        ]


def take_apart(network: Network, length: int, adapter: Adapter | None = None) -> list[Box]:
    """Return the boxes of `network`; FLOPs are those of one token that looks at `length` tokens."""
    boxes = _Taker(network, length, adapter).boxes()
    if adapter is None or adapter.virtual is None:
        return boxes
    tensors = [(name, tensor) for name, tensor in adapter.virtual.tensors.items()]
    vectors = all(tensor.shape[-1] == network.dim for _, tensor in tensors)  # else keys and values of each layer
    pair = isinstance(network, EncoderDecoder)
    added = [{"name": name, "shape": list(t.shape), "parameters": t.numel()} for name, t in tensors]
    side = "" if not pair else "encoder" if vectors else "decoder"
    detail = f"{adapter.virtual.length} positions before the text"
    name = "soft prompt" if vectors else "soft prefix of every layer"
    return [Box(side, "input", None, name, "embedding", detail, 0, 0, [], added), *boxes]


def _call_order(network: Network) -> list[str]:
    """Names of modules in the order in which they are first called, learnt by running two tokens."""
    names: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, inputs, name=name: names.setdefault(name))
        for name, module in network.named_modules(remove_duplicate=False)
        if name
    ]
    target = [network.start_token_id] if isinstance(network, EncoderDecoder) else None
    try:
        with evaluating(network):
            hidden = Reading(network, [0, min(1, network.vocab_size - 1)], target).hidden()
            if getattr(network, "task", "") != "feature-extraction":
                network.head(hidden[:, 0])
    finally:
        for handle in handles:
            handle.remove()
    return list(names)


def _signature(module: nn.Module) -> str:
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    return repr((type(module).__name__, [type(m).__name__ for m in module.modules()], shapes))


_KINDS = (
    ("norm", "norm"),
    ("position", "positions"),
    ("bias", "positions"),
    ("embedding", "embedding"),
    ("input", "embedding"),
    ("cross", "cross"),
    ("attention", "attention"),
    ("feedforward", "feed_forward"),
    ("recurrent", "recurrent"),
    ("head", "head"),
    ("classifier", "head"),
    ("pooler", "head"),
)


def _kind(name: str, module: nn.Module) -> str:
    if any(isinstance(m, nn.RNNBase) for m in module.modules()):
        return "recurrent"
    return next((kind for word, kind in _KINDS if word in name), "other")


def _detail(module: nn.Module, window: int | None) -> str:
    if isinstance(module, MultiHeadAttention):
        shared = "" if module.kv_heads == module.heads else f", {module.kv_heads} for keys and values"
        masked = "" if window is None else f", last {window} tokens"
        return f"{module.heads} heads × {module.head_dim}{shared}{masked}"
    if isinstance(module, MixtureOfExperts):
        return f"{module.chosen} of {len(module.experts)} experts"
    if isinstance(module, nn.Embedding):
        return f"{module.num_embeddings:,} × {module.embedding_dim}"
    if isinstance(module, nn.Linear):
        return f"{module.in_features} → {module.out_features:,}"
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if linears:
        return f"{linears[0].in_features} → {linears[0].out_features:,} → {linears[-1].out_features:,}"
    cells = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
    if cells:
        layers = sum(m.num_layers for m in cells)
        return f"{layers} × {cells[0].mode}, {cells[0].input_size} → {cells[0].hidden_size}"
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    if tables:
        return " + ".join(f"{m.num_embeddings:,} × {m.embedding_dim}" for m in tables)
    shapes = [tuple(p.shape) for p in module.parameters()]
    return " × ".join(map(str, shapes[0])) if shapes else ""


def _flops(module: nn.Module, length: int) -> int:
    """Multiplications and additions for one token: matrices, and attention over `length` tokens."""
    if isinstance(module, MixtureOfExperts):
        per_expert = _flops(module.experts[0], length) if len(module.experts) else 0
        return module.chosen * per_expert + _flops(module.router, length)
    if isinstance(module, nn.Linear):
        return 2 * module.in_features * module.out_features
    if isinstance(module, nn.RNNBase):
        return sum(2 * p.numel() for p in module.parameters() if p.dim() == 2)
    total = sum(_flops(child, length) for child in module.children())
    if isinstance(module, MultiHeadAttention):
        total += 4 * module.heads * module.head_dim * length
    if isinstance(module, CrossAttention):  # keys and values are made once for the source, not for each token
        total -= sum(2 * m.in_features * m.out_features for m in (module.k_proj, module.v_proj))
    return total


def skeleton_length(network: Network) -> int:
    """Return the tokens that attention is counted over unless said otherwise: the window, at most 2,048."""
    return min(network.context_length, 2048)


def worn_parameters(adapter: Adapter | None) -> int:
    """Return how many parameters an adapter has."""
    return 0 if adapter is None else sum(p.numel() for _, p in adapter.tensors())
