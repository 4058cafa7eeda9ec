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
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that is read.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are written.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each figure; medians are shown.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: one per core.")] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Measure installed libraries in turn.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tokens per second read (a prompt) and written (greedily), seconds of a new process to its first token, memory.

    With --peers transformers (float32), and llama.cpp and CTranslate2 (at the width of --quantize, else float32) run
    beside it where they are installed and know the model, each in its own process and one at a time; a ratio above 1
    says that Loquela is faster.
    """
    from loquela.checkpoint.hub import resolve
    from loquela.cli.racing import Racer, median, race
    from loquela.engine.decoder import default_threads
    from loquela.errors import LoquelaError

    model = resolve(model)
    network = _opened(model)
    window = network.context_length
    prompt_tokens = min(prompt_tokens, max(1, window - new_tokens - 1))
    options: dict[str, Any] = {"threads": threads or default_threads()}
    bits = None if quantize is None else quantize.value
    ours = options | {"engine": engine.value, "quantize": bits, "cache_dtype": cache_dtype.value}
    with tempfile.TemporaryDirectory() as place:
        racers = [Racer("loquela", "loquela", str(model), ours)]
        for name, package in _PEERS.items() if peers else ():
            if importlib.util.find_spec(package) is None:
                note(f"{name} is not installed, so it is not measured")
                continue
            try:
                racers.append(Racer(name, name, *peer_of(name, model, Path(place), bits, options)))
            except LoquelaError as error:
                note(f"{name} is not measured: {error}")
        context = min(16, window - new_tokens - 1)
        race(racers, rounds, {"prefill": ("prefill", {"count": prompt_tokens}, prompt_tokens)})
        for racer in racers:
            racer.ask("prepare", batch=1, context=context, new=new_tokens)
        race(racers, rounds, {"decode": ("decode", {"new": new_tokens}, new_tokens)})
        found = {
            racer.name: {
                "prefill_tokens_per_second": median(racer.figures["prefill"]),
                "decode_tokens_per_second": median(racer.figures["decode"]),
                "first_token_seconds": racer.started,
                "peak_memory_bytes": int(racer.ask("memory")),
            }
            for racer in racers
        }
        for racer in racers:
            racer.close()
    own = found.pop("loquela")
    result = {**own, "threads": options["threads"], "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    if peers:
        result["peers"] = {
            name: {**figures, "ratio": {what: own[f"{what}_tokens_per_second"] / figures[f"{what}_tokens_per_second"]
                                        for what in ("prefill", "decode")}}
            for name, figures in found.items()
        }  # fmt: skip
    if json:
        print_json(result)
        return
    for name, figures in {"loquela": own, **found}.items():
        typer.echo(
            f"{name:<13} prefill {figures['prefill_tokens_per_second']:9,.1f} tok/s   "
            f"decode {figures['decode_tokens_per_second']:8,.1f} tok/s   "
            f"first token {figures['first_token_seconds']:5.2f} s   "
            f"memory {figures['peak_memory_bytes'] / 2**20:7,.0f} MiB"
        )
    for name, figures in result.get("peers", {}).items():
        ratio = figures["ratio"]
        typer.echo(f"loquela is {ratio['prefill']:.2f} times {name} in prefill, {ratio['decode']:.2f} in decode")


def _opened(model: Path) -> Any:
    """The network without its weights, to know its window; raises what opening the model would."""
    from loquela.checkpoint.configs import read_config
    from loquela.checkpoint.skeleton import skeleton
    from loquela.errors import CheckpointError, UsageError

    if not model.is_dir():
        raise CheckpointError(f"a model must be a directory, but {model} is none")
    network = skeleton(read_config(model))
    if network.kind != "decoder":
        raise UsageError(f"bench measures decoders, but {network.config.model_type} is an {network.kind}")
    return network


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
