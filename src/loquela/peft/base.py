"""What every method of parameter-efficient tuning is: a config, and parts that are put on a network.

A file of this room that is named like a method defines `CONFIG` (a subclass of `AdapterConfig`) and `parts(network,
config, draw)`; nothing else registers it. An adapter is its config and its parts. Its parameters stand beside the
network, not in it: `network.state_dict()` and `network.parameters()` are the base's, before as after.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache as memoise
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loquela.errors import ConfigError, UsageError, nearest
from loquela.layers.cache import Cache
from loquela.models.base import Network
from loquela.peft.draw import Draw

__all__ = ["METHODS", "Adapter", "AdapterConfig", "Part", "Virtual", "config_for", "config_from_dict", "method"]

_SHARED = frozenset(
    "attaching base draw folding frozen merging patterns saved storing targets virtual wardrobe worn".split()
)
METHODS: tuple[str, ...] = tuple(
    sorted(m.name for m in pkgutil.iter_modules(importlib.import_module("loquela.peft").__path__))
)
METHODS = tuple(name for name in METHODS if name not in _SHARED)
"""Every method of this room, by its file's name."""

MAX_NAMES = 100_000
"""Layers that a config may name: no model has as many."""
_INERT = frozenset("auto_mapping peft_version revision inference_mode tokenizer_kwargs runtime_config".split())
"""Keys of PEFT that say where an adapter comes from or how PEFT runs it, never what it computes."""


@dataclass
class AdapterConfig:
    """adapter_config.json. Fields carry PEFT's names; a key that is no field must say that something is off."""

    method: ClassVar[str]
    peft_type: ClassVar[str]
    """What PEFT calls the method; ours without a counterpart there have names of their own."""
    off: ClassVar[Mapping[str, Any]] = {}
    """Keys of PEFT that this method knows only with this value, beside null, false and empty ones."""

    task_type: str | None = None
    """PEFT's name of what the base does; filled in from the base when it is None."""
    base_model_name_or_path: str | None = None
    modules_to_save: list[str] | None = None
    """Modules (by name on disk, or the end of one) that are tuned whole, beside what the method does."""

    extra: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)
    """Keys that change nothing, as they were read, written back unchanged."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> AdapterConfig:
        """Read an adapter_config.json; raises `ConfigError` that names every key which cannot be honoured."""
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        wrong: list[str] = []
        for key, value in raw.items():
            if key == "peft_type":
                continue
            if key in known:
                values[key] = value
            elif key in _INERT or not value or (key in cls.off and value == cls.off[key]):
                extra[key] = value
            else:
                wrong.append(f"{key}={value!r}{nearest(key, known)}")
        if wrong:
            raise ConfigError(f"an adapter of {cls.peft_type} cannot honour {'; '.join(wrong)}")
        config = cls(**values, extra=extra)
        config.check()
        return config

    def to_dict(self) -> dict[str, Any]:
        """The adapter_config.json: what was read, overlaid by this config's fields."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {"peft_type": self.peft_type, "inference_mode": True, **self.extra, **own}

    def check(self) -> None:
        """Raise `ConfigError` where a value is impossible, by the field's annotation and the method's own rules."""
        for f in dataclasses.fields(self):
            if f.name != "extra" and not _fits(value := getattr(self, f.name), str(f.type)):
                raise ConfigError(f"{f.name} of an adapter must be {_said(str(f.type))}, but is {value!r:.100}")
        if isinstance(self.base_model_name_or_path, str) and "\0" in self.base_model_name_or_path:
            raise ConfigError("base_model_name_or_path of an adapter must be a name or a path, but holds a NUL")

    def at_least(self, name: str, least: float, below: float | None = None) -> None:
        """Raise `ConfigError` unless the number `name` is at least `least`, and below `below` where that is given."""
        value = getattr(self, name)
        if value is not None and not (least <= value and (below is None or value < below)):
            until = "" if below is None else f" and below {below:g}"
            raise ConfigError(f"{name} of an adapter must be at least {least:g}{until}, but is {value!r}")


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda v: type(v) is int and abs(v) < 2**31),
    "float": ("a number", lambda v: type(v) in (int, float) and abs(v) < 1e30),
    "bool": ("true or false", lambda v: type(v) is bool),
    "str": ("a string", lambda v: type(v) is str and len(v) < 10_000),
    "None": ("null", lambda v: v is None),
    "list[str]": ("a list of strings", lambda v: _is_list(v, str)),
    "list[int]": ("a list of whole numbers", lambda v: _is_list(v, int)),
    "dict[str, int]": (
        "numbers by name",
        lambda v: type(v) is dict and _is_list(list(v), str) and _is_list(list(v.values()), int),
    ),
}


def _is_list(value: Any, kind: type) -> bool:
    return type(value) is list and len(value) <= MAX_NAMES and all(type(item) is kind for item in value)


def _fits(value: Any, annotation: str) -> bool:
    kinds = [_KINDS.get(part.strip()) for part in annotation.split("|")]
    return any(kind is None or kind[1](value) for kind in kinds)


def _said(annotation: str) -> str:
    return " or ".join(_KINDS[part.strip()][0] for part in annotation.split("|"))


class Part:
    """What one adapter adds to one layer: something to its input, something to its output.

    `tensors` are the parameters by the names that they have on disk behind the layer's own name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {
            name: value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
            for name, value in tensors.items()
        }

    def __call__(self, layer: Any, base: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what `layer` makes of `x` when all rows wear this; `base` is the layer's own forward."""
        return self.after(layer, base, x, base(self.before(layer, x), *args, **kwargs))

    def before(self, layer: Any, x: Tensor) -> Tensor:
        """Return the input that the base layer is to see in place of `x` (rows, …, in)."""
        return x

    def after(self, layer: Any, base: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the output (rows, …, out), given the base layer's output `y` of `before(x)`."""
        return y

    def merged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """Return new values of the layer's own tensors, by name, that compute what the base with this part does.

        `weight` scales what is added. Raises `UsageError` where no tensors of the base can do that.
        """
        raise UsageError(f"{type(self).__name__} computes what no weights of the base can: it cannot be merged")

    def unmerged(self, layer: Any, weight: float) -> dict[str, Tensor]:
        """Return what `merged` was given, from what it gave; raises `UsageError` where that cannot be known."""
        raise UsageError(f"what {type(self).__name__} replaced is not in the merged weights: take the base itself")


class Virtual(ABC):
    """Positions that a text of an adapter begins with, though no tokens stand for them.

    `tensors` are the parameters by their whole name on disk.
    """

    in_encoder: bool = False
    """Whether an encoder reads them before its text; else a decoder's cache starts with what they became."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: nn.Parameter(value, requires_grad=False) for name, value in tensors.items()}
        self.kept: dict[bool | None, tuple[object, Cache]] = {}
        """What they became, and of which values, for as long as nothing changes; see `became`."""

    @property
    @abstractmethod
    def length(self) -> int:
        """How many positions."""

    @abstractmethod
    def vectors(self) -> Tensor:
        """Return what an encoder reads in place of embeddings (length, dim)."""

    @abstractmethod
    def became(self, network: Network, long: bool | None = None) -> Cache:
        """Return a cache of one row that holds what they become in a decoder.

        `long` is for one that turns long texts otherwise: whether they stand before such a text.
        """


@dataclass
class Adapter:
    """One adapter on one network. `parts` are by the layer's name in code.

    `disk` has the layers' names on disk; the tensors of a layer without one are called by their whole names.
    """

    name: str
    config: AdapterConfig
    parts: dict[str, Part]
    disk: dict[str, str]
    virtual: Virtual | None = None

    def tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters under their keys in adapter_model.safetensors, each once."""
        seen: set[int] = set()
        base = "base_model.model" if self.virtual is None else "base_model"  # PEFT wraps the model once less there
        for layer, part in self.parts.items():
            for leaf, parameter in part.tensors.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    place = f"{self.disk[layer]}." if layer in self.disk else ""
                    yield f"{base}.{place}{leaf}", parameter
        if self.virtual is not None:
            yield from self.virtual.tensors.items()


def method(name: str) -> ModuleType:
    """Return the module of a method; raises `UsageError` for an unknown one."""
    if name not in METHODS:  # a list of our own files: a config can never name a module to import
        raise UsageError(f"method must be one of {', '.join(METHODS)}, but is {name!r}{nearest(str(name), METHODS)}")
    return importlib.import_module(f"loquela.peft.{name}")


def config_for(method_name: str, **settings: Any) -> AdapterConfig:
    """Return the config of a method (`METHODS`) with `settings` under PEFT's names.

    Raises `UsageError` for an unknown method or setting (naming the nearest known one) and `ConfigError` for a value
    that is impossible.
    """
    kind: type[AdapterConfig] = method(method_name).CONFIG
    known = [f.name for f in dataclasses.fields(kind) if f.name != "extra"]
    unknown = [f"{key!r}{nearest(key, known)}" for key in settings if key not in known]
    if unknown:
        raise UsageError(f"method {method_name} knows {', '.join(known)}, but not {'; '.join(unknown)}")
    config = kind(**settings)
    config.check()
    return config


@memoise
def _by_peft_type() -> dict[str, str]:
    return {method(name).CONFIG.peft_type: name for name in METHODS}


def config_from_dict(raw: Mapping[str, Any]) -> AdapterConfig:
    """Read the adapter_config.json of any method; raises `ConfigError`."""
    peft_type = raw.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in _by_peft_type():
        raise ConfigError(
            f"peft_type of an adapter must be one of {', '.join(sorted(_by_peft_type()))}, but is {peft_type!r:.100}"
        )
    kind: type[AdapterConfig] = method(_by_peft_type()[peft_type]).CONFIG
    return kind.from_dict(raw)


def draw_for(network: Network, generator: torch.Generator | None, text: Tensor | None = None) -> Draw:
    """Return what makes an adapter's tensors: in float32, or float64 where the network computes in that."""
    first = next(p for p in network.parameters() if p.is_floating_point())
    return Draw(generator, torch.promote_types(first.dtype, torch.float32), first.device, text)
