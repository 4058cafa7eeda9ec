"""What one server process holds: the model, its adapters, the scheduler that owns the network."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from loquela import peft
from loquela.api import LanguageModel, load
from loquela.engine.choosing import Engine, EngineName, base_of, check_wearable, compiled_already
from loquela.engine.scheduler import Scheduler
from loquela.engine.terms import Limits
from loquela.errors import CheckpointError, ContextWindowError, LoquelaError, UsageError
from loquela.generation.completion import prompt_ids
from loquela.generation.constrain import Constraint, constraint
from loquela.generation.pieces import token_text
from loquela.generation.rules import RULES
from loquela.generation.settings import GenerationSettings, known_settings
from loquela.models.base import Network
from loquela.prompting.budget import fit
from loquela.serving.answers import ModelCard
from loquela.serving.failures import ApiError
from loquela.serving.infill import infill_marks
from loquela.serving.large import LARGE, aside
from loquela.serving.looking import Looking
from loquela.serving.observe import LOG, Metrics
from loquela.serving.options import Options
from loquela.serving.schemas import Writing
from loquela.serving.unrounded import unrounded

__all__ = ["Served", "opened"]

T = TypeVar("T")
_MOST_LOOKED_INTO = 2 * 2**30
"""Bytes of a network that is made only to be looked into."""
_LONGEST = 64
"""Characters of a text for each position of the context window: no text has so many to a token."""


class Served:
    """One model, ready to be asked. `close` ends its scheduler."""

    def __init__(self, options: Options, model: LanguageModel | None = None) -> None:
        self.options = options
        if model is None:
            model = opened(options)
        self.model = model
        self.name = options.model_name
        self.adapters: dict[str, Path] = {}
        self.changed: Callable[[str, Path | None], None] = lambda name, directory: None
        """Called in the scheduler's thread with an adapter loaded at run time, or with None for one dropped."""
        self._templates: dict[str, str] = {}
        self.created = int(time.time())
        self.metrics = Metrics()
        network = model.network
        runs = _fastest(model, options)
        self.engine = "compiled" if compiled_already(runs) else "torch"
        for name, directory in options.adapters.items():
            try:
                self._put_on(name, directory)
            except LoquelaError as error:
                if not options.again:
                    raise
                LOG.error("adapter lost", extra={"fields": {"adapter": name, "reason": str(error)}})
        limits = Limits(options.slots, options.queue, options.cache_bytes)

        def wear(name: str | None) -> AbstractContextManager[None]:
            return peft.wearing(network, name)

        self.scheduler = Scheduler(
            network, model.tokenizer, limits, wear=wear, compiled=None if runs is network else runs
        )
        for name in self.adapters:
            self._know(name)
        self._looking = tuple(
            Looking(model, options.queue, self.scheduler.call, made) for made in (None, self._to_look_into())
        )
        self.metrics.watch(self.scheduler.state)

    def close(self, seconds: float = 0.0) -> None:
        """Let what runs end within so many seconds, then fail the rest."""
        for looking in self._looking:
            looking.close()
        self.scheduler.close(seconds)

    # -- names

    def adapter(self, name: str | None) -> str | None:
        """Return the adapter that a request's `model` names, None for the base model; raises a 404."""
        if name is None or name == self.name:
            return None
        if name not in self.adapters:
            raise ApiError(
                404,
                f"model must be one of {', '.join([self.name, *self.adapters])}, but is another",
                param="model",
                code="model_not_found",
            )
        return name

    def card(self, name: str | None) -> ModelCard:
        """Describe the base model (None) or an adapter."""
        tokenizer = self.model.tokenizer
        return ModelCard(
            id=self.name if name is None else name,
            created=self.created,
            parent=None if name is None else self.name,
            max_model_len=self.scheduler.window(name),
            kind=self.model.network.kind,
            chat=self.template(name) is not None,
            infill=infill_marks(tokenizer) is not None,
            defaults=known_settings(self.model.generation_config),
        )

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Put an adapter on, between two steps of the scheduler."""
        if name == self.name or name in self.adapters:
            raise UsageError(f"an adapter's name must be a new one, but {name!r} is taken: unload it first")

        def put_on() -> None:
            self._put_on(name, directory)
            self._know(name)
            self._renew()
            self.changed(name, directory)

        try:
            await self._between(put_on)
        except CheckpointError as error:  # the administrator named it, so it is theirs to put right
            raise UsageError(str(error)) from None

    async def unload_adapter(self, name: str) -> None:
        """Take an adapter off; raises `UsageError` while a request wears it."""
        if self.adapter(name) is None:
            raise UsageError(f"{name!r} is the base model: only an adapter can be unloaded")

        def take_off() -> None:
            self.scheduler.forget(name)
            peft.detach(base_of(self.model.network), name)
            del self.adapters[name]
            self._templates.pop(name, None)
            self._renew()
            self.changed(name, None)

        await self._between(take_off)

    def _to_look_into(self) -> Callable[[], Network] | None:
        """Return what makes a network to look into where the model's own has few bits; None where it would be huge."""
        network, directory, adapters = self.model.network, self.options.model, self.adapters
        bits = {"int8": 8, "int4": 4}.get(getattr(network, "quantize", None) or "")
        if bits is None or 4 * base_of(network).parameter_count() > _MOST_LOOKED_INTO:
            return None
        return lambda: unrounded(directory, bits, dict(adapters))

    def _renew(self) -> None:
        for looking in self._looking:
            looking.renew()

    def _put_on(self, name: str, directory: Path) -> None:
        if name == self.name or name in self.adapters:
            raise UsageError(f"adapters and model must have different names, but {name!r} is there twice")
        base = base_of(self.model.network)
        peft.load_adapter(base, directory, name)
        try:
            check_wearable(self.model.network, name)
        except UsageError:
            peft.detach(base, name)
            raise
        own = directory / "chat_template.jinja"
        if own.is_file():
            self._templates[name] = own.read_text(encoding="utf-8")
        self.adapters[name] = directory

    def _know(self, name: str) -> None:
        reason = self.scheduler.know(name)
        if reason is not None:
            LOG.warning("adapter one by one", extra={"fields": {"adapter": name, "reason": reason}})

    # -- work

    async def _between(self, job: Callable[[], T]) -> T:
        """Run a job that changes the network in the scheduler's thread, between two steps."""
        return await asyncio.wrap_future(self.scheduler.call(job))

    async def look(self, adapter: str | None, job: Callable[[LanguageModel], T], *, long: bool = False) -> T:
        """Run a job that looks at the model with an adapter worn, while others write; see `loquela.serving.looking`.

        What takes `long` has a thread of its own, so that the others do not wait for it.
        """

        def wearing(model: LanguageModel) -> T:
            with model.wearing(adapter):
                return job(model)

        return await asyncio.wrap_future(self._looking[long].call(wearing))

    def template(self, adapter: str | None) -> str | None:
        """Return the chat template that an adapter was tuned with, else the model's own, if it has one."""
        return self._templates.get(adapter or "", self.model.tokenizer.chat_template)

    def fit(self, prompt: str | Sequence[int], settings: GenerationSettings, adapter: str | None) -> list[int]:
        """Return a prompt's token ids, which leave room for a token; raises `ContextWindowError`."""
        ids = prompt_ids(self.model.tokenizer, prompt) if isinstance(prompt, str) else prompt
        window = self.scheduler.window(adapter)
        try:
            return fit(ids, window, settings.max_new_tokens)
        except ContextWindowError:
            raise _no_room("the prompt", window, len(ids)) from None

    def check_length(self, prompt: str | Sequence[int], what: str = "the prompt") -> None:
        """Raise `ContextWindowError` for what cannot fit, before it is read: a text of 2 MB takes a core for 0.7 s."""
        window = self.scheduler.window(None)
        if not isinstance(prompt, str):
            if len(prompt) > window:
                raise _no_room(what, window, len(prompt))
        elif len(prompt) > (most := max(LARGE, _LONGEST * window)):
            raise ContextWindowError(
                f"{what} must be at most {most:,} characters for a context window of {window} tokens, but has "
                f"{len(prompt):,}: shorten it"
            )

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return a text's token ids; a long text is no reason to keep others waiting."""
        encode = partial(self.model.tokenizer.encode, add_special_tokens=add_special_tokens)
        return await aside(len(text), encode, text)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise a 400 for token ids that the model does not have."""
        wrong = [token for token in ids if token >= self.model.network.vocab_size]
        if wrong:
            raise UsageError(f"token ids must be below {self.model.network.vocab_size}, but one is {wrong[0]}")

    def token(self, token: int) -> str:
        """Return a token as a person reads it; see `token_text`."""
        return token_text(self.model.tokenizer, token)

    def settings(self, body: Writing, max_new_tokens: int) -> GenerationSettings:
        """Return what a request asks for, else what generation_config.json says, else OpenAI's defaults."""
        given = {name: value for name in RULES if (value := getattr(body, name)) is not None}
        said = known_settings(self.model.generation_config)
        if "temperature" not in given:
            if said.get("do_sample") is False or ("do_sample" not in said and said.get("num_beams", 1) > 1):
                given |= {"do_sample": False}  # beams are not offered to many at once: the most probable comes nearest
            elif "temperature" not in said:
                given["temperature"] = 1.0
        if "top_k" not in given and "top_k" not in said:
            given["top_k"] = 0
        if beyond := [key for key in given.get("logit_bias", {}) if int(key) >= self.model.network.vocab_size]:
            raise ApiError(
                400,
                f"logit_bias must name token ids below {self.model.network.vocab_size}, but names {beyond[0]}",
                param="logit_bias",
                code="invalid_value",
            )
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        alone = {"num_beams": 1, "best_of": 0, "prompt_lookup_num_tokens": 0}  # not for texts written among others
        return self.model.settings(**given, max_new_tokens=max_new_tokens, stop=stop, seed=seed, n=body.n or 1, **alone)

    async def constraint(self, body: Writing) -> Constraint | None:
        """Return what the text must fit, if a request asks for it; a large schema takes its time in another thread."""
        wanted, schema = body.response_format, None
        if wanted is not None and wanted.type == "json_object":
            schema = {"type": "object"}
        elif wanted is not None and wanted.type == "json_schema":
            if wanted.json_schema is None:
                raise ApiError(
                    400, "a response_format of type json_schema must have a json_schema", code="invalid_value"
                )
            schema = wanted.json_schema.schema_
        if schema is None and body.regex is None:
            return None
        return await run_in_threadpool(
            constraint, self.model.tokenizer, json_schema=schema, regex=body.regex, end_ids=self.model.end_ids
        )


def _no_room(what: str, window: int, tokens: int) -> ContextWindowError:
    """What a caller is told, who has no flag to cut a text with."""
    return ContextWindowError(
        f"{what} must leave room in the context window of {window} tokens, but has {tokens}: shorten it"
    )


def opened(options: Options) -> LanguageModel:
    """Load the model that is to be served."""
    return load(options.model, engine=options.engine, quantize=options.quantize, cache_dtype=options.cache_dtype)


def _fastest(model: LanguageModel, options: Options) -> Network:
    """Return what runs the base model. For many at once compiling pays at any size: weights are read once for all."""
    if model.network.kind != "decoder":
        return model.network
    try:
        name: EngineName = "compiled" if options.engine == "auto" else options.engine
        return Engine(name, options.cache_dtype).of(model.network)
    except UsageError:
        if options.engine == "compiled" or options.cache_dtype != "float32":
            raise
        return model.network
