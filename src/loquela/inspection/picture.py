"""What a picture is, and where pictures are found: each is one file of `loquela.inspection.pictures`.

A file defines

- `data(model, text, *, option=…)`, which returns what can be drawn as plain data that JSON can hold. What a model
  cannot show is None there, and `data["unavailable"]` says why; where nothing can be shown, `UnavailableError` is
  raised. A large table may be a NumPy array, which `Picture.data` makes lists of. An option is a keyword with a
  default, `Annotated` with what it does; `**settings` takes those of generation.
- `VIEWS`, a table of functions from that data to plotly figures, by name, the first one first.
- `terminal(data)`, the same for a terminal, through rich.
- `TAKES`, where the first arguments are not a model and a text: some of the words "model text file".

The first line of its docstring is its title. Command line, report and server find it by the file's name.
"""

from __future__ import annotations

import importlib
import inspect as introspection
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import plotly.graph_objects as go

from loquela.errors import UsageError, nearest
from loquela.generation.settings import SETTINGS
from loquela.inspection import pictures
from loquela.inspection.reading import Inspected
from loquela.peft.attaching import wearing

__all__ = ["PICTURES", "Option", "Picture", "Pictures"]

Data = dict[str, Any]


@dataclass(frozen=True)
class Option:
    """What can be set of a picture. `kind` is int, float, bool, str, tuple (of str) or `Inspected` (another model)."""

    name: str
    kind: type
    default: Any
    help: str

    @property
    def needed(self) -> bool:
        """Whether the picture cannot be drawn without it."""
        return self.default is introspection.Parameter.empty

    def parse(self, value: str) -> Any:
        """Read what a person typed; raises `UsageError`. Another model is not read here but by the caller."""
        try:
            if self.kind is bool:
                return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
            if self.kind is tuple:
                return tuple(part.strip() for part in value.split(",") if part.strip())
            return self.kind(value)
        except (KeyError, ValueError):
            meaning = {int: "a whole number", float: "a number", bool: "true or false"}[self.kind]
            raise UsageError(f"{self.name} must be {meaning}, but is {value!r}") from None


@dataclass(frozen=True)
class Picture:
    """One kind of picture; see the module."""

    name: str

    @cached_property
    def module(self) -> types.ModuleType:
        """The file that draws it."""
        return importlib.import_module(f"{pictures.__name__}.{self.name}")

    @property
    def title(self) -> str:
        """What it shows, in a line."""
        return (self.module.__doc__ or "").split("\n", 1)[0].rstrip(".")

    @property
    def takes(self) -> tuple[str, ...]:
        """What it takes: a `model`; and a `text`, or a `file` in its place."""
        return tuple(getattr(self.module, "TAKES", "model text").split())

    @cached_property
    def options(self) -> dict[str, Option]:
        """Its own options by name; the settings of generation come on top where `takes_settings`."""
        hints = get_type_hints(self.module.data, include_extras=True)
        found = {}
        for name, parameter in introspection.signature(self.module.data).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                kind, help = _kind(hints[name])
                found[name] = Option(name, kind, parameter.default, help)
        return found

    @cached_property
    def takes_settings(self) -> bool:
        """Whether settings of generation shape it."""
        parameters = introspection.signature(self.module.data).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    @property
    def views(self) -> Mapping[str, Callable[[Data], go.Figure]]:
        """Figures that are made of its data, by name; some return None where the data has nothing for them."""
        return typing.cast("Mapping[str, Callable[[Data], go.Figure]]", self.module.VIEWS)

    def data(self, model: Inspected | None = None, text: Any = None, *, adapter: Any = ..., **options: Any) -> Data:
        """Return the plain data, with an `adapter` of the model's worn: the one named, none (None), else its own.

        Raises `UsageError` for an unknown option or a missing model or text.
        """
        tables = self.tables(model, text, adapter=adapter, **options)
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in tables.items()}

    def tables(self, model: Inspected | None = None, text: Any = None, *, adapter: Any = ..., **options: Any) -> Data:
        """Return the data with its large tables as arrays, as views take them too.

        Lists of millions of numbers take seconds to make, during which no other thread of the process runs.
        """
        for name in options:
            if name not in self.options and not (self.takes_settings and name in SETTINGS):
                known = [*self.options, *(SETTINGS if self.takes_settings else ())]
                raise UsageError(f"{self.name} has no option {name!r}{nearest(name, known)}")
        given = []
        for what, value in (("model", model), ("text", text), ("file", text)):
            if what in self.takes:
                if value is None:
                    raise UsageError(f"{self.name} needs a {what}, but none is given")
                given.append(value)
        if model is None:
            return typing.cast("Data", self.module.data(*given, **options))
        worn = getattr(model, "adapter", None) if adapter is ... else adapter
        with wearing(model.network, worn):
            return typing.cast("Data", self.module.data(*given, **options))

    def figures(self, data: Data) -> dict[str, go.Figure]:
        """Return all views that have something to show of the data, by name."""
        made = ((name, view(data)) for name, view in self.views.items())
        return {name: figure for name, figure in made if figure is not None}

    def figure(self, data: Data, view: str | None = None) -> go.Figure:
        """Return one view, else the first that has something to show; raises `UsageError` for an unknown one."""
        if view is None:
            return next(iter(self.figures(data).values()))
        if view not in self.views:
            raise UsageError(
                f"a view of {self.name} must be one of {', '.join(self.views)}, but is {view!r}"
                f"{nearest(view, self.views)}"
            )
        made = self.views[view](data)
        if made is None:
            raise UsageError(f"the view {view!r} of {self.name} has nothing to show here")
        return made

    def terminal(self, data: Data) -> Any:
        """Return what rich prints for the data."""
        return self.module.terminal(data)


class Pictures(Mapping[str, Picture]):
    """Every picture by its file's name; a file is imported when it is first asked for something."""

    @cached_property
    def _all(self) -> dict[str, Picture]:
        return {m.name: Picture(m.name) for m in pkgutil.iter_modules(pictures.__path__)}

    def __getitem__(self, name: str) -> Picture:
        if name not in self._all:
            raise UsageError(f"a picture must be one of {', '.join(self)}, but is {name!r}{nearest(name, self)}")
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, name: object) -> bool:
        return name in self._all


PICTURES = Pictures()
"""Pictures by name."""


def _kind(hint: Any) -> tuple[type, str]:
    """Return the type and the help of an option from its annotation."""
    help = ""
    if get_origin(hint) is typing.Annotated:
        hint, help = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    return get_origin(hint) or hint, help
