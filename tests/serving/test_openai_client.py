"""The official openai client against our server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import torch

import loquela
from loquela.api import LanguageModel
from loquela.serving.infill import infill_ids
from loquela.text.chat import render

Running = Any  # conftest.Running
GREEDY: dict[str, Any] = {"temperature": 0}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="not-needed", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(model_directory: Path) -> LanguageModel:
    return loquela.load(model_directory)


def test_completions_are_what_the_library_gives(client: openai.OpenAI, model: LanguageModel) -> None:
    expected = model.generate("The cat", max_new_tokens=20, temperature=0.9, top_k=0, seed=5, n=2)
    answer = client.completions.create(
        model="tiny", prompt="The cat", max_tokens=20, temperature=0.9, seed=5, n=2, stop=None
    )
    assert [choice.text for choice in answer.choices] == [completion.text for completion in expected]
    assert [choice.finish_reason for choice in answer.choices] == [c.finish_reason for c in expected]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected[0].usage.prompt_tokens
    assert answer.usage.completion_tokens == sum(c.usage.completion_tokens for c in expected)


def test_several_prompts_and_token_ids(client: openai.OpenAI, model: LanguageModel) -> None:
    prompts = ["The cat", "the dog sat", "happy"]
    ids = [model.tokenizer.encode(prompt) for prompt in prompts]
    texts = [client.completions.create(model="tiny", prompt=p, max_tokens=9, **GREEDY).choices[0].text for p in prompts]
    together = client.completions.create(model="tiny", prompt=prompts, max_tokens=9, **GREEDY)
    assert [choice.text for choice in together.choices] == texts
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=9, **GREEDY)
    assert [choice.text for choice in by_ids.choices] == texts


def test_a_stream_is_the_same_text(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "The cat", "max_tokens": 30, "seed": 3, "n": 2}
    whole = client.completions.create(**asked)
    texts, usage = ["", ""], None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage


def test_logprobs_and_echo(client: openai.OpenAI, model: LanguageModel) -> None:
    answer = client.completions.create(
        model="tiny", prompt="The cat sat on", max_tokens=3, logprobs=2, echo=True, **GREEDY
    )
    choice = answer.choices[0]
    assert choice.text.startswith("The cat sat on")
    found = choice.logprobs
    assert found is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert found.text_offset is not None
    ids = model.tokenizer.encode("The cat sat on")
    assert found.tokens is not None
    assert found.tokens[: len(ids)] == [model.tokenizer.token(i) for i in ids]
    assert found.token_logprobs[0] is None
    expected = model.logits(ids)[0].double().log_softmax(-1)
    for position in range(1, len(ids)):
        assert found.token_logprobs[position] == pytest.approx(float(expected[position - 1, ids[position]]), abs=1e-4)
        assert choice.text[found.text_offset[position] :].startswith(found.tokens[position])
    assert all(2 <= len(top) <= 3 for top in found.top_logprobs[1:])
    none = client.completions.create(model="tiny", prompt="The cat", max_tokens=0, echo=True, logprobs=0)
    assert none.choices[0].text == "The cat"


def test_a_suffix_fills_the_gap(client: openai.OpenAI, model: LanguageModel) -> None:
    answer = client.completions.create(model="tiny", prompt="The cat", suffix=" mat", max_tokens=8, **GREEDY)
    ids = infill_ids(model.tokenizer, "The cat", " mat")
    marks = [model.tokenizer.token(i) for i in ids if i < 4]
    assert marks == ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    expected = "".join(piece.text for piece in model.stream(ids, temperature=0, max_new_tokens=8))
    assert answer.choices[0].text == expected


def test_chat_is_the_template_and_the_completion(client: openai.OpenAI, model: LanguageModel) -> None:
    messages = [{"role": "system", "content": "Purr."}, {"role": "user", "content": "The cat?"}]
    assert model.tokenizer.chat_template is not None
    ids = render(messages, model.tokenizer.chat_template, model.tokenizer)
    expected = list(model.stream(ids, temperature=0, max_new_tokens=12))
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=12, logprobs=True, top_logprobs=3, **GREEDY
    )
    choice = answer.choices[0]
    assert choice.message.content == "".join(piece.text for piece in expected)
    assert choice.message.role == "assistant"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [token.logprob for token in choice.logprobs.content] == pytest.approx([p.log_prob for p in expected])
    assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
    raw = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
    assert raw.decode(errors="replace").startswith((choice.message.content or "")[:3])
    text, reasons = "", []
    for chunk in client.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=12, stream=True, **GREEDY
    ):
        text += chunk.choices[0].delta.content or ""
        reasons.append(chunk.choices[0].finish_reason)
    assert text == choice.message.content
    assert reasons[-1] == choice.finish_reason
    assert set(reasons[:-1]) == {None}


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["happy", "sad"]}, "n": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["mood", "n"],
        "additionalProperties": False,
    }
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Well?"}],
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "mood", "schema": schema, "strict": True}},
        )
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)
    regex = client.completions.create(model="tiny", prompt="The", extra_body={"regex": "[a-c]{3}"}, max_tokens=20)
    assert len(regex.choices[0].text) == 3


def test_embeddings(client: openai.OpenAI, model: LanguageModel) -> None:
    texts = ["The cat sat.", "the dog", "Ärger 🐈"]
    expected = model.embed(texts)
    for form in ("float", "base64"):
        answer = client.embeddings.create(model="tiny", input=texts, encoding_format=form)  # type: ignore[call-overload]
        vectors = [entry.embedding for entry in answer.data]
        if form == "float":
            torch.testing.assert_close(torch.tensor(vectors), expected, atol=1e-5, rtol=1e-4)
    by_default = client.embeddings.create(model="tiny", input=texts[0])
    torch.testing.assert_close(torch.tensor(by_default.data[0].embedding), expected[0], atol=1e-5, rtol=1e-4)
    assert by_default.usage.prompt_tokens == len(model.tokenizer.encode(texts[0]))
    tokens = [model.tokenizer.encode(text) for text in texts]
    several = client.embeddings.create(model="tiny", input=tokens)
    torch.testing.assert_close(torch.tensor([e.embedding for e in several.data]), expected, atol=1e-5, rtol=1e-4)
    one = client.embeddings.create(model="tiny", input=tokens[1])
    assert [e.embedding for e in one.data] == [several.data[1].embedding]


def test_the_best_of_several(client: openai.OpenAI, model: LanguageModel) -> None:
    settings: dict[str, Any] = {"temperature": 1.3, "seed": 3}
    expected = [
        model.generate(prompt, max_new_tokens=12, top_k=0, n=2, best_of=5, **settings) for prompt in ("The cat", "A")
    ]
    answer = client.completions.create(
        model="tiny", prompt=["The cat", "A"], max_tokens=12, n=2, best_of=5, logprobs=0, **settings
    )
    assert [choice.text for choice in answer.choices] == [c.text for row in expected for c in row]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    means = [sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs) for c in answer.choices]
    assert means[0] >= means[1]
    assert means[2] >= means[3]
    assert answer.usage is not None
    assert answer.usage.completion_tokens > sum(len(c.tokens) for row in expected for c in row), "all that were written"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "loquela"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_errors_are_openai_s(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="The")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[1] * 600)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.completions.create(model="tiny", prompt="The", extra_body={"temprature": 1})
    assert unknown.value.code == "unknown_parameter"
    assert unknown.value.param == "temprature"
    with pytest.raises(openai.BadRequestError, match="best_of must be at least n, which is 3, but is 2"):
        client.completions.create(model="tiny", prompt="The", n=3, best_of=2)
    with pytest.raises(openai.BadRequestError, match="best_of judges whole texts, so they cannot be streamed"):
        client.completions.create(model="tiny", prompt="The", best_of=2, stream=True)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "?"}], tools=[])
    with pytest.raises(openai.BadRequestError, match="below"):
        client.completions.create(model="tiny", prompt="The", logit_bias={"99999": 1})


def test_tokens_there_and_back(server: Running, model: LanguageModel) -> None:
    text = "The cat 🐈 sat."
    with httpx.Client(base_url=server.url, timeout=120) as http:
        cut = http.post("/tokenize", json={"prompt": text}).json()
        assert cut["tokens"] == model.tokenizer.encode(text)
        assert cut["count"] == len(cut["tokens"]) == len(cut["token_strs"])
        assert http.post("/detokenize", json={"tokens": cut["tokens"]}).json() == {"prompt": text}
        chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]}).json()
        assert http.post("/detokenize", json={"tokens": chat["tokens"]}).json() == {"prompt": "<user>Hi\n<assistant>"}


def test_an_encoder_gives_vectors_and_says_that_it_writes_nothing(
    start: Callable[..., Running], encoder_directory: Path
) -> None:
    reader = start(encoder_directory)
    with openai.OpenAI(base_url=f"{reader.url}/v1", api_key="x", max_retries=0) as client:
        answer = client.embeddings.create(model="reader", input=["The cat", "the dog"])
        expected = loquela.load(encoder_directory).embed(["The cat", "the dog"])
        vectors = torch.tensor([entry.embedding for entry in answer.data])
        torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-4)
        with pytest.raises(openai.BadRequestError, match="ask for embeddings"):
            client.completions.create(model="reader", prompt="The")
        with pytest.raises(openai.BadRequestError, match="chat template"):
            client.chat.completions.create(model="reader", messages=[{"role": "user", "content": "?"}])
