"""Many callers of one model: our server beside llama.cpp's and a loop over transformers, same weights, one run.

    python benchmarks/serve.py                                   # all parts, a 7M LLaMA shape with random weights
    python benchmarks/serve.py --part servers --shape 88M --clients 4 --rounds 1       # a piece of a few minutes
    python benchmarks/serve.py --part adapters --shape 88M       # eight adapters in the mix against one and none
    python benchmarks/serve.py --part health                     # how long /health takes while 64 callers are served

Each piece is merged into the figures that are there: callers of one number are measured with all `--peers` in turn, and
replace what was recorded of that number.

Each caller asks, reads the stream to its end, and asks again. Figures: tokens per second of all callers together, and
the time to the first token of a request. Peers take turns; the median of the rounds counts. Then eight callers, each
with an adapter of its own (LoRA of rank 16 on every matrix), against the same with one adapter, and with none.
llama.cpp's server takes part where `llama-cpp-python[server]` is installed (it serves one at a time); the loop over
transformers generates for one caller after the other, as a first server of one's own would. /health is asked by a
process of its own, every 20 ms, so that what is measured is the server's time and not that of the callers' loop; the
servers and that process have sessions of their own, as in terminals of their own: where the kernel shares the cores out
to sessions (autogroup), one would else measure how long the one who asks waits for the callers beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from machine import machine, record, recorded

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4},
    "7M": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "88M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
PROMPT = "First Citizen: Before we proceed any further, hear me speak. All: Speak, speak. First Citizen: You are all"
NEW = 48
PARTS = ("servers", "adapters", "health")
PEERS = ("loquela", "llama.cpp", "transformers")


ADAPTERS = [f"a{number}" for number in range(8)]
CALLERS = 8
BODIES: list[Any] = [
    {"prompt": [1] * 600_000},
    {"prompt": [[1]] * 300_000},
    {"prompt": "ab " * 600_000},
    {"prompt": ["ab"] * 300_000},
    {"prompt": "a", **{f"k{number}": 1 for number in range(100_000)}},
]
"""Bodies of nearly 2 MB, each wrong in its own way."""


def make(directory: Path, shape: str) -> None:
    """A model of random weights with a tokenizer, and eight LoRA adapters that change what it writes."""
    import torch

    from loquela import peft
    from loquela.checkpoint.store import save_model
    from loquela.data.corpora import path
    from loquela.models.base import architecture
    from loquela.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.train("bpe", [gzip.decompress(path("shakespeare").read_bytes()).decode()[:300_000]], 4096)
    module = architecture("llama")
    raw = {"model_type": "llama", "vocab_size": 4096, "max_position_embeddings": 512, "tie_word_embeddings": True}
    network = module.NETWORK(module.CONFIG.from_dict(raw | SHAPES[shape]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.05, generator=generator)
    save_model(network, tokenizer, directory / "model")
    for number, name in enumerate(ADAPTERS):
        config = peft.config_for("lora", r=16, target_modules="all-linear", init_lora_weights=False)
        peft.attach(network, config, name, seed=number)
        peft.save_adapter(network, name, directory / name, base=str(directory / "model"))


class Peer:
    """Something that callers can ask; `ask` yields once per token."""

    name = ""

    async def ask(self, client: int, number: int) -> Any:
        raise NotImplementedError
        yield


class HttpPeer(Peer):
    """A server with OpenAI's API, in a process of its own."""

    def __init__(self, name: str, port: int, models: list[str], bias: dict[str, int]) -> None:
        self.name, self.models, self.bias = name, models, bias
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=httpx.Limits())

    async def ask(self, client: int, number: int) -> Any:
        body = {
            "model": self.models[client % len(self.models)],
            "prompt": f"{PROMPT} {client} {number}",
            "max_tokens": NEW,
            "temperature": 0.8,
            "top_k": 25,
            "seed": number,
            "stream": True,
            "logit_bias": self.bias,
        }
        async with self.http.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(event)
                    if event["choices"]:
                        yield None


class LoopPeer(Peer):
    """transformers' generate, one caller after the other."""

    name = "transformers loop"

    def __init__(self, model: Path) -> None:
        import torch
        import transformers

        torch.set_num_threads(os.cpu_count() or 1)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self.turn = asyncio.Lock()

    async def ask(self, client: int, number: int) -> Any:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[bool]()

        class Streamer:
            def put(self, value: Any) -> None:
                loop.call_soon_threadsafe(queue.put_nowait, True)

            def end(self) -> None:
                loop.call_soon_threadsafe(queue.put_nowait, False)

        def generate() -> None:
            ids = self.tokenizer(f"{PROMPT} {client} {number}", return_tensors="pt").input_ids
            self.model.generate(
                ids,
                streamer=Streamer(),
                do_sample=True,
                temperature=0.8,
                top_k=25,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                pad_token_id=0,
            )

        async with self.turn:
            thread = threading.Thread(target=generate)
            thread.start()
            await queue.get()  # the prompt is put in first
            while await queue.get():
                yield None
            thread.join()


async def measure(peer: Peer, clients: int, requests: int) -> dict[str, float]:
    """Let each of `clients` ask `requests` times, one after the other."""
    first: list[float] = []
    tokens = 0

    async def one(client: int) -> None:
        nonlocal tokens
        for number in range(requests):
            begun, seen = time.perf_counter(), 0
            async for _ in peer.ask(client, number):
                if not seen:
                    first.append(time.perf_counter() - begun)
                seen += 1
            tokens += seen

    begun = time.perf_counter()
    await asyncio.gather(*map(one, range(clients)))
    seconds = time.perf_counter() - begun
    return {
        "tokens_per_second": tokens / seconds,
        "first_token_seconds": statistics.median(first),
        "first_token_seconds_worst": max(first),
    }


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[int]:
    """Run a server on a free port until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    running = subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(1200):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/v1/models")
                break
            if running.poll() is not None:
                raise RuntimeError(f"{command} ended")
            time.sleep(0.1)
        yield port
    finally:
        running.terminate()
        running.wait(60)


def our_command(directory: Path, *adapters: str, engine: str = "auto") -> list[str]:
    command = [sys.executable, "-m", "loquela", "serve", "-m", str(directory / "model"), "--queue", "128"]
    command += ["--engine", engine]
    for name in adapters:
        command += ["--adapter", f"{name}={directory / name}"]
    return command


async def contest(peers: list[Peer], clients: list[int], rounds: int, requests: int) -> dict[str, Any]:
    found: dict[str, Any] = {peer.name: {} for peer in peers}
    for count in clients:
        for _ in range(rounds):
            for peer in peers:
                result = await measure(peer, count, max(1, requests // count))
                found[peer.name].setdefault(str(count), []).append(result)
                print(f"{count:3} callers  {peer.name:18}  {json.dumps(result)}", file=sys.stderr)
    return {
        name: {
            count: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for count, runs in counts.items()
        }
        for name, counts in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--shape", choices=SHAPES, default="7M")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--peers", choices=PEERS, nargs="+", default=PEERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16, help="of all callers together, in a round")
    parser.add_argument("--seconds", type=float, default=15, help="of each way in which /health is measured")
    parser.add_argument("--engine", choices=("auto", "torch", "compiled"), default="auto")
    parser.add_argument("--place", type=Path, help="Where the models are kept for the next piece.")
    parser.add_argument("--no-record", action="store_true", help="Print only; leave RESULTS.md as it is.")
    parser.add_argument("--probe", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(probe(arguments.probe, arguments.seconds)))
        return
    with contextlib.ExitStack() as stack:
        place = arguments.place or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory = place / arguments.shape
        if not directory.exists():
            make(directory, arguments.shape)
        for part in arguments.part:
            {"servers": many_callers, "adapters": mixed_adapters, "health": while_served}[part](directory, arguments)


def told(given: Sequence[str]) -> str:
    """Return the command as it is recorded: without the place where the models are kept, which is this machine's."""
    words, after = [], False
    for word in given:
        if not after and word.partition("=")[0] != "--place":
            words.append(word)
        after = word == "--place"
    return " ".join(["python benchmarks/serve.py", *words])


def keep(title: str, arguments: argparse.Namespace, lines: list[str], result: dict[str, Any]) -> None:
    """Print a part's figures, and record them."""
    print(machine(), *lines, sep="\n")
    if not arguments.no_record:
        record(f"{title}, {arguments.shape} LLaMA shape, float32", told(sys.argv[1:]), lines, result)
    print(json.dumps(result))


def many_callers(directory: Path, arguments: argparse.Namespace) -> None:
    """Our server and its peers, at every number of callers; joined with what other pieces have found."""
    title = "Many callers"
    before = {} if arguments.no_record else recorded(f"{title}, {arguments.shape} LLaMA shape, float32")
    found = before.get("servers", {})
    for name, counts in servers(directory, arguments).items():
        found.setdefault(name, {}).update(counts)
    result = {"shape": arguments.shape, "servers": found}
    keep(title, arguments, table(found), result)


def mixed_adapters(directory: Path, arguments: argparse.Namespace) -> None:
    """Eight adapters in the mix, against one and none."""
    worn = adapters(directory, arguments)
    rates = {name: figures[str(CALLERS)]["tokens_per_second"] for name, figures in worn.items()}
    result: dict[str, Any] = {"shape": arguments.shape, "adapters": worn}
    result["eight_to_one"] = rates["eight adapters"] / rates["one adapter"]
    result["eight_to_none"] = rates["eight adapters"] / rates["no adapter"]
    line = (
        f"{CALLERS} callers with eight LoRA adapters (rank 16, every matrix) in the mix: "
        f"{rates['eight adapters']:.1f} tok/s, {result['eight_to_one']:.0%} of the throughput with one, "
        f"{result['eight_to_none']:.0%} of that with none."
    )
    keep("Eight adapters in the mix", arguments, [line], result)


def probe(port: int, seconds: float) -> dict[str, list[float]]:
    """Ask /health every 20 ms for so long; return how long each answer took, in seconds, its connection included.

    Beside it, how much longer than it should each of the naps in between took: what the system does to any process.
    """
    took, late, end = [], [], time.perf_counter() + seconds
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        while time.perf_counter() < end:
            begun = time.perf_counter()
            client.get("/health").raise_for_status()
            answered = time.perf_counter()
            took.append(answered - begun)
            time.sleep(0.02)
            late.append(time.perf_counter() - answered - 0.02)
    return {"took": took, "late": late}


def while_served(directory: Path, arguments: argparse.Namespace) -> None:
    """How long /health takes: alone, beside 64 callers, and beside 64 callers of whom some want pictures."""
    callers = max(arguments.clients)
    crowd = f"{callers} callers"
    ways = ("nobody else", crowd, f"{crowd} and pictures", f"{crowd} and bodies of 2 MB", f"{crowd} on a busy machine")
    rows: dict[str, Any] = {}
    for way in ways:
        with process(our_command(directory, engine=arguments.engine)) as port, contextlib.ExitStack() as stack:
            if "busy" in way:
                stack.enter_context(busy(15))
            found = asyncio.run(_watched(port, way, callers, arguments.seconds))
        took = sorted(found["took"])
        shares = {"p50": took[len(took) // 2], "p99": took[int(0.99 * len(took))], "max": took[-1], "asked": len(took)}
        shares["late"] = max(found["late"])
        rows[way] = shares
        print(way, json.dumps(shares), file=sys.stderr)
    lines = [
        "| beside | asked | p50, ms | p99, ms | max, ms | a nap, too long by at most, ms |",
        "|---|---|---|---|---|---|",
    ]
    for way, row in rows.items():
        shown = " | ".join(f"{1000 * row[key]:.1f}" for key in ("p50", "p99", "max", "late"))
        lines.append(f"| {way} | {row['asked']} | {shown} |")
    busy_means = "A busy machine runs 15 more processes that only compute, on the same cores. "
    naps = "The naps are those of the one who asks, between two questions: what any process had to wait. "
    lines += ["", busy_means + naps + f"Load average at the end: {os.getloadavg()[0]:.1f}."]
    keep("How long /health takes", arguments, lines, {"shape": arguments.shape, "health": rows})


async def _watched(port: int, way: str, callers: int, seconds: float) -> dict[str, list[float]]:
    peer, going = HttpPeer("loquela", port, ["model"], {"0": -100}), "callers" in way

    async def caller(client: int) -> None:
        number = 0
        while going:
            async for _ in peer.ask(client, number):
                pass
            number += 1

    async def watcher() -> None:
        while going:
            for picture in ("attention", "lens", "embeddings"):
                body = {"picture": picture, "prompt": PROMPT * 6}
                answer = await peer.http.post("/inside/picture", json=body)
                answer.raise_for_status()

    async def heavy(body: bytes) -> None:
        while going:
            await peer.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})

    tasks = [asyncio.create_task(caller(client)) for client in range(callers if going else 0)]
    tasks += [asyncio.create_task(watcher())] if "pictures" in way else []
    bodies = [json.dumps(body).encode() for body in BODIES] if "bodies" in way else []
    tasks += [asyncio.create_task(heavy(body)) for body in bodies * 2]
    await asyncio.sleep(1)
    command = [sys.executable, __file__, "--probe", str(port), "--seconds", str(seconds)]
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, start_new_session=True)
    told, _ = await child.communicate()
    going = False
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    found: dict[str, list[float]] = json.loads(told)
    return found


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Let so many other processes compute until the block ends."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


def servers(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Our server and its peers, in turn."""
    with contextlib.ExitStack() as stack:
        bias, model = {"0": -100}, directory / "model"
        peers: list[Peer] = []
        if "loquela" in arguments.peers:
            ours = stack.enter_context(process(our_command(directory, engine=arguments.engine)))
            peers.append(HttpPeer("loquela", ours, ["model"], bias))
        if "llama.cpp" in arguments.peers:
            with contextlib.suppress(ImportError):
                import llama_cpp.server.app  # noqa: F401

                gguf = directory / "model.gguf"
                if not gguf.exists():
                    subprocess.run([sys.executable, "-m", "loquela", "convert", model, gguf], check=True)
                threads = str(os.cpu_count())
                command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--n_ctx", "512"]
                command += ["--interrupt_requests", "false", "--n_threads", threads, "--n_threads_batch", threads]
                peers.append(HttpPeer("llama.cpp server", stack.enter_context(process(command)), ["model"], bias))
        if "transformers" in arguments.peers:
            with contextlib.suppress(ImportError):
                peers.append(LoopPeer(model))
        return asyncio.run(contest(peers, arguments.clients, arguments.rounds, arguments.requests))


def adapters(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One of our servers, asked for no adapter, for one, and for eight, in turn."""
    with process(our_command(directory, *ADAPTERS, engine=arguments.engine)) as port:
        bias = {"0": -100}
        asked = {"no adapter": ["model"], "one adapter": ADAPTERS[:1], "eight adapters": ADAPTERS}
        peers: list[Peer] = [HttpPeer(name, port, models, bias) for name, models in asked.items()]
        return asyncio.run(contest(peers, [CALLERS], arguments.rounds, max(arguments.requests, 2 * CALLERS)))


def table(found: dict[str, Any]) -> list[str]:
    lines = ["| callers | " + " | ".join(f"{name}: tok/s (first token, s)" for name in found) + " |"]
    lines.append("|---" * (1 + len(found)) + "|")
    for count in sorted({count for counts in found.values() for count in counts}, key=int):
        cells = [
            f"{f[count]['tokens_per_second']:.1f} ({f[count]['first_token_seconds']:.3f})" if count in f else "–"
            for f in found.values()
        ]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
