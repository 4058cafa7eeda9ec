"""Names in code and names on disk: one table per architecture, read in both directions."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from loquela.checkpoint.tables import in_16_bits
from loquela.checkpoint.tensors import StoredTensor, shown
from loquela.errors import MismatchError, UsageError
from loquela.layers.quantized import QuantizedLinear
from loquela.models.base import Network, Rename

__all__ = ["disk_name", "load_into", "read_rest", "to_disk"]

_TABLES = (nn.Embedding, nn.Linear)


@dataclass
class _Slot:
    """A tensor of a network, and every place where it stands: more than one when it is tied."""

    tensor: Tensor
    places: list[tuple[str, str, bool]] = field(default_factory=list)
    """Name in code, name on disk, whether it is transposed between them."""


def disk_name(name: str, renames: Sequence[Rename]) -> tuple[str, bool]:
    """Return the name on disk of a tensor's `name` in code, and whether it is transposed there.

    The longest rule that fits the name's beginning wins. Raises `LookupError` where an architecture forgot one.
    """
    parts = name.split(".")
    best: tuple[int, str, bool] | None = None
    for rule in renames:
        pattern = rule[0].split(".")
        if len(pattern) > len(parts) or (best and len(pattern) <= best[0]):
            continue
        if all(p in ("*", part) for p, part in zip(pattern, parts, strict=False)):
            stars = iter(part for p, part in zip(pattern, parts, strict=False) if p == "*")
            head = [next(stars) if p == "*" else p for p in rule[1].split(".")]
            best = len(pattern), ".".join(head + parts[len(pattern) :]), len(rule) == 3
    if best is None:
        raise LookupError(f"no rule names the tensor {name!r} on disk")
    return best[1], best[2]


def to_disk(network: Network) -> dict[str, Tensor]:
    """Return the tensors of `network` under their names on disk, contiguous; a tied one once, under its first name."""
    if any(isinstance(module, QuantizedLinear) for module in network.modules()):
        raise UsageError(
            "a network is saved with its full weights, but some of its matrices are quantised: load it again"
        )
    tensors = {}
    prefix = network.base_prefix if network.headless else ""
    for slot in _slots(network):
        _, name, transposed = slot.places[0]
        name = name.removeprefix(prefix)
        tensor = slot.tensor.detach()
        tensors[name] = (tensor.t() if transposed else tensor).contiguous()
    return tensors


def load_into(
    network: Network,
    tensors: Mapping[str, Tensor | StoredTensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    unread: dict[str, StoredTensor] | None = None,
) -> None:
    """Fill `network` with `tensors` by their names on disk.

    All names and shapes are checked before anything is changed: one `MismatchError` lists whatever is missing, extra
    or misshapen. Parameters on the meta device, and buffers, are replaced by tensors of `dtype` (None: as stored)
    on `device`; other parameters keep their identity, dtype and device and take the values. Where `unread` is given,
    it gets, by names in code, the matrices of linear layers on the meta device that stand in a file as they are in the
    network; these stay where they are. Embeddings are then kept as `in_16_bits` says.
    """
    given = _with_prefix(network, _current(network, tensors))
    slots = _slots(network)
    for slot in slots:
        first = slot.places[0][1]
        if first in network.optional and first not in given:
            given[first] = torch.zeros(slot.tensor.shape, dtype=slot.tensor.dtype)
    wanted = {place[1] for slot in slots for place in slot.places}
    given = {n: value for n, value in given.items() if n in wanted or not _matches(n, network.ignored)}
    _check(slots, given)
    work = list[Callable[[], object]]()
    for slot in slots:
        own, name, transposed = next(place for place in slot.places if place[1] in given)
        source = given[name]
        if isinstance(slot.tensor, nn.Parameter) and not slot.tensor.is_meta:
            with torch.no_grad():
                slot.tensor.copy_(_read(source, transposed))
            continue
        if unread is not None and isinstance(source, StoredTensor) and not transposed and slot.tensor.is_meta:
            left = {place: source for place, _, _ in slot.places if _owner(network, place) is nn.Linear}
            unread |= left
            if len(left) == len(slot.places):
                continue
            if dtype == torch.float32 and all(_owner(network, place[0]) in _TABLES for place in slot.places):
                unread[own] = source
                _replace(network, [place[0] for place in slot.places], slot.tensor, in_16_bits(source))
                continue
        kept = source.dtype if dtype is None or not source.dtype.is_floating_point else dtype  # counts stay whole
        if isinstance(source, StoredTensor) and torch.device(device).type == "cpu":
            value = torch.empty(slot.tensor.shape, dtype=kept)
            as_it_is = kept == source.dtype and not transposed
            work.append(partial(source.read_into, value) if as_it_is else partial(_copy, source, transposed, value))
        else:
            value = _read(source, transposed).to(device=device, dtype=kept).contiguous()
        _replace(network, [place[0] for place in slot.places], slot.tensor, value)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done in [pool.submit(piece) for piece in work]:
            done.result()


def read_rest(network: Network, unread: Mapping[str, StoredTensor], *, dtype: torch.dtype | None = None) -> None:
    """Fill what `load_into` left unread, on the CPU."""
    for name, source in unread.items():
        old = network.get_parameter(name)
        kept = source.dtype if dtype is None else dtype
        if old.is_meta or old.dtype != kept:
            places = [place for place, found in network.named_parameters(remove_duplicate=False) if found is old]
            _replace(network, places, old, source.read().to(kept))


def _owner(network: Network, name: str) -> type[nn.Module] | None:
    """The kind of module whose weight a tensor is."""
    module, _, leaf = name.rpartition(".")
    return type(network.get_submodule(module)) if leaf == "weight" else None


def _copy(source: StoredTensor, transposed: bool, place: Tensor) -> None:
    place.copy_(_read(source, transposed))


def _slots(network: Network) -> list[_Slot]:
    slots: dict[int, _Slot] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        slot = slots.setdefault(id(tensor), _Slot(tensor))
        slot.places.append((name, *disk_name(name, network.renames)))
    return list(slots.values())


def _current(network: Network, tensors: Mapping[str, Tensor | StoredTensor]) -> dict[str, Tensor | StoredTensor]:
    """Give the tensors of an old checkpoint the names that they have today."""
    current = {}
    for name, value in tensors.items():
        today = next((name.removesuffix(old) + new for old, new in network.aliases if name.endswith(old)), name)
        current[name if today in tensors else today] = value  # both are there: then the old one is extra
    return current


def _with_prefix(network: Network, tensors: Mapping[str, Tensor | StoredTensor]) -> dict[str, Tensor | StoredTensor]:
    """Give the names of a checkpoint that was saved without its head the prefix that they lack."""
    prefix = network.base_prefix
    if not prefix or any(name.startswith(prefix) for name in tensors):
        return dict(tensors)
    complete = {place[1] for slot in _slots(network) for place in slot.places}
    return {name if name in complete else prefix + name: value for name, value in tensors.items()}


def _check(slots: list[_Slot], given: Mapping[str, Tensor | StoredTensor]) -> None:
    missing, wrong = [], []
    extra = set(given)
    for slot in slots:
        present = [place for place in slot.places if place[1] in given]
        extra.difference_update(place[1] for place in present)
        shapes = {name: _shape(slot.tensor, transposed) for _, name, transposed in slot.places}
        if not present:
            first = slot.places[0][1]
            missing.append(f"{first} {shapes[first]}")
        for _, name, _ in present:
            value = given[name]
            if list(value.shape) != shapes[name]:
                wrong.append(f"{name} must be {shapes[name]}, but is {list(value.shape)}")
            elif value.dtype.is_floating_point != slot.tensor.dtype.is_floating_point:
                wrong.append(f"{name} must hold {slot.tensor.dtype}, but holds {value.dtype}")
    problems = [
        *_listed("missing", missing),
        *_listed("extra", [f"{shown(name)} {list(given[name].shape)}" for name in sorted(extra)]),
        *_listed("misshapen", wrong),
    ]
    if not problems:
        problems = [text for slot in slots for text in _untied(slot, given)]
    if problems:
        raise MismatchError(f"the tensors do not fit the model that config.json describes: {'; '.join(problems)}")


def _untied(slot: _Slot, given: Mapping[str, Tensor | StoredTensor]) -> Iterable[str]:
    """A tied tensor may be written twice, as older libraries do, but not with two values."""
    present = [place[1] for place in slot.places if place[1] in given]
    if len(present) > 1:
        first = _read(given[present[0]])
        for name in present[1:]:
            if not torch.equal(first, _read(given[name])):
                yield f"{name} must equal {present[0]}, to which config.json ties it, but differs"


def _listed(what: str, items: list[str]) -> list[str]:
    return [f"{len(items)} {what} ({', '.join(items)})"] if items else []


def _shape(tensor: Tensor, transposed: bool) -> list[int]:
    return list(tensor.t().shape if transposed else tensor.shape)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _read(value: Tensor | StoredTensor, transposed: bool = False) -> Tensor:
    value = value.read() if isinstance(value, StoredTensor) else value
    return value.t() if transposed else value


def _replace(network: Network, names: list[str], old: Tensor, value: Tensor) -> None:
    """Put one tensor in the place of `old` wherever it stands, so that what was tied stays tied."""
    new = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    for name in names:
        module, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(module), leaf, new)
