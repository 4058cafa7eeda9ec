"""`loquela serve`: an OpenAI-compatible server for a model and its adapters, with the playground at `/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loquela.cli.options import AUTO, FLOAT32, CacheOption, EngineOption, QuantizeOption
from loquela.cli.output import note
from loquela.cli.threads import share_cores
from loquela.errors import UsageError

__all__ = ["adapters_of", "app", "start"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_MEBI = 2**20


@app.command()
def serve(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model directory.")],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="NAME=DIR", help="An adapter, by name.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Any but this machine's own needs a key.")] = "127.0.0.1",
    api_key: Annotated[
        str | None, typer.Option(envvar="LOQUELA_API_KEY", show_default=False, help="What callers must know.")
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="LOQUELA_ADMIN_KEY", show_default=False, help="What loads and unloads adapters."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in the API. [default: its directory's]")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="A further name of this server.")] = None,
    allowed_origin: Annotated[list[str] | None, typer.Option(help="A site whose pages may ask, https://….")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes behind the port.")] = 1,
    slots: Annotated[int, typer.Option(min=1, help="Texts written at the same time.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 64,
    cache_memory: Annotated[int, typer.Option(min=1, metavar="MB", help="Memory for caches.")] = 1024,
    seconds: Annotated[float, typer.Option(min=1, help="How long a request may take.")] = 600,
    drain: Annotated[float, typer.Option(min=0, help="Seconds that requests may go on after SIGTERM.")] = 30,
    engine: EngineOption = AUTO,
    quantize: QuantizeOption = None,
    cache_dtype: CacheOption = FLOAT32,
) -> None:
    """Serve a model in OpenAI's API, with the playground at `/`.

    The log on stderr is one JSON object a line and holds no prompts and no keys.
    """
    share_cores()
    from loquela.serving.options import Options

    options = Options(
        model=model,
        adapters=adapters_of(adapter or []),
        name=name,
        host=host,
        port=port,
        api_key=api_key,
        admin_key=admin_key,
        allowed_hosts=tuple(allowed_host or ()),
        allowed_origins=tuple(allowed_origin or ()),
        workers=workers,
        slots=slots,
        queue=queue,
        cache_bytes=cache_memory * _MEBI,
        seconds=seconds,
        drain_seconds=drain,
        engine=engine.value,
        quantize=None if quantize is None else quantize.value,
        cache_dtype=cache_dtype.value,
    )
    start(options)


def start(options: object, *, browse: bool = False) -> None:
    """Serve, say where, and with `browse` open the page."""
    from loquela.cli.threads import suit_threads
    from loquela.serving.door import bind, run
    from loquela.serving.options import Options

    assert isinstance(options, Options)
    listener = bind(options)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{listener.getsockname()[1]}"

    def ready() -> None:
        by = (
            f"{options.workers} workers serve {options.model_name}"
            if options.workers > 1
            else (f"{options.model_name} is served")
        )
        note(f"{by} at {address} (the API: {address}/v1). Ctrl-C ends it.")
        if browse:
            import webbrowser

            webbrowser.open(address)

    run(options, listener, ready, suit_threads)


def adapters_of(given: list[str]) -> dict[str, Path]:
    """Read `NAME=DIR`, or the name of a house adapter, as often as it is given; raises `UsageError`."""
    from loquela.checkpoint import house

    adapters: dict[str, Path] = {}
    for item in given:
        name, equals, directory = item.partition("=")
        if not equals and item in house.adapter_names():
            directory = name
        if not (name and directory):
            raise UsageError(f"--adapter must be NAME=DIR, but is {item!r}")
        if name in adapters:
            raise UsageError(f"--adapter must give each name once, but {name!r} is there twice")
        adapters[name] = house.adapter(directory)
    return adapters
