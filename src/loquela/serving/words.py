"""Texts, tokens and vectors: /v1/embeddings, /tokenize, /detokenize."""

from __future__ import annotations

import base64
from functools import partial

import numpy as np
from starlette.requests import Request as HttpRequest

from loquela.api import LanguageModel
from loquela.generation.embed import embed
from loquela.serving.answers import Detokenized, EmbeddingAnswer, EmbeddingEntry, Tokenized, UsageAnswer
from loquela.serving.asking import rendered
from loquela.serving.failures import ApiError
from loquela.serving.running import until_left
from loquela.serving.schemas import DetokenizeRequest, EmbeddingRequest, TokenizeRequest, listed
from loquela.serving.state import Served

__all__ = ["detokenize", "embeddings", "tokenize"]


async def embeddings(served: Served, http: HttpRequest, body: EmbeddingRequest) -> EmbeddingAnswer:
    """Return a vector for each text. Each text is read by itself, and others may be read in between."""
    adapter = served.adapter(body.model)
    texts = listed(body.input)
    for text in texts:
        if not isinstance(text, str):
            served.check_ids(text)
    left = False

    def one(model: LanguageModel, text: str | list[int]) -> list[float]:
        vector: list[float] = embed(model.network, model.tokenizer, [text], model.pooling)[0].float().tolist()
        return vector

    async def all_of_them() -> list[list[float]]:
        return [await served.look(adapter, partial(one, text=text)) for text in texts if not left]

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
    spent = sum([len(await served.encode(text) if isinstance(text, str) else text) for text in texts])
    return EmbeddingAnswer(
        model=served.name if adapter is None else adapter,
        data=[
            EmbeddingEntry(index=index, embedding=_base64(vector) if body.encoding_format == "base64" else vector)
            for index, vector in enumerate(vectors)
        ],
        usage=UsageAnswer(prompt_tokens=spent, total_tokens=spent),
    )


def _base64(vector: list[float]) -> str:
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
        token_strs=await served.aside(len(ids), lambda: [served.token(token) for token in ids]),
        count=len(ids),
        max_model_len=served.scheduler.window(adapter),
    )


async def detokenize(served: Served, http: HttpRequest, body: DetokenizeRequest) -> Detokenized:
    """Return the text of token ids, special tokens included."""
    served.adapter(body.model)
    served.check_ids(body.tokens)
    decode = partial(served.model.tokenizer.decode, body.tokens, skip_special_tokens=False)
    return Detokenized(prompt=await served.aside(len(body.tokens), decode))
