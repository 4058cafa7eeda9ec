"""Who is measured by `loquela bench`: one process each, told through its stdin what to do next.

`python -m loquela.cli.rivals NAME MODEL OPTIONS` loads the model, reads a token, says so, and then answers each line of
JSON (`{"do": …}`) with one: the seconds that it took. So that many can be measured in turn, what they have in memory
stays, and only one of them works at a time. A line `{"failed": …}` says why it cannot go on.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loquela.errors import LoquelaError, UsageError

__all__ = ["Rival", "main"]


def _tokens(count: int, vocab: int, seed: int = 0) -> list[int]:
    """Token ids that are anything but a text; the speed does not depend on them."""
    return [(seed * 7919 + i * 104729 + 13) % vocab for i in range(count)]


class Rival(ABC):
    """One library with one model: subclasses read and write for `batch` texts side by side.

    A decoder reads its prompts and goes on; an encoder-decoder reads sources and begins its targets.
    """

    vocab: int
    """How many token ids may be read."""

    @abstractmethod
    def __init__(self, model: str, options: dict[str, Any]) -> None: ...

    @abstractmethod
    def begin(self, batch: int, room: int) -> None:
        """Forget everything; `batch` empty texts, with room for `room` tokens each."""

    @abstractmethod
    def fill(self, texts: list[list[int]]) -> list[int]:
        """Read the prompts, or sources, of texts that have just begun; return the most probable next token of each."""

    @abstractmethod
    def step(self, tokens: list[int]) -> list[int]:
        """Go on by a token in each text; return the most probable next one of each."""

    @abstractmethod
    def back(self) -> None:
        """Go back to what was there after `fill`."""

    def said(self) -> dict[str, Any]:
        """What else there is to know about the library at work."""
        return {}

    def prefill(self, count: int) -> float:
        """Return the seconds that reading `count` tokens takes, up to the next token."""
        self.begin(1, count + 1)
        ids = _tokens(count, self.vocab)
        start = time.perf_counter()
        self.fill([ids])
        return time.perf_counter() - start

    def prepare(self, batch: int, context: int, new: int) -> float:
        """Have `batch` texts that have read `context` tokens each, for `decode`."""
        self.begin(batch, context + new)
        self.fill([_tokens(context, self.vocab, row) for row in range(batch)])
        self.batch = batch
        return 0.0

    def decode(self, new: int) -> float:
        """Return the seconds that writing `new` tokens takes, for all prepared texts together."""
        self.back()
        last = [1] * self.batch
        start = time.perf_counter()
        for _ in range(new):
            last = self.step(last)
        return time.perf_counter() - start


class Ours(Rival):
    """Loquela: `quantize` (None, int8, int4), `engine`, `cache_dtype`, `threads`."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from loquela.cli.threads import starting

        with starting():  # as `loquela generate` does
            import torch

            self.torch = torch
            torch.set_num_threads(options["threads"])
            self.network = self._opened(model, options)
        self.together = hasattr(self.network, "hidden_rows")
        self.reads = self.network.kind == "encoder-decoder"
        self.vocab = self.network.config.vocab_size if self.reads else self.network.vocab_size

    def _opened(self, model: str, options: dict[str, Any]) -> Any:
        from loquela.checkpoint.store import opened
        from loquela.engine.choosing import Engine, stored_width, warm

        engine, cache = options.get("engine", "auto"), options.get("cache_dtype", "float32")
        width = options.get("quantize") or stored_width(model, engine)
        if width is not None and engine == "torch":
            raise UsageError(f"weights of {width} need the compiled engine, but the engine is torch")
        warm(model, engine, width)
        with opened(model, dtype=options.get("dtype", "float32"), verify=False, unread=width is not None) as loaded:
            if width is None and engine != "compiled":
                return Engine(engine, cache).of(loaded.network)
            from loquela.engine.decoder import compiled

            given: Any = {"quantize": width, "cache_dtype": cache, "threads": options["threads"]}
            return compiled(loaded.network, stored=loaded.unread, **given)

    def said(self) -> dict[str, Any]:
        return {"engine": "compiled" if self.together else "torch"}

    def begin(self, batch: int, room: int) -> None:
        self.caches: list[Any] = []

    def fill(self, texts: list[list[int]]) -> list[int]:
        with self.torch.inference_mode():
            each = [[text] for text in texts] if self.together else [texts]
            started = [self.network.start(self.torch.tensor(rows)) for rows in each]
            self.caches = [cache for cache, _ in started]
            found = self._next([row for _, first in started for row in first.tolist()])
        self.kept = None if self._unread() else copy.deepcopy(self.caches)
        self.lengths = [cache.length for cache in self.caches]
        return found

    def _unread(self) -> bool:
        return self.reads or all(cache.unreads for cache in self.caches)

    def step(self, tokens: list[int]) -> list[int]:
        with self.torch.inference_mode():
            return self._next([[token] for token in tokens])

    def _next(self, tokens: list[list[int]]) -> list[int]:
        if self.together:
            found = self.network.outlooks(tokens, self.caches, wanted=[1] * len(tokens))  # as the decode loop does
            return [after[-1].best for after in found]
        hidden = self.network.hidden(self.torch.tensor(tokens), cache=self.caches[0])
        return self.network.head(hidden[:, -1]).argmax(-1).tolist()  # type: ignore[no-any-return]

    def back(self) -> None:
        if self.kept is not None:  # what cannot be unread was kept beside
            self.caches = copy.deepcopy(self.kept)
        for cache, length in zip(self.caches, self.lengths, strict=True):
            cache.truncate(length)


def _rival(name: str) -> type[Rival]:
    if name == "loquela":
        return Ours
    found: type[Rival] = importlib.import_module("loquela.cli.peers").PEERS[name]
    return found


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    resource = importlib.import_module("resource")
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Be the rival that the command line names."""
    name, model, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    try:
        rival = _rival(name)(model, options)
        rival.begin(1, 256)
        rival.fill([_tokens(options.get("first", 8), rival.vocab)])
        print(json.dumps({"ready": True, **rival.said()}), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(_done(rival, **json.loads(line))), file=out, flush=True)
    except LoquelaError as error:
        print(json.dumps({"failed": str(error), "usage": isinstance(error, UsageError)}), file=out, flush=True)


def _done(rival: Rival, do: str, **asked: Any) -> dict[str, Any]:
    if do == "memory":
        return {"bytes": _peak_bytes()}
    tasks: dict[str, Callable[..., float]] = {
        "prefill": rival.prefill,
        "prepare": rival.prepare,
        "decode": rival.decode,
    }
    return {"seconds": tasks[do](**asked)}


if __name__ == "__main__":
    main()
