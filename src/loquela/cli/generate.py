"""`loquela generate`: complete a prompt, from the command line or from a pipe."""

from __future__ import annotations

import math
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
    say_speculation,
)
from loquela.cli.output import note, print_json
from loquela.cli.terminal import piped_text, write
from loquela.cli.threads import suit_threads

if TYPE_CHECKING:
    from loquela.api import LanguageModel

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
@generation_options
def generate(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model directory.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt; else what is piped in.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut a prompt too long to its last tokens.")] = False,
    top: Annotated[int, typer.Option("--top", min=0, help="Alternatives that --json shows with each token.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", metavar="FILE", help="The text is JSON that fits this schema.")
    ] = None,
    regex: Annotated[str | None, typer.Option("--regex", help="The whole text matches this pattern.")] = None,
    adapter: AdapterOption = None,
    engine: EngineOption = AUTO,
    quantize: QuantizeOption = None,
    cache_dtype: CacheOption = FLOAT32,
    draft: DraftOption = None,
    **settings: Any,
) -> None:
    """Complete a prompt; the completion goes to stdout as it comes.

    A masked language model fills its [MASK]s; a model that labels words prints each word with its label.

    One line end at the end of a piped prompt is left out. A setting that is not given has the value of the model's
    generation_config.json, else the default named here.
    """
    if prompt is None:
        prompt = piped_text("--prompt TEXT, or echo TEXT | loquela generate -m DIR").removesuffix("\n")

    language_model = open_model(model, engine, quantize, adapter, cache_dtype)
    suit_threads(language_model)
    from loquela.generation.decode import Speculation

    if language_model.network.kind == "encoder":
        shaping = {"truncate": truncate, "json_schema": json_schema, "regex": regex, "draft": draft}
        _fill(language_model, prompt, top, json, [*settings, *(name for name, value in shaping.items() if value)])
        return
    asked: dict[str, Any] = {"json_schema": None if json_schema is None else _read(json_schema), "regex": regex}
    asked["assistant_model"] = open_draft(draft, language_model, engine, quantize)
    chosen = language_model.settings(**settings)
    ids, cut = language_model.fit(prompt, chosen, truncate=truncate)
    if cut:
        note(f"prompt cut to its last {len(ids)} tokens, {cut} dropped: the context window holds the completion too")
    if json or max(chosen.n, chosen.best_of) > 1:
        completions = language_model.generate([prompt], top=top if json else 0, truncate=truncate, **asked, **settings)
        if json:
            found = [completion.as_dict() for completion in completions]
            print_json(found[0] | ({"choices": found} if len(found) > 1 else {}))
        else:
            write("\n---\n".join(completion.text for completion in completions) + "\n")
        longest = max(len(completion.tokens) for completion in completions)
        speculation = completions[0].speculation
    else:
        longest, speculation = 0, Speculation()
        for piece in language_model.stream(ids, top=0, speculation=speculation, **asked, **settings):
            write(piece.text)
            longest += 1
        write("\n")
    if draft is not None or chosen.prompt_lookup_num_tokens:
        say_speculation(speculation or Speculation())
    if len(ids) + longest == language_model.context_length and longest < chosen.max_new_tokens:
        note(f"stopped after {longest} tokens: the context window of {language_model.context_length} tokens is full")


def _read(path: Path) -> str:
    from loquela.errors import DataError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--json-schema must name a file of JSON, but {path} cannot be read: {error}") from None


def _fill(model: LanguageModel, prompt: str, top: int, json: bool, settings: list[str]) -> None:
    """Fill the masks of `prompt`; stderr says what else could stand there."""
    from loquela.errors import UsageError
    from loquela.generation.fill import fill

    if getattr(model.network, "task", None) == "token-classification":
        _tag(model, prompt, json, settings)
        return
    if settings:
        raise UsageError(f"a masked language model fills each mask at once: {', '.join(settings)} has no effect on it")
    with model.wearing():
        filled = fill(model.network, model.tokenizer, prompt, top=top)
    if json:
        print_json(filled.as_dict())
        return
    for number, piece in enumerate(filled.tokens, 1):
        if piece.top:
            note(f"mask {number}: " + ", ".join(f"{a.text.strip()} {math.exp(a.log_prob):.1%}" for a in piece.top))
    write(filled.text + "\n")


def _tag(model: LanguageModel, text: str, json: bool, settings: list[str]) -> None:
    """Print each word with its label, as files for tagging are written."""
    from loquela.errors import UsageError

    if settings:
        raise UsageError(f"a model that labels words writes none: {', '.join(settings)} has no effect on it")
    found = model.tag(text)
    if json:
        words = [{"word": one.word, "tag": one.tag, "log_prob": one.log_prob} for one in found]
        print_json({"text": text, "words": words})
        return
    write("".join(f"{one.word}\t{one.tag}\n" for one in found))
