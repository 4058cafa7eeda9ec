"""Texts, tokens and vectors: /v1/embeddings, /tokenize, /detokenize."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loquela.api import LanguageModel
from loquela.checkpoint.sentence import Pooling
from loquela.generation.embed import embed
from loquela.serving.answers import Detokenized, EmbeddingAnswer, EmbeddingEntry, Tokenized, UsageAnswer
from loquela.serving.asking import rendered
from loquela.serving.failures import ApiError
from loquela.serving.large import aside, json_answer
from loquela.serving.running import until_left
from loquela.serving.schemas import DetokenizeRequest, EmbeddingRequest, TokenizeRequest, listed
from loquela.serving.state import Served

__all__ = ["detokenize", "embeddings", "tokenize"]


async def embeddings(served: Served, http: HttpRequest, body: EmbeddingRequest) -> Response:
    """Return a vector for each text. Each text is read by itself, and others may be read in between.

    All are looked at before any is computed: what cannot be read is refused at once.
    """
    adapter = served.adapter(body.model)
    rows = await _rows(served, listed(body.input), adapter)
    left = False

    def one(model: LanguageModel, row: list[int]) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = embed(model.network, model.tokenizer, [row], model.pooling)[0].float().numpy()
        return vector

    async def all_of_them() -> list[NDArray[np.float32]]:
        return [await served.look(adapter, partial(one, row=row)) for row in rows if not left]

    def leave() -> None:
        nonlocal left
        left = True

    vectors = await until_left(http, all_of_them(), leave)
    if body.dimensions is not None and body.dimensions != len(vectors[0]):
        raise ApiError(
            400,
            f"dimensions must be the model's {len(vectors[0])} or left out, but is {body.dimensions}",
            param="dimensions",
            code="invalid_value",
        )
    spent = sum(map(len, rows))
    head = EmbeddingAnswer(
        model=served.name if adapter is None else adapter,
        data=[],
        usage=UsageAnswer(prompt_tokens=spent, total_tokens=spent),
    )
    shown = _base64 if body.encoding_format == "base64" else _listed

    def entry(item: tuple[int, NDArray[np.float32]]) -> dict[str, Any]:
        return EmbeddingEntry(index=item[0], embedding=shown(item[1])).model_dump()

    numbers = len(vectors) * len(vectors[0])
    return await json_answer(head.model_dump(exclude={"data"}), "data", list(enumerate(vectors)), entry, numbers)


async def _rows(served: Served, texts: list[str | list[int]], adapter: str | None) -> list[list[int]]:
    """Return the token ids of each text; raises a 400 for the first of which there can be no vector."""
    network, pooling = served.model.network, served.model.pooling or Pooling()
    if network.kind == "encoder-decoder":
        told = f"vectors need an encoder or a decoder: what {network.config.model_type} reads has none of its own here"
        raise ApiError(400, told, code="unavailable")
    for text in texts:
        served.check_length(text, "a text")
    window = served.scheduler.window(adapter)
    longest = min(pooling.max_length or window, window)
    rows = []
    for number, text in enumerate(texts, 1):
        which = f"text {number} of {len(texts)}"
        if isinstance(text, str):
            row = await served.encode(pooling.prompt + text)
        else:
            await aside(len(text), served.check_ids, text)
            row = text
        if not row:
            raise ApiError(400, f"a text must have a token to be embedded, but {which} has none", code="invalid_value")
        if len(row) > longest:
            told = f"a text must have at most {longest} tokens to be embedded, but {which} has {len(row)}: shorten it"
            raise ApiError(400, told, code="context_length_exceeded")
        rows.append(row)
    return rows


def _listed(vector: NDArray[np.float32]) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


async def tokenize(served: Served, http: HttpRequest, body: TokenizeRequest) -> Tokenized:
    """Return the tokens of a text, or of a conversation as the model sees it."""
    adapter = served.adapter(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give one of prompt and messages", param="prompt", code="invalid_value")
    if body.messages is not None:
        if body.add_special_tokens is not None:
            raise ApiError(400, "add_special_tokens goes with prompt: a template writes them itself", param="prompt")
        ids = await rendered(
            served, body.messages, adapter, add_generation_prompt=body.add_generation_prompt is not False
        )
    else:
        if body.add_generation_prompt is not None:
            raise ApiError(400, "add_generation_prompt goes with messages", param="add_generation_prompt")
        ids = await served.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
    return Tokenized(
        tokens=ids,
        token_strs=await aside(len(ids), lambda: [served.token(token) for token in ids]),
        count=len(ids),
        max_model_len=served.scheduler.window(adapter),
    )


async def detokenize(served: Served, http: HttpRequest, body: DetokenizeRequest) -> Detokenized:
    """Return the text of token ids, special tokens included."""
    served.adapter(body.model)
    await aside(len(body.tokens), served.check_ids, body.tokens)
    decode = partial(served.model.tokenizer.decode, body.tokens, skip_special_tokens=False)
    return Detokenized(prompt=await aside(len(body.tokens), decode))
