"""All settings of one generation, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loquela.errors import UsageError, nearest
from loquela.generation.rules import RULES
from loquela.generation.setting import Setting

__all__ = ["BEAMS", "DRAWING", "SETTINGS", "GenerationSettings", "known_settings", "settled"]

_LOOP = (
    Setting("max_new_tokens", int, 200, "Stop after this many new tokens.", 0),
    Setting("do_sample", bool, True, "Draw each token; false takes the most probable (greedy)."),
    Setting("stop", tuple, (), "Stop before this text; may be given several times."),
    Setting("seed", int, 0, "The same seed gives the same text."),
    Setting("n", int, 1, "How many completions of each prompt.", 1),
    Setting("best_of", int, 0, "Write so many, give the n whose tokens are most probable on average; 0: just n.", 0),
    Setting("prompt_lookup_num_tokens", int, 0, "Guess so many tokens by what stands before: faster, same text.", 0),
    Setting("num_assistant_tokens", int, 8, "A draft model guesses at most so many tokens at once.", 1),
    Setting("num_beams", int, 1, "Beam search with so many beams; 1 takes token after token.", 1),
    Setting("length_penalty", float, 1.0, "Beam search divides a score by its length to this power; above 0: longer."),
    Setting("early_stopping", bool, False, "Beam search ends when it has num_beams whole texts."),
    Setting("sampler_order", tuple, tuple(RULES), "Rules that change places, as in top_k,temperature."),
)
SETTINGS: dict[str, Setting] = {s.name: s for s in (*_LOOP, *(rule.setting for rule in RULES.values()))}
"""Every setting by name: those of the loop, then those of the sampling rules."""
DRAWING = ("do_sample", "best_of", "prompt_lookup_num_tokens", *(n for n, rule in RULES.items() if rule.samples))
"""Settings that shape a draw, or guess at one, and so have no place in beam search."""
BEAMS = ("length_penalty", "early_stopping")
"""Settings of beam search, and so without effect where `num_beams` is 1."""


class GenerationSettings:
    """Values of all settings; what is not given has its default. Immutable; each setting is an attribute.

    Raises `UsageError`, one line, for an unknown name, a value out of range, or a setting without effect: a temperature
    beside `do_sample=False`, one of `DRAWING` beside `num_beams`, one of `BEAMS` without; and for `best_of` below `n`.
    """

    max_new_tokens: int
    do_sample: bool
    stop: tuple[str, ...]
    seed: int
    n: int
    best_of: int
    prompt_lookup_num_tokens: int
    num_assistant_tokens: int
    num_beams: int
    length_penalty: float
    early_stopping: bool
    sampler_order: tuple[str, ...]
    """Every rule, in the order in which they are applied."""
    _given: dict[str, Any]

    def __init__(self, **given: Any) -> None:
        for name in given:
            if name not in SETTINGS:
                raise UsageError(f"there is no generation setting {name!r}{nearest(name, SETTINGS)}")
        values = {name: setting.check(given.get(name, setting.default)) for name, setting in SETTINGS.items()}
        if values["num_beams"] > 1:
            values["do_sample"] = _beams(values, given)
        elif void := [name for name in BEAMS if given.get(name)]:
            raise UsageError(f"{' and '.join(void)} shape beam search, so num_beams must be above 1, but is 1")
        if 0 < values["best_of"] < values["n"]:
            raise UsageError(f"best_of must be at least n, which is {values['n']}, but is {values['best_of']}")
        if not values["do_sample"]:
            if given.get("temperature", 0) != 0:
                raise UsageError(
                    f"do_sample=false is greedy, so temperature must be left out, but is {values['temperature']}"
                )
            values["temperature"] = 0.0
        values["sampler_order"] = _order(values["sampler_order"])
        self.__dict__.update(values, _given=given)

    def __getattr__(self, name: str) -> Any:  # reached only for names that __init__ did not set
        raise AttributeError(f"GenerationSettings has no setting {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are immutable; use replace({name}={value!r})")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationSettings) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        changed = {n: v for n, v in self.as_dict().items() if v != SETTINGS[n].default}
        return f"GenerationSettings({', '.join(f'{n}={v!r}' for n, v in changed.items())})"

    def as_dict(self) -> dict[str, Any]:
        """Return all values by name."""
        return {name: self.__dict__[name] for name in SETTINGS}

    def replace(self, **changes: Any) -> GenerationSettings:
        """Return settings with other values for the names given."""
        return GenerationSettings(**(self._given | changes))


def known_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the settings out of a generation_config.json, which also holds much else; null means not given."""
    return {name: value for name, value in values.items() if name in SETTINGS and value is not None}


def settled(generation_config: Mapping[str, Any], given: Mapping[str, Any]) -> GenerationSettings:
    """Return what is given, else what a generation_config.json says, else our defaults; raises `UsageError`.

    What is given also decides which of the file's settings still make sense beside it.
    """
    said = known_settings(generation_config)
    if given.get("do_sample") or (given.get("temperature") and "do_sample" not in given):
        said = _without(said, ("do_sample", "num_beams"))  # who asks for a temperature wants to sample
    values = said | dict(given)
    if values.get("num_beams", 1) > 1:
        said = _without(said, DRAWING)
    else:
        said = _without(said, BEAMS)
        if values.get("do_sample") is False:
            said = _without(said, ("temperature",))
    return GenerationSettings(**(said | dict(given)))


def _without(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in set(names)}


def _beams(values: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Check what stands beside `num_beams`; return `do_sample`."""
    beams = values["num_beams"]
    if drawing := [name for name in DRAWING if given.get(name)]:
        raise UsageError(f"num_beams={beams} draws nothing, so {', '.join(drawing)} must be left out")
    if values["n"] > beams:
        raise UsageError(f"n must be at most num_beams, which is {beams}, but is {values['n']}")
    return False


def _order(named: tuple[str, ...]) -> tuple[str, ...]:
    """Put the `named` rules in their order into the places they have together; the others stay where they are."""
    named = tuple(name for item in named for name in item.split(","))
    for name in named:
        if name not in RULES:
            raise UsageError(f"sampler_order must name rules ({', '.join(RULES)}), but names {name!r}")
    if len(set(named)) < len(named):
        raise UsageError(f"sampler_order must name a rule once, but is {','.join(named)}")
    queue = iter(named)
    return tuple(next(queue) if name in named else name for name in RULES)
