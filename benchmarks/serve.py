"""Many callers of one model: our server beside llama.cpp's and a loop over transformers, same weights, one run.

    python benchmarks/serve.py                    # a 7M LLaMA shape with random weights, 1, 4, 16 and 64 callers
    python benchmarks/serve.py --shape 88M --clients 1 4 16
    python benchmarks/serve.py --only-adapters --shape 88M   # eight adapters in the mix against one and none: 2 minutes

Each caller asks, reads the stream to its end, and asks again. Figures: tokens per second of all callers together, and
the time to the first token of a request. Peers take turns; the median of the rounds counts. Then eight callers, each
with an adapter of its own (LoRA of rank 16 on every matrix), against the same with one adapter, and with none.
llama.cpp's server takes part where `llama-cpp-python[server]` is installed (it serves one at a time); the loop over
transformers generates for one caller after the other, as a first server of one's own would.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from machine import machine, record

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4},
    "7M": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "88M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
PROMPT = "First Citizen: Before we proceed any further, hear me speak. All: Speak, speak. First Citizen: You are all"
NEW = 48


ADAPTERS = [f"a{number}" for number in range(8)]
CALLERS = 8


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
    running = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7M")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16, help="of all callers together, in a round")
    parser.add_argument("--engine", choices=("auto", "torch", "compiled"), default="auto")
    parser.add_argument("--only-adapters", action="store_true", help="Measure what adapters cost, and no peers.")
    parser.add_argument("--no-record", action="store_true", help="Print only; leave RESULTS.md as it is.")
    arguments = parser.parse_args()
    lines: list[str] = []
    result: dict[str, Any] = {"shape": arguments.shape}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        make(directory, arguments.shape)
        if not arguments.only_adapters:
            found = servers(directory, arguments)
            lines += table(found, arguments.clients)
            result["servers"] = found
        result["adapters"] = worn = adapters(directory, arguments)
    rates = {name: figures[str(CALLERS)]["tokens_per_second"] for name, figures in worn.items()}
    result["eight_to_one"] = rates["eight adapters"] / rates["one adapter"]
    result["eight_to_none"] = rates["eight adapters"] / rates["no adapter"]
    lines.append(
        f"{CALLERS} callers with eight LoRA adapters (rank 16, every matrix) in the mix: "
        f"{rates['eight adapters']:.1f} tok/s, {result['eight_to_one']:.0%} of the throughput with one, "
        f"{result['eight_to_none']:.0%} of that with none."
    )
    print(machine(), *lines, sep="\n")
    if not arguments.no_record:
        command_line = f"python benchmarks/serve.py {' '.join(sys.argv[1:])}".strip()
        what = "Eight adapters in the mix" if arguments.only_adapters else "Many callers"
        record(f"{what}, {arguments.shape} LLaMA shape, float32", command_line, lines, result)
    print(json.dumps(result))


def servers(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Our server and its peers, in turn."""
    with contextlib.ExitStack() as stack:
        bias = {"0": -100}
        ours = stack.enter_context(process(our_command(directory, engine=arguments.engine)))
        peers: list[Peer] = [HttpPeer("loquela", ours, ["model"], bias)]
        with contextlib.suppress(ImportError):
            import llama_cpp.server.app  # noqa: F401

            gguf = directory / "model.gguf"
            subprocess.run([sys.executable, "-m", "loquela", "convert", directory / "model", gguf], check=True)
            command = [
                sys.executable,
                "-m",
                "llama_cpp.server",
                "--model",
                str(gguf),
                "--n_ctx",
                "512",
                "--interrupt_requests",
                "false",
            ]
            command += ["--n_threads", str(os.cpu_count()), "--n_threads_batch", str(os.cpu_count())]
            peers.append(HttpPeer("llama.cpp server", stack.enter_context(process(command)), ["model"], bias))
        with contextlib.suppress(ImportError):
            peers.append(LoopPeer(directory / "model"))
        return asyncio.run(contest(peers, arguments.clients, arguments.rounds, arguments.requests))


def adapters(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One of our servers, asked for no adapter, for one, and for eight, in turn."""
    with process(our_command(directory, *ADAPTERS, engine=arguments.engine)) as port:
        bias = {"0": -100}
        asked = {"no adapter": ["model"], "one adapter": ADAPTERS[:1], "eight adapters": ADAPTERS}
        peers: list[Peer] = [HttpPeer(name, port, models, bias) for name, models in asked.items()]
        return asyncio.run(contest(peers, [CALLERS], arguments.rounds, max(arguments.requests, 2 * CALLERS)))


def table(found: dict[str, Any], clients: list[int]) -> list[str]:
    lines = ["| callers | " + " | ".join(f"{name}: tok/s (first token, s)" for name in found) + " |"]
    lines.append("|---" * (1 + len(found)) + "|")
    for count in map(str, clients):
        cells = [f"{f[count]['tokens_per_second']:.1f} ({f[count]['first_token_seconds']:.3f})" for f in found.values()]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
