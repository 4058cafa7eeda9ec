"""`loquela bench`: how fast a model reads and writes here, and beside other libraries."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from loquela.cli.options import AUTO, FLOAT32, CacheOption, EngineOption, QuantizeOption
from loquela.cli.output import note, print_json

__all__ = ["app", "gguf_of", "peer_of"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)
_PEERS = {"transformers": "transformers", "llama.cpp": "llama_cpp", "CTranslate2": "ctranslate2"}


@app.command()
def bench(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model directory.")],
    engine: EngineOption = AUTO,
    quantize: QuantizeOption = None,
    cache_dtype: CacheOption = FLOAT32,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the prompt, or source, that is read [default: 512, or what fits]."),
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that are written [default: 128, or half of the window].")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each figure; medians are shown.")] = 3,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads; default: as loquela generate: one per core, or one if it is small."),
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Measure installed libraries in turn.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tokens per second read (a prompt) and written (greedily), seconds of a new process to its first token, memory.

    What an encoder-decoder reads is a source. With --peers transformers (float32), and llama.cpp and CTranslate2 (at
    the width of --quantize, else float32) run beside it where they are installed and know the model, each in its own
    process and one at a time; a ratio above 1 says that Loquela is faster. One that breaks off is said to, and why.
    """
    from loquela.checkpoint.hub import resolve
    from loquela.cli.racing import Racer, median, race
    from loquela.cli.threads import suits_one_thread
    from loquela.engine.threads import default_threads

    model = resolve(model)
    network = _opened(model)
    plain = quantize is None and engine.value != "compiled"
    chosen = threads or (1 if plain and suits_one_thread(network.parameter_count()) else default_threads())
    count, new, context = _lengths(network, prompt_tokens, new_tokens)
    options: dict[str, Any] = {"threads": chosen}
    bits = None if quantize is None else quantize.value
    ours = options | {"engine": engine.value, "quantize": bits, "cache_dtype": cache_dtype.value}
    with tempfile.TemporaryDirectory() as place:
        racers = [Racer("loquela", "loquela", str(model), ours)]
        broken = _enter(racers, model, Path(place), bits, options) if peers else {}
        race(racers, rounds, {"prefill": ("prefill", {"count": count}, count)})
        for racer in racers:
            racer.tries("prepare", batch=1, context=context, new=new)
        race(racers, rounds, {"decode": ("decode", {"new": new}, new)})
        found = {
            racer.name: {
                "prefill_tokens_per_second": median(racer.figures["prefill"]),
                "decode_tokens_per_second": median(racer.figures["decode"]),
                "first_token_seconds": racer.started,
                "peak_memory_bytes": int(memory),
            }
            for racer in racers
            if (memory := racer.tries("memory")) is not None
        }
        runs, broken = racers[0].said["engine"], broken | {racer.name: racer.failed for racer in racers if racer.failed}
        for racer in racers:
            racer.close()
    own = found.pop("loquela")
    about = {"model_type": network.config.model_type, "parameters": network.parameter_count(), "engine": runs}
    result = {**own, **about, "threads": chosen, "prompt_tokens": count, "new_tokens": new}
    if peers:
        result["peers"] = {
            name: {**figures, "ratio": {what: own[f"{what}_tokens_per_second"] / figures[f"{what}_tokens_per_second"]
                                        for what in ("prefill", "decode")}}
            for name, figures in found.items()
        }  # fmt: skip
        result |= {"peers_failed": broken} if broken else {}
    if json:
        print_json(result)
    else:
        reads = "source" if network.kind == "encoder-decoder" else "prompt"
        _show(result, own, reads, f"{bits or 'float32'}, {rounds} round{'s' if rounds > 1 else ''}")


def _show(result: dict[str, Any], own: dict[str, Any], reads: str, how: str) -> None:
    """The table on stdout."""
    typer.echo(
        f"{result['model_type']}, {result['parameters']:,} parameters, {how}; the {result['engine']} engine, "
        f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}; a {reads} of {result['prompt_tokens']:,} "
        f"tokens read, {result['new_tokens']:,} written"
    )
    typer.echo(f"{'':<13}{'read tok/s':>12}{'written tok/s':>15}{'first token':>13}{'memory':>12}")
    for name, figures in {"loquela": own, **result.get("peers", {})}.items():
        typer.echo(
            f"{name:<13}{figures['prefill_tokens_per_second']:>12,.1f}{figures['decode_tokens_per_second']:>15,.1f}"
            f"{figures['first_token_seconds']:>11.2f} s{figures['peak_memory_bytes'] / 2**20:>8,.0f} MiB"
        )
    for name, why in result.get("peers_failed", {}).items():
        typer.echo(f"{name:<13}not measured: {why}")
    for name, figures in result.get("peers", {}).items():
        ratio = figures["ratio"]
        typer.echo(f"loquela reads {ratio['prefill']:.2f} and writes {ratio['decode']:.2f} times as fast as {name}")


def _opened(model: Path) -> Any:
    """The network without its weights, to know its window; raises what opening the model would."""
    from loquela.checkpoint.configs import read_config
    from loquela.checkpoint.skeleton import skeleton
    from loquela.errors import CheckpointError, UsageError

    if not model.is_dir():
        raise CheckpointError(f"a model must be a directory, but {model} is none")
    network = skeleton(read_config(model))
    if network.kind == "encoder":
        raise UsageError(f"bench measures what writes text, but {network.config.model_type} is an encoder")
    return network


def _lengths(network: Any, prompt: int | None, new: int | None) -> tuple[int, int, int]:
    """How many tokens are read, written, and read before what is written; raises `UsageError` for what cannot fit."""
    from loquela.errors import UsageError

    window = network.context_length
    written = min(128, max(1, window // 2)) if new is None else new
    apart = network.kind == "encoder-decoder"
    room = window - 1 if apart else window - written - 1  # of the window a source takes up nothing
    if (written if apart else written + 1) > window - 1:
        least = "a start token" if apart else "a prompt token and its next one"
        raise UsageError(f"new_tokens must leave room for {least} in the window of {window}, but is {written}")
    if prompt is not None and prompt > room:
        note(f"of {prompt} prompt tokens {room} fit the window of {window} tokens: so many are read")
    return min(prompt or 512, room), written, min(16, room)


def _enter(racers: list[Any], model: Path, place: Path, bits: str | None, options: dict[str, Any]) -> dict[str, str]:
    """Add those peers that can be measured; return why others that are installed cannot. stderr says of all why not."""
    from loquela.cli.racing import Racer
    from loquela.errors import LoquelaError

    failed = {}
    for name, package in _PEERS.items():
        if importlib.util.find_spec(package) is None:
            note(f"{name} is not installed, so it is not measured")
            continue
        try:
            racers.append(Racer(name, name, *peer_of(name, model, place, bits, options)))
        except (LoquelaError, ImportError, OSError) as error:  # an installation may be broken
            failed[name] = str(error)
            note(f"{name} is not measured: {error}")
    return failed


def peer_of(
    name: str, model: Path, place: Path, quantize: str | None, options: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the model in a peer's own form, written to `place` where it needs one, and its options."""
    if name == "transformers":
        return str(model), options
    if name == "llama.cpp":
        return str(gguf_of(model, place, quantize)), options
    from loquela.cli.ctranslate import ctranslate_of

    return str(ctranslate_of(model, place, quantize)), options | {"compute_type": quantize or "float32"}


def gguf_of(model: Path, place: Path, quantize: str | None) -> Path:
    """Write the model for llama.cpp, rounded by its own rounding; raises `LoquelaError`."""
    import ctypes

    from loquela.checkpoint import gguf_write
    from loquela.checkpoint.store import load_model
    from loquela.errors import LoquelaError

    loaded = load_model(model, verify=False)
    loaded.tokenizer = None  # it is not needed, and llama.cpp knows fewer kinds than we do
    plain = place / "model.gguf"
    gguf_write.write(loaded, plain, lambda path: None, "f32")
    if quantize is None:
        return plain
    llama = importlib.import_module("llama_cpp")
    given = llama.llama_model_quantize_default_params()
    given.ftype = {"int8": llama.LLAMA_FTYPE_MOSTLY_Q8_0, "int4": llama.LLAMA_FTYPE_MOSTLY_Q4_0}[quantize]
    rounded = place / f"{quantize}.gguf"
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    if llama.llama_model_quantize(str(plain).encode(), str(rounded).encode(), ctypes.byref(given)):
        raise LoquelaError(f"llama.cpp could not round {model} to {quantize}")
    plain.unlink()
    return rounded
