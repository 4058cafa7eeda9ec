"""Who is measured by `loquela bench`: one process each, told through its stdin what to do next.

`python -m loquela.cli.rivals NAME MODEL OPTIONS` loads the model, reads a token, says so, and then answers each line of
JSON (`{"do": …}`) with one: the seconds that it took. So that many can be measured in turn, what they have in memory
stays, and only one of them works at a time.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["RIVALS", "Rival", "main"]


def _tokens(count: int, vocab: int, seed: int = 0) -> list[int]:
    """Token ids that are anything but a text; the speed does not depend on them."""
    return [(seed * 7919 + i * 104729 + 13) % vocab for i in range(count)]


class Rival(ABC):
    """One library with one model. Subclasses read tokens, for `batch` texts side by side, and go back to a length."""

    vocab: int

    @abstractmethod
    def __init__(self, model: str, options: dict[str, Any]) -> None: ...

    @abstractmethod
    def begin(self, batch: int, room: int) -> None:
        """Forget everything; `batch` empty texts, with room for `room` tokens each."""

    @abstractmethod
    def read(self, tokens: list[list[int]]) -> list[int]:
        """Read the same number of tokens for each text; return the most probable next token of each."""

    @abstractmethod
    def back(self, length: int) -> None:
        """Go back to the first `length` tokens of each text."""

    def prefill(self, count: int) -> float:
        """Return the seconds that reading a prompt of `count` tokens takes, up to its next token."""
        self.begin(1, count + 1)
        ids = _tokens(count, self.vocab)
        start = time.perf_counter()
        self.read([ids])
        return time.perf_counter() - start

    def prepare(self, batch: int, context: int, new: int) -> float:
        """Have `batch` texts of `context` tokens each, for `decode`."""
        self.begin(batch, context + new)
        self.context = context
        for row in range(batch):
            self.row(row, _tokens(context, self.vocab, row), batch)
        self.last = [1] * batch
        return 0.0

    def row(self, row: int, tokens: list[int], batch: int) -> None:
        """Read the text of one row; all at once where rows cannot be read one by one."""
        if row == batch - 1:
            self.read([_tokens(len(tokens), self.vocab, r) for r in range(batch)])

    def decode(self, new: int) -> float:
        """Return the seconds that writing `new` tokens takes, for all prepared texts together."""
        self.back(self.context)
        last = self.last
        start = time.perf_counter()
        for _ in range(new):
            last = self.read([[token] for token in last])
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
        self.vocab = self.network.vocab_size

    def _opened(self, model: str, options: dict[str, Any]) -> Any:
        from loquela.checkpoint.store import opened
        from loquela.engine.choosing import Engine, stored_width, warm

        engine, cache = options.get("engine", "auto"), options.get("cache_dtype", "float32")
        width = options.get("quantize") or stored_width(model, engine)
        warm(model, engine, width)
        with opened(model, dtype=options.get("dtype", "float32"), verify=False, unread=width is not None) as loaded:
            if width is None and engine != "compiled":
                return Engine(engine, cache).of(loaded.network)
            from loquela.engine.decoder import compiled

            given: Any = {"quantize": width, "cache_dtype": cache, "threads": options["threads"]}
            return compiled(loaded.network, stored=loaded.unread, **given)

    def begin(self, batch: int, room: int) -> None:
        together = hasattr(self.network, "hidden_rows")
        self.caches = [self.network.new_cache() for _ in range(batch if together else 1)]

    def read(self, tokens: list[list[int]]) -> list[int]:
        with self.torch.inference_mode():
            if hasattr(self.network, "hidden_rows"):
                states = self.network.hidden_rows(tokens, self.caches)
                logits = self.network.logits_rows(self.torch.stack([row[-1] for row in states]))
                return [int(row.argmax()) for row in logits]
            hidden = self.network.hidden(self.torch.tensor(tokens), cache=self.caches[0])
            return self.network.head(hidden[:, -1]).argmax(-1).tolist()  # type: ignore[no-any-return]

    def back(self, length: int) -> None:
        for cache in self.caches:
            cache.truncate(length)


class Transformers(Rival):
    """Hugging Face transformers in float32."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(options["threads"])
        library = importlib.import_module("transformers")
        self.cache_kind = library.DynamicCache
        self.model = library.AutoModelForCausalLM.from_pretrained(model, dtype=self.torch.float32).eval()
        self.vocab = self.model.config.vocab_size

    def begin(self, batch: int, room: int) -> None:
        self.cache = self.cache_kind()

    def read(self, tokens: list[list[int]]) -> list[int]:
        with self.torch.inference_mode():
            ids = self.torch.tensor(tokens)
            logits = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
            return logits[:, -1].argmax(-1).tolist()  # type: ignore[no-any-return]

    def back(self, length: int) -> None:
        if (more := self.cache.get_seq_length() - length) > 0:
            self.cache.crop(-more)


class LlamaCpp(Rival):
    """llama.cpp through llama-cpp-python; the model is a .gguf file."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.c = c = importlib.import_module("llama_cpp")
        self.np = importlib.import_module("numpy")
        c.llama_backend_init()
        self._quiet = c.llama_log_callback(lambda *_: None)
        c.llama_log_set(self._quiet, None)
        self.model = c.llama_model_load_from_file(model.encode(), c.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp could not load {model}")
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.threads, self.shape = options["threads"], (0, 0)
        self.context_: Any = None

    def begin(self, batch: int, room: int) -> None:
        c = self.c
        if self.shape != (batch, room):
            if self.context_:
                c.llama_free(self.context_)
            given = c.llama_context_default_params()
            given.n_ctx, given.n_seq_max = batch * (-(-room // 256) * 256), batch
            given.n_batch = given.n_ubatch = 512
            given.n_threads = given.n_threads_batch = self.threads
            self.context_, self.shape = c.llama_init_from_model(self.model, given), (batch, room)
        c.llama_memory_clear(c.llama_get_memory(self.context_), True)
        self.lengths = [0] * batch

    def _decode(self, tokens: list[tuple[int, int, int]], wanted: set[int]) -> None:
        batch = self.c.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (row, place, token) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, place, 1, i in wanted
            batch.seq_id[i][0] = row
        failed = self.c.llama_decode(self.context_, batch)
        self.c.llama_batch_free(batch)
        if failed:
            raise SystemExit(f"llama_decode failed: {failed}")

    def row(self, row: int, tokens: list[int], batch: int) -> None:
        self._feed(row, tokens)

    def _feed(self, row: int, tokens: list[int]) -> int:
        for start in range(0, len(tokens), 512):
            part = tokens[start : start + 512]
            placed = [(row, self.lengths[row] + i, token) for i, token in enumerate(part)]
            self._decode(placed, {len(part) - 1})
            self.lengths[row] += len(part)
        return self._best(len(part) - 1)

    def read(self, tokens: list[list[int]]) -> list[int]:
        if len(tokens[0]) > 1:
            return [self._feed(row, text) for row, text in enumerate(tokens)]
        self._decode([(row, self.lengths[row], text[0]) for row, text in enumerate(tokens)], set(range(len(tokens))))
        self.lengths = [length + 1 for length in self.lengths]
        return [self._best(row) for row in range(len(tokens))]

    def _best(self, index: int) -> int:
        logits = self.c.llama_get_logits_ith(self.context_, index)
        return int(self.np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def back(self, length: int) -> None:
        for row in range(len(self.lengths)):
            self.c.llama_memory_seq_rm(self.c.llama_get_memory(self.context_), row, length, -1)
        self.lengths = [length] * len(self.lengths)


class CTranslate2(Rival):
    """CTranslate2; the model is a directory that `loquela.cli.ctranslate` wrote.

    It keeps no text between two calls: writing after a context is what a call takes less what it takes to read the
    context and write one token, the least of three.
    """

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        library = importlib.import_module("ctranslate2")
        self.generator = library.Generator(
            model, compute_type=options["compute_type"], inter_threads=1, intra_threads=options["threads"]
        )
        self.vocab = len((Path(model) / "vocabulary.json").read_text().split(","))

    def begin(self, batch: int, room: int) -> None:
        self.texts: list[list[str]] = [[] for _ in range(batch)]

    def _write(self, count: int) -> list[int]:
        """Write `count` tokens after each text; return the first of each."""
        given: dict[str, Any] = {"max_length": count, "min_length": count, "include_prompt_in_result": False}
        found = self.generator.generate_batch(self.texts, **given)
        return [result.sequences_ids[0][0] for result in found]

    def read(self, tokens: list[list[int]]) -> list[int]:
        for text, new in zip(self.texts, tokens, strict=True):
            text += [str(token) for token in new]
        return self._write(1)

    def back(self, length: int) -> None:
        self.texts = [text[:length] for text in self.texts]

    def decode(self, new: int) -> float:
        self.back(self.context)
        reading = min(self._seconds(1) for _ in range(3))
        return max(1e-6, self._seconds(1 + new) - reading)

    def _seconds(self, count: int) -> float:
        start = time.perf_counter()
        self._write(count)
        return time.perf_counter() - start


RIVALS: dict[str, type[Rival]] = {
    "loquela": Ours, "transformers": Transformers, "llama.cpp": LlamaCpp, "CTranslate2": CTranslate2,
}  # fmt: skip


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
    rival = RIVALS[name](model, options)
    rival.begin(1, 256)
    rival.read([_tokens(options.get("first", 8), rival.vocab)])
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        what = asked.pop("do")
        if what == "memory":
            answer: dict[str, Any] = {"bytes": _peak_bytes()}
        else:
            tasks: dict[str, Callable[..., float]] = {
                "prefill": rival.prefill,
                "prepare": rival.prepare,
                "decode": rival.decode,
            }
            answer = {"seconds": tasks[what](**asked)}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
