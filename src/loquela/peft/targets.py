"""Which layers of a network an adapter reaches: by their names on disk, as PEFT chooses them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import nn

from loquela.checkpoint.rules import disk_name
from loquela.checkpoint.tensors import shown
from loquela.errors import UsageError, nearest
from loquela.layers.experts import MixtureOfExperts
from loquela.layers.positions import RelativeBias
from loquela.models.base import Network
from loquela.peft.base import AdapterConfig
from loquela.peft.patterns import fits

__all__ = [
    "HEADS",
    "chosen",
    "disk_names",
    "ends_with",
    "matches",
    "named",
    "shared_by_rows",
    "stored_transposed",
    "suffixes",
]

HEADS = ("lm_head", "lm_head.decoder", "classifier", "token_classifier")
"""Modules on top of a network, by name in code."""


def disk_names(network: Network) -> dict[str, str]:
    """Return the name on disk of each module that has tensors of its own, by its name in code."""
    prefix = network.base_prefix if network.headless else ""
    names = {}
    for name, module in network.named_modules():
        for leaf in [*module._parameters, *module._buffers]:
            try:
                names[name] = disk_name(f"{name}.{leaf}", network.renames)[0].removesuffix(f".{leaf}")
            except LookupError:  # a table that is computed, not stored
                continue
            names[name] = names[name].removeprefix(prefix)
            break
    return names


def chosen(
    network: Network,
    config: AdapterConfig,
    *,
    default: Sequence[str],
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding),
) -> dict[str, str]:
    """Return the layers that `config` chooses: names in code → names on disk.

    `target_modules` is a list (whole names, or ends of them after a dot), a regular expression for the whole name, or
    "all-linear": every matrix, recurrent ones too, but the head and a mixture's router and experts. Without it, those
    whose names in code end like one of `default`. Raises `UsageError` when no layer is chosen.
    """
    modules, names = dict(network.named_modules()), disk_names(network)
    fit = {name: disk for name, disk in names.items() if isinstance(modules[name], kinds)}
    targets = getattr(config, "target_modules", None)
    layers = getattr(config, "layers_to_transform", None)
    pattern = getattr(config, "layers_pattern", None)
    if targets is None:
        found = [name for name in fit if any(name.endswith(f".{end}") for end in default)]
    elif isinstance(targets, str) and targets.lower() == "all-linear":
        inside = _of_mixtures(network)
        found = [
            name
            for name in fit
            if isinstance(modules[name], nn.Linear | nn.RNNBase)
            and not f"{name}.".startswith(tuple(f"{part}." for part in inside))
            and not (name in HEADS or name.rpartition(".")[0] in HEADS[2:])
        ]
    else:
        given = targets if isinstance(targets, str) else frozenset(targets)
        found = [name for name, disk in fit.items() if matches(given, disk)]
    excluded, saved = getattr(config, "exclude_modules", None), config.modules_to_save or []
    found = [
        name
        for name in found
        if not (excluded and matches(excluded, fit[name])) and not any(_under(fit[name], m) for m in saved)
    ]
    if isinstance(targets, list | None) and layers is not None:
        found = [name for name in found if _is_layer(fit[name], layers, pattern)]
    if not found:
        ends = sorted({disk.rpartition(".")[2] for disk in fit.values()})
        what = "the default ones" if targets is None else shown(targets)
        first = targets[0] if isinstance(targets, list) and targets else str(targets)
        raise UsageError(
            f"target_modules must name layers of this {network.config.model_type}, such as {', '.join(ends)}, but "
            f"{what} name none{nearest(first, ends) if targets is not None else ''}"
        )
    return {name: fit[name] for name in found}


def named(network: Network, wanted: Iterable[str]) -> dict[str, str]:
    """Return the modules that `modules_to_save` names: names in code → names on disk; raises `UsageError`."""
    names = disk_names(network)
    found = {}
    for want in wanted:
        hits = {name: disk for name, disk in names.items() if any(part.endswith(want) for part in _prefixes(disk))}
        if not hits and want not in ("classifier", "score"):  # PEFT names both, whichever the model has
            ends = sorted({disk.rpartition(".")[2] for disk in names.values()})
            raise UsageError(
                f"modules_to_save must name modules of this {network.config.model_type}, but it has no "
                f"{want!r}{nearest(want, ends)}"
            )
        found.update(hits)
    return found


def _prefixes(disk: str) -> list[str]:
    parts = disk.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def suffixes(network: Network, picked: Mapping[str, str], kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """Return the shortest `target_modules` for the layers `picked`: last segments where those mean nothing else."""
    modules = dict(network.named_modules())
    other = {
        disk for name, disk in disk_names(network).items() if name not in picked and isinstance(modules[name], kinds)
    }
    ends = {disk.rpartition(".")[2] for disk in picked.values()}
    plain = {end for end in ends if not any(disk == end or disk.endswith(f".{end}") for disk in other)}
    return sorted(plain | {disk for disk in picked.values() if disk.rpartition(".")[2] not in plain})


def shared_by_rows(network: Network) -> list[str]:
    """Return the names in code of modules whose inputs do not begin with the rows of a batch."""
    return _inside(network, RelativeBias) + _inside(network, nn.RNNBase) + _of_mixtures(network)


def _of_mixtures(network: Network) -> list[str]:
    return [f"{name}.{part}" for name in _inside(network, MixtureOfExperts) for part in ("experts", "router")]


def ends_with(disk: str, targets: Collection[str]) -> bool:
    """Whether a name on disk is one of `targets`, or ends like one."""
    parts = disk.split(".")
    return any(".".join(parts[start:]) in targets for start in range(len(parts)))


def matches(targets: Collection[str] | str, disk: str) -> bool:
    """Whether a name on disk is meant by `targets`; see `chosen`."""
    return fits(targets, disk) if isinstance(targets, str) else ends_with(disk, targets)


def _inside(network: Network, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kind)]


def _under(disk: str, module: str) -> bool:
    return f".{module}." in f".{disk}."


def _is_layer(disk: str, wanted: list[int] | int, pattern: list[str] | str | None) -> bool:
    layers = [wanted] if isinstance(wanted, int) else wanted
    holders = [pattern] if isinstance(pattern, str) else pattern or []
    parts = disk.split(".")
    for index, part in enumerate(parts[1:-1], 1):
        if part.isdigit() and (not holders or parts[index - 1] in holders):
            return int(part) in layers
    return False


def stored_transposed(network: Network, picked: Iterable[str]) -> bool:
    """Whether the matrices of the layers `picked` are (in, out) on disk, as GPT-2's."""
    return any(disk_name(f"{name}.weight", network.renames)[1] for name in picked)
