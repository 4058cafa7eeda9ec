"""Other libraries that `loquela bench` measures; see `loquela.cli.rivals`."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

from loquela.cli.rivals import Rival

__all__ = ["PEERS"]


class Transformers(Rival):
    """Hugging Face transformers in float32."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(options["threads"])
        self.library = importlib.import_module("transformers")
        self.reads = self.library.AutoConfig.from_pretrained(model).is_encoder_decoder
        kind = "AutoModelForSeq2SeqLM" if self.reads else "AutoModelForCausalLM"
        self.model = getattr(self.library, kind).from_pretrained(model, dtype=self.torch.float32).eval()
        self.vocab = self.model.config.vocab_size

    def begin(self, batch: int, room: int) -> None:
        own = self.library.DynamicCache()
        self.given: dict[str, Any] = {"past_key_values": own, "use_cache": True}
        if self.reads:
            self.given["past_key_values"] = self.library.EncoderDecoderCache(own, self.library.DynamicCache())
        self.cache = own

    def fill(self, texts: list[list[int]]) -> list[int]:
        ids = self.torch.tensor(texts)
        if self.reads:
            with self.torch.inference_mode():
                self.given["encoder_outputs"] = self.model.get_encoder()(ids)
            ids = self.torch.full((len(texts), 1), self.model.config.decoder_start_token_id or 0)
        found = self._next(ids)
        self.length = self.cache.get_seq_length()
        return found

    def step(self, tokens: list[int]) -> list[int]:
        return self._next(self.torch.tensor(tokens)[:, None])

    def _next(self, ids: Any) -> list[int]:
        given = self.given | ({"decoder_input_ids": ids} if self.reads else {"input_ids": ids, "logits_to_keep": 1})
        with self.torch.inference_mode():
            return self.model(**given).logits[:, -1].argmax(-1).tolist()  # type: ignore[no-any-return]

    def back(self) -> None:
        if (more := self.cache.get_seq_length() - self.length) > 0:
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

    def fill(self, texts: list[list[int]]) -> list[int]:
        self.filled = len(texts[0])
        return [self._feed(row, text) for row, text in enumerate(texts)]

    def _feed(self, row: int, tokens: list[int]) -> int:
        for start in range(0, len(tokens), 512):
            part = tokens[start : start + 512]
            placed = [(row, self.lengths[row] + i, token) for i, token in enumerate(part)]
            self._decode(placed, {len(part) - 1})
            self.lengths[row] += len(part)
        return self._best(len(part) - 1)

    def step(self, tokens: list[int]) -> list[int]:
        self._decode([(row, self.lengths[row], token) for row, token in enumerate(tokens)], set(range(len(tokens))))
        self.lengths = [length + 1 for length in self.lengths]
        return [self._best(row) for row in range(len(tokens))]

    def _best(self, index: int) -> int:
        logits = self.c.llama_get_logits_ith(self.context_, index)
        return int(self.np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def back(self) -> None:
        for row in range(len(self.lengths)):
            self.c.llama_memory_seq_rm(self.c.llama_get_memory(self.context_), row, self.filled, -1)
        self.lengths = [self.filled] * len(self.lengths)


class CTranslate2(Rival):
    """CTranslate2; the model is a directory that `loquela.cli.ctranslate` wrote.

    It keeps no text between two calls: writing after what was read is what a call takes less what it takes to read and
    write one token, the least of three.
    """

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        library = importlib.import_module("ctranslate2")
        known = {file.name.partition("_")[0]: file for file in Path(model).glob("*vocabulary.json")}
        self.reads = "vocabulary.json" not in known
        kind = library.Translator if self.reads else library.Generator
        given = {"compute_type": options["compute_type"], "inter_threads": 1, "intra_threads": options["threads"]}
        self.model = kind(model, **given)
        read, self.written = (
            json.loads(next(known[which] for which in (one, "shared", "vocabulary.json") if which in known).read_text())
            for one in ("source", "target")
        )
        self.words, self.vocab = read, len(read)

    def begin(self, batch: int, room: int) -> None:
        self.texts: list[list[str]] = []

    def fill(self, texts: list[list[int]]) -> list[int]:
        self.texts = [[self.words[token] for token in text] for text in texts]
        return self._write(1)

    def _write(self, count: int) -> list[int]:
        """Write `count` tokens after each text; return the first of each."""
        if self.reads:
            asked = {"max_decoding_length": count, "min_decoding_length": count, "beam_size": 1}
            written = self.model.translate_batch(self.texts, **asked)
            return [self.written.index(result.hypotheses[0][0]) for result in written]
        given: dict[str, Any] = {"max_length": count, "min_length": count, "include_prompt_in_result": False}
        return [result.sequences_ids[0][0] for result in self.model.generate_batch(self.texts, **given)]

    def step(self, tokens: list[int]) -> list[int]:
        raise NotImplementedError("it writes texts as a whole")

    def back(self) -> None:
        pass

    def decode(self, new: int) -> float:
        reading = min(self._seconds(1) for _ in range(3))
        return max(1e-6, self._seconds(1 + new) - reading)

    def _seconds(self, count: int) -> float:
        start = time.perf_counter()
        self._write(count)
        return time.perf_counter() - start


PEERS: dict[str, type[Rival]] = {"transformers": Transformers, "llama.cpp": LlamaCpp, "CTranslate2": CTranslate2}
