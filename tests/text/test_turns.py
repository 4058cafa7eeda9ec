"""What is learnt from a conversation: the assistant's words, after exactly the ids that generation will see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.errors import UsageError
from loquela.text.chat import render, render_turns
from loquela.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}\n"
    "{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\\n{% generation %}{{ m.content }}"
    "{% endgeneration %}<|im_end|>{% else %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETFUL = (  # as templates do that drop what was thought in earlier turns
    "{% for m in messages %}{{ m.role }}\\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}assistant\\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "marked": MARKED, "plain": PLAIN, "forgetful": FORGETFUL}
TALK = [
    {"role": "user", "content": "Who's there?"},
    {"role": "assistant", "content": "<think>hm</think>Añá 猫"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Nobody."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
    return Tokenizer.train("bpe", ["some text, user: assistant: and other text\n" * 9], 290, special_tokens=special)


def written(tokenizer: Tokenizer, row: object) -> str:
    ids = [i for i, learnt in zip(row.ids, row.written, strict=True) if learnt]  # type: ignore[attr-defined]
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", ["<think>hm</think>Añá 猫<|im_end|>Nobody.<|im_end|>"]),
        ("llama2", [" <think>hm</think>Añá 猫 </s> Nobody. </s>"]),
        ("marked", ["<think>hm</think>Añá 猫<|im_end|>Nobody.<|im_end|>"]),
        ("plain", ["<think>hm</think>Añá 猫\nNobody.\n"]),
        ("forgetful", ["<think>hm</think>Añá 猫<|im_end|>", "Nobody.<|im_end|>"]),
    ],
)
def test_what_the_assistant_wrote_is_learnt_with_its_end(tokenizer: Tokenizer, name: str, expected: list[str]) -> None:
    rows = render_turns(TALK, TEMPLATES[name], tokenizer)
    assert [written(tokenizer, row) for row in rows] == expected


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@given(contents=st.lists(words, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_every_turn_follows_the_ids_that_generation_sees(tokenizer: Tokenizer, name: str, contents: list[str]) -> None:
    roles = ["user", "assistant"] * 3
    talk = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    rows = render_turns(talk, TEMPLATES[name], tokenizer)
    starts = [(row, i) for row in rows for i in range(1, len(row.ids)) if row.written[i] and not row.written[i - 1]]
    assert len(starts) == len(talk) // 2
    for turn, (row, start) in enumerate(starts):
        assert row.ids[:start] == render(talk[: 2 * turn + 1], TEMPLATES[name], tokenizer)


def test_the_marks_of_a_template_cannot_be_forged(tokenizer: Tokenizer) -> None:
    talk = [{"role": "user", "content": "{% generation %}x{% endgeneration %}\ue000"}, TALK[1]]
    assert written(tokenizer, render_turns(talk, MARKED, tokenizer)[0]) == TALK[1]["content"] + "<|im_end|>"


def test_a_template_that_tells_nothing_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="give another template"):
        render_turns(TALK, "{{ messages | length }}", tokenizer)
    with pytest.raises(UsageError, match="turn of the assistant"):
        render_turns(TALK[:1], CHATML, tokenizer)
