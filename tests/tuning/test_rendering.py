"""Examples as the model learns them: the ids of generation, the end token, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from loquela.api import load
from loquela.cli.chat import Conversation
from loquela.data.batch import IGNORED
from loquela.data.pairs import read_examples
from loquela.errors import ContextWindowError, DataError, UsageError
from loquela.generation.completion import prompt_ids
from loquela.serving.app import build
from loquela.serving.options import Options
from loquela.serving.state import Served
from loquela.text.chat import render
from loquela.tuning.rendering import Item, Renderer
from loquela.tuning.templates import INSTRUCTION, Templates, templates_for

Write = Callable[..., Path]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|endoftext|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "cat dog?"},
    {"role": "assistant", "content": "red blue"},
    {"role": "user", "content": "bird?"},
    {"role": "assistant", "content": "green"},
]


def renderer(model: Path, templates: Templates, limit: int = 100, **options: Any) -> Renderer:
    loaded = load(model)
    return Renderer(loaded.network, loaded.tokenizer, templates, limit, **options)


def learnt(item: Item) -> list[int]:
    return [int(i) for i in item.sample.labels if i != IGNORED]


def prompt_of(item: Item) -> list[int]:
    first = int((item.sample.labels != IGNORED).argmax())
    return item.sample.inputs[: first + 1].tolist()  # type: ignore[no-any-return]


def test_a_completion_and_its_end_are_learnt_after_the_ids_of_the_prompt(decoder: Path, pairs: Path) -> None:
    examples = read_examples(pairs)
    own = renderer(decoder, Templates(None, "{prompt}", ""))
    item = own.items(examples)[0]
    assert prompt_of(item) == prompt_ids(own.tokenizer, "cat ")
    assert learnt(item)[-1] == own.tokenizer.eos_id
    assert own.tokenizer.decode(learnt(item)) == "red"
    assert item.n_bytes == 3


def test_the_text_brings_its_own_beginning_once(decoder: Path, rows: Write) -> None:
    own = renderer(decoder, Templates(None, "{prompt}", ""))
    bos = own.tokenizer.bos_id
    own.tokenizer.backend.post_processor = __import__("tokenizers").processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    item = own.items(read_examples(rows([{"prompt": "<s>cat ", "completion": "red"}] * 2)))[0]
    assert item.sample.inputs[:2].tolist().count(bos) == 1


@pytest.mark.parametrize("template", [CHATML, INSTRUCTION])
def test_four_ways_to_one_prompt(decoder: Path, rows: Write, tmp_path: Path, template: str) -> None:
    """Training, the command line, the API and the page, which asks the API, see the same ids."""
    model = load(decoder)
    model.tokenizer.chat_template = template
    directory = tmp_path / "model"
    model.save(directory)
    model = load(directory)
    expected = render(TALK[:3], template, model.tokenizer)

    examples = read_examples(rows([{"messages": TALK}] * 2))
    chosen = templates_for(examples, None, model.tokenizer, bare=False)
    item = Renderer(model.network, model.tokenizer, chosen, 120).items(examples)[0]
    starts = [i for i in range(1, len(item.sample.labels)) if item.sample.labels[i] != IGNORED]
    last_turn = next(i for i in reversed(starts) if item.sample.labels[i - 1] == IGNORED)
    assert item.sample.inputs[: last_turn + 1].tolist() == expected

    conversation = Conversation(model, {})
    conversation.turns = TALK[:3]
    assert conversation._prompt() == expected

    served = Served(Options(model=directory))
    try:

        async def ask() -> tuple[list[int], int]:
            transport = httpx.ASGITransport(app=build(served))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                tokens = await client.post("/tokenize", json={"messages": TALK[:3]})
                body = {"model": "x", "messages": TALK[:3], "max_tokens": 1}
                answer = await client.post("/v1/chat/completions", json=body | {"model": served.name})
                return tokens.json()["tokens"], answer.json()["usage"]["prompt_tokens"]

        assert asyncio.run(ask()) == (expected, len(expected))
    finally:
        served.close()


def test_of_a_preference_only_the_last_answers_are_learnt(decoder: Path, rows: Write) -> None:
    row = {"messages": TALK[:3], "chosen": "green", "rejected": "red"}
    own = renderer(decoder, Templates(INSTRUCTION, None, ""))
    item = own.items(read_examples(rows([row, row])))[0]
    assert item.rejected is not None
    assert own.tokenizer.decode(learnt(item)) == "green"
    assert own.tokenizer.decode([int(i) for i in item.rejected.labels if i != IGNORED]) == "red"
    assert prompt_of(item) == render(TALK[:3], INSTRUCTION, own.tokenizer)


def test_a_long_sample_is_an_error_or_said_aloud(decoder: Path, rows: Write) -> None:
    path = rows([{"prompt": "cat " * 40, "completion": "red"}, {"prompt": "cat ", "completion": "red"}])
    plain = Templates(None, "{prompt}", "")
    with pytest.raises(ContextWindowError, match=r"1 of 2 samples are longer than 12 tokens: row 1 has \d+; cut them"):
        renderer(decoder, plain, 12).items(read_examples(path))
    dropping = renderer(decoder, plain, 12, too_long="drop")
    assert [item.row for item in dropping.items(read_examples(path))] == [2]
    assert "they are left out" in dropping.notes[0]
    cutting = renderer(decoder, plain, 12, too_long="truncate")
    cut, whole = cutting.items(read_examples(path))
    assert (len(cut.sample.inputs), learnt(cut)) == (12, learnt(whole))
    assert "they are cut" in cutting.notes[0]


def test_a_text_is_learnt_whole_in_pieces(decoder: Path, rows: Write) -> None:
    own = renderer(decoder, Templates(None, None, ""), 20)
    items = own.items(read_examples(rows([{"text": "cat dog bird " * 12}])))
    ids = [int(items[0].sample.inputs[0])] + [i for item in items for i in learnt(item)]
    assert own.tokenizer.decode(ids) == "cat dog bird " * 12
    assert all(len(item.sample.inputs) <= 20 for item in items)
    assert "is longer than 20 tokens" in own.notes[0]


def test_an_encoder_decoder_reads_the_prompt_as_its_source(encoder_decoder: Path, rows: Write) -> None:
    own = renderer(encoder_decoder, Templates(None, "{source}", ""))
    item = own.items(read_examples(rows([{"source": "cat", "target": "red"}] * 2)))[0]
    assert item.sample.source is not None
    assert item.sample.source.tolist() == own.tokenizer.encode("cat")
    assert item.sample.inputs.tolist() == [0, *learnt(item)[:-1]]
    assert learnt(item) == [*own.tokenizer.encode("red"), own.tokenizer.eos_id]


def test_a_label_outside_the_set_is_named_with_its_row(encoder: Path, rows: Write) -> None:
    path = rows([{"text": "cat", "label": "good"}, {"text": "dog", "label": "odd"}])
    own = renderer(encoder, Templates(None, None, ""), labels=("good", "bad"))
    with pytest.raises(DataError, match=r"row 2: the label must be one of good, bad, but is 'odd'"):
        own.items(read_examples(path))


def test_an_encoder_learns_labels_only(encoder: Path, pairs: Path) -> None:
    with pytest.raises(UsageError, match="texts with labels"):
        renderer(encoder, Templates(None, "{prompt}", "")).items(read_examples(pairs))


def test_templates_are_named_read_and_refused(decoder: Path, pairs: Path, rows: Write, tmp_path: Path) -> None:
    tokenizer = load(decoder).tokenizer
    talk = read_examples(rows([{"messages": TALK}] * 2, "talk.jsonl"))
    examples = read_examples(pairs)
    assert templates_for(talk, None, tokenizer, bare=False).chat == INSTRUCTION
    (tmp_path / "t.jinja").write_text(CHATML)
    assert templates_for(talk, str(tmp_path / "t.jinja"), tokenizer, bare=False).chat == CHATML
    assert templates_for(examples, "Q: {prompt}", tokenizer, bare=False).prompt == "Q: {prompt}"
    assert templates_for(examples, "instruction", tokenizer, bare=False).chat == INSTRUCTION
    with pytest.raises(UsageError, match="needs a model with a chat template"):
        templates_for(talk, "model", tokenizer, bare=False)
    with pytest.raises(UsageError, match="need a chat template in Jinja"):
        templates_for(talk, "Q: {prompt}", tokenizer, bare=False)
    with pytest.raises(UsageError, match="must be model, instruction, a file"):
        templates_for(talk, "nowhere", tokenizer, bare=False)
