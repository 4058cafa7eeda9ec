"""Putting adapters on a network, wearing them, training them, and taking them off again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from loquela.errors import UsageError, nearest
from loquela.models.base import Network
from loquela.peft.base import Adapter, AdapterConfig, draw_for, method
from loquela.peft.draw import Draw
from loquela.peft.saved import add_saved
from loquela.peft.targets import shared_by_rows
from loquela.peft.wardrobe import Dressed, Names, Wardrobe, dress, undress, wardrobe_of, worn_by
from loquela.peft.worn import DressedNetwork
from loquela.text.tokenizer import Tokenizer

__all__ = ["adapter_of", "adapters", "attach", "detach", "train_only", "trainable", "virtual_tokens", "wearing"]

_TASKS = {
    "fill-mask": None,
    "text-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "feature-extraction": "FEATURE_EXTRACTION",
    "decoder": "CAUSAL_LM",
    "encoder-decoder": "SEQ_2_SEQ_LM",
}


def attach(
    network: Network,
    config: AdapterConfig,
    name: str = "default",
    seed: int = 0,
    *,
    tokenizer: Tokenizer | None = None,
) -> Adapter:
    """Put a new adapter on `network`, under `name`; nothing wears it yet, and no parameter of the base is changed.

    The layers that it reaches become instances of subclasses of their classes; `network.state_dict()` stays the base's.
    Fresh parameters are drawn from `seed` and frozen until `train_only`. Raises `UsageError` for a name in use, a
    config that names no layer, and a method that makes no sense for this network. The `tokenizer` is needed for a soft
    prompt that starts from a text.
    """
    text = getattr(config, "prompt_tuning_init_text", None)
    ids = None if text is None or tokenizer is None else torch.tensor(tokenizer.encode(text))
    draw = draw_for(network, torch.Generator().manual_seed(seed), ids)
    adapter = new_adapter(network, config, name, draw)
    put_on(network, adapter)
    return adapter


def new_adapter(network: Network, config: AdapterConfig, name: str, draw: Draw) -> Adapter:
    """Make an adapter for `network` without putting it on; see `attach`."""
    known = adapters(network)
    if not name or name in known:
        raise UsageError(
            f"the name of an adapter must be a new one, but is {name!r}; there are {', '.join(known) or 'none'}"
        )
    if config.task_type is None:
        config = replace(config, task_type=_TASKS[getattr(network, "task", network.kind)])
    adapter = Adapter(name, *method(config.method).make(network, config, draw))
    if adapter.config.modules_to_save:
        add_saved(network, adapter, draw)
    return adapter


def put_on(network: Network, adapter: Adapter) -> None:
    """Put an adapter that was made for `network` on it."""
    wardrobe = wardrobe_of(network)
    if wardrobe is None:
        wardrobe = Wardrobe()
        dress(network, wardrobe, mixin=DressedNetwork)
    shared = tuple(f"{place}." for place in shared_by_rows(network))
    modules = dict(network.named_modules())
    for layer, part in adapter.parts.items():
        dress(modules[layer], wardrobe, whole=f"{layer}.".startswith(shared))
        cast(Dressed, modules[layer]).parts[adapter.name] = part
    wardrobe.adapters[adapter.name] = adapter


def detach(network: Network, name: str) -> None:
    """Take an adapter off; once the last is gone, the network is what it was before the first. Raises `UsageError`."""
    adapter, wardrobe = adapter_of(network, name), wardrobe_of(network)
    assert wardrobe is not None
    if wardrobe.worn is not None:
        raise UsageError(f"an adapter can be detached while nothing is worn, but {wardrobe.worn.names!r} is")
    if name in wardrobe.merged:
        raise UsageError(f"an adapter must be unmerged before it is detached, but {name!r} is merged")
    modules = dict(network.named_modules())
    for layer in adapter.parts:
        dressed = cast(Dressed, modules[layer])
        del dressed.parts[name]
        if not dressed.parts:
            undress(modules[layer])
    del wardrobe.adapters[name]
    if not wardrobe.adapters:
        undress(network)


def adapters(network: Network) -> dict[str, AdapterConfig]:
    """Return the configs of the adapters on a network, by name."""
    wardrobe = wardrobe_of(network)
    return {} if wardrobe is None else {name: adapter.config for name, adapter in wardrobe.adapters.items()}


def adapter_of(network: Network, name: str) -> Adapter:
    """Return an adapter by name; raises `UsageError` that names the nearest one."""
    wardrobe = wardrobe_of(network)
    known = {} if wardrobe is None else wardrobe.adapters
    if name not in known:
        there = ", ".join(known) or "none"
        raise UsageError(f"the adapter must be one of this network's ({there}), but is {name!r}{nearest(name, known)}")
    return known[name]


def trainable(network: Network, name: str) -> dict[str, nn.Parameter]:
    """Return an adapter's parameters under their keys in adapter_model.safetensors, in a stable order."""
    return dict(adapter_of(network, name).tensors())


def train_only(network: Network, name: str) -> dict[str, nn.Parameter]:
    """Freeze everything but one adapter, drop gradient buffers of the rest, and return its parameters; see `trainable`.

    Gradients flow while the adapter is worn: run forward and backward inside `wearing(network, name)`.
    """
    own = trainable(network, name)
    others = [p for other in adapters(network) if other != name for p in trainable(network, other).values()]
    for parameter in (*network.parameters(), *others):
        parameter.requires_grad_(False)
        parameter.grad = None
    for parameter in own.values():
        parameter.requires_grad_(True)
    return own


def virtual_tokens(network: Network, names: Names) -> int:
    """Return how many positions of the context window the adapters `names` take up before the first token."""
    wanted = [names] if isinstance(names, str) else [name for name in names or () if name is not None]
    virtual = [adapter_of(network, name).virtual for name in wanted]
    return max((part.length for part in virtual if part is not None), default=0)


@contextmanager
def wearing(network: Network, names: Names) -> Iterator[None]:
    """Wear adapters while the block runs: `network` computes with them in every call.

    `names` is None (the base alone), one name for all rows, or one name or None for each row of the batch: row i of
    every call then wears names[i], and its result is what it gives alone. Blocks nest; the innermost holds. Another
    thread that wears something waits. Raises `UsageError` for an unknown name.
    """
    wardrobe = wardrobe_of(network)
    wanted: Sequence[str | None] = [names] if isinstance(names, str) else list(names or ())
    for name in wanted:
        if name is not None:
            adapter_of(network, name)
    if wardrobe is None:
        yield
        return
    with wardrobe.lock:
        before = wardrobe.worn
        device = next(network.parameters()).device
        wardrobe.worn = None if names is None else worn_by(names, wardrobe, device)
        try:
            yield
        finally:
            wardrobe.worn = before
