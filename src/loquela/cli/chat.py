"""`loquela chat`: talk to a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loquela.cli.options import (
    AUTO,
    FLOAT32,
    AdapterOption,
    CacheOption,
    DraftOption,
    EngineOption,
    QuantizeOption,
    generation_options,
    open_draft,
    open_model,
)
from loquela.cli.output import note
from loquela.cli.terminal import write
from loquela.cli.threads import suit_threads
from loquela.errors import LoquelaError, UsageError, nearest
from loquela.generation.settings import SETTINGS
from loquela.text.chat import render

if TYPE_CHECKING:
    from loquela.api import LanguageModel
    from loquela.generation.settings import GenerationSettings

__all__ = ["Conversation", "app", "talk"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)

HELP = """\
/set NAME VALUE  change a setting, e.g. /set temperature 0.5
/set             show the settings
/reset           forget what was said
/quit            leave, as Ctrl-D does; Ctrl-C stops a reply"""


@app.command()
@generation_options
def chat(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model directory.")],
    adapter: AdapterOption = None,
    engine: EngineOption = AUTO,
    quantize: QuantizeOption = None,
    cache_dtype: CacheOption = FLOAT32,
    draft: DraftOption = None,
    **settings: Any,
) -> None:
    """Talk to a model; /help shows what one can type. Each line that is typed or piped in is one turn."""
    language_model = open_model(model, engine, quantize, adapter, cache_dtype)
    talk(language_model, open_draft(draft, language_model, engine, quantize), **settings)


def talk(model: LanguageModel, draft: LanguageModel | None = None, **settings: Any) -> None:
    """Answer each line until the input ends or says /quit. Replies go to stdout, all else to stderr.

    In a terminal an error is said and the talk goes on; from a pipe it ends the talk.
    """
    suit_threads(model)
    conversation = Conversation(model, settings, draft)
    interactive = sys.stdin.isatty()
    note(f"{conversation.manner} /help shows what you can type.")
    while True:
        try:
            line = _read(interactive)
            if line is None or line.strip() == "/quit":
                return
            if line.startswith("/"):
                note(conversation.command(line.strip()))
            elif line.strip():
                _answer(conversation, line)
        except KeyboardInterrupt:
            if not interactive:
                raise
            note("stopped; /quit leaves")
        except LoquelaError as error:
            if not interactive:
                raise
            note(str(error))


class Conversation:
    """What was said so far, as far as it fits the context window, and the settings in force.

    A decoder without a chat template only knows how to go on with a text: there the talk is one text, written in turns.
    An encoder-decoder makes another text of each line; what was said before is no part of that. Raises `UsageError` for
    a model that does not write.
    """

    def __init__(self, model: LanguageModel, settings: dict[str, Any], draft: LanguageModel | None = None) -> None:
        if model.network.kind == "encoder":
            raise UsageError(
                f"one talks to a model that writes, but {model.network.config.model_type} reads: ask it with generate"
            )
        self.model, self.given, self.draft = model, settings, draft
        self.template = model.tokenizer.chat_template
        self.turns: list[dict[str, str]] = []
        self.has_forgotten = False
        self.settings = self._checked(settings)

    @property
    def manner(self) -> str:
        """What a person should know before the first line."""
        if self.template is None and self.model.network.kind == "encoder-decoder":
            return "A model without a chat template: it makes another text of each line by itself."
        if self.template is None:
            return "A base model without a chat template: it continues your text."
        return "The model answers you."

    def reply(self, line: str) -> Iterator[str]:
        """Yield the model's answer to `line` as it comes; both are remembered, also when the answer is broken off."""
        self.turns.append({"role": "user", "content": line})
        try:
            ids = self._prompt()
        except LoquelaError:
            self.turns.pop()
            raise
        answer = {"role": "assistant", "content": ""}
        seed = self.settings.seed + len(self.turns) // 2  # asked again, it may answer otherwise
        self.turns.append(answer)
        for piece in self.model.stream(ids, top=0, assistant_model=self.draft, **(self.given | {"seed": seed})):
            answer["content"] += piece.text
            yield piece.text

    def command(self, line: str) -> str:
        """Do what `line` (/help, /set, /reset) says; return what to tell. Raises `UsageError`."""
        words = line.split(maxsplit=2)
        match words:
            case ["/help"]:
                return HELP
            case ["/reset"]:
                self.turns.clear()
                return "What was said is forgotten."
            case ["/set"]:
                width = max(map(len, SETTINGS))
                return "\n".join(f"{name:<{width}}  {value}" for name, value in self.settings.as_dict().items())
            case ["/set", name, value]:
                if name not in SETTINGS:
                    raise UsageError(f"there is no setting {name!r}{nearest(name, SETTINGS)}")
                given = self.given | {name: SETTINGS[name].parse(value)}
                self.given, self.settings = given, self._checked(given)
                return f"{name} is now {getattr(self.settings, name)}"
        raise UsageError(f"commands are /help, /set NAME VALUE, /reset and /quit, but this is {line!r}")

    def _checked(self, given: dict[str, Any]) -> GenerationSettings:
        settings = self.model.settings(**given)
        if settings.n != 1 or settings.best_of > 1:
            raise UsageError(
                "a talk has one answer to each line, which is shown as it comes: "
                f"n must be 1, but is {settings.n}, and best_of must be left out, but is {settings.best_of}"
            )
        return settings

    def _prompt(self) -> list[int]:
        """Render the turns; the oldest are forgotten when they no longer fit beside an answer."""
        if self.template is None:
            if self.model.network.kind == "encoder-decoder":
                return self.model.fit(self.turns[-1]["content"], self.settings)[0]
            text = "".join(("\n" if turn["role"] == "user" else "") + turn["content"] for turn in self.turns)
            ids, cut = self.model.fit(text.removeprefix("\n"), self.settings, truncate=True)
        else:
            ids, cut = self._rendered(), 0
            while len(self.turns) > 1 and self.model.fit(ids, self.settings, truncate=True)[1]:
                cut += len(self.turns[:2])
                del self.turns[:2]  # a question and its answer
                ids = self._rendered()
            ids, _ = self.model.fit(ids, self.settings)
        if cut and not self.has_forgotten:
            self.has_forgotten = True
            note("The talk has outgrown the context window; its beginning is forgotten.")
        return ids

    def _rendered(self) -> list[int]:
        assert self.template is not None
        return render(self.turns, self.template, self.model.tokenizer)


def _answer(conversation: Conversation, line: str) -> None:
    try:
        for text in conversation.reply(line):
            write(text)
    finally:
        write("\n")


def _read(interactive: bool) -> str | None:
    """Return the next line without its end, or None when the input has ended."""
    if interactive and sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 — gives input() its line editing and its history

        try:
            return input("› ")
        except EOFError:
            write("\n")
            return None
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None
