"""The prompt renderer: equal to transformers, deaf to what templates might try."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import transformers

from loquela.errors import UsageError
from loquela.text import chat
from loquela.text.chat import render, render_text
from loquela.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}\n"
    "{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALTERNATING = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + message.content | trim + ' [/INST]' }}
    {%- else %}
        {%- generation %}{{ message.content + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
TOOLS = """\
{% set ns = namespace(n=0) %}
{%- for message in messages -%}
    {%- if loop.first %}{% continue %}{% endif -%}
    {%- set ns.n = ns.n + 1 -%}
    {{ message | tojson }} {{ tools is none }} {{ message.content[::-1] }} {{ ns.n }}
{% endfor %}"""
MESSAGES = [
    {"role": "user", "content": " Who's <there>? "},
    {"role": "assistant", "content": "Añá 猫"},
    {"role": "user", "content": "{{ 7 * 7 }}"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
    return Tokenizer.train("bpe", ["some text, user assistant"], 280, special_tokens=special)


@pytest.mark.parametrize("template", [CHATML, ALTERNATING, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_equal_to_transformers(tokenizer: Tokenizer, tmp_path: Path, template: str, prompt: bool) -> None:
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(
        MESSAGES, chat_template=template, add_generation_prompt=prompt, tokenize=False
    )
    assert render_text(MESSAGES, template, tokenizer, add_generation_prompt=prompt) == expected
    ids = render(MESSAGES, template, tokenizer, add_generation_prompt=prompt)
    assert ids == theirs(expected, add_special_tokens=False)["input_ids"]


def test_what_a_template_refuses_is_said(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        render(MESSAGES[1:], ALTERNATING, tokenizer)
    with pytest.raises(UsageError, match="TemplateSyntaxError"):
        render(MESSAGES, "{% for %}", tokenizer)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ joiner.__init__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__}'.format_map([1]) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ (1).__class__.__base__ }}",
    "{{ strftime_now.__code__ }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ range.__self__ }}",
    "{{ config }}{{ request }}{{ open('/etc/passwd') }}",
    "{{ __import__('os') }}",
    "{{ eval('1') }}",
    "{% set x = ''.__class__ %}{{ x.mro() }}",
    "{{ messages|selectattr('__class__')|list }}",
    "{{ dict.__base__ }}",
]
DEVOURERS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ (10 ** 5) ** (10 ** 7) }}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{{ 'aaaaaaaa' | replace('a', 'a' * 10**4) | replace('a', 'a' * 10**4) | replace('a', 'a' * 10**4) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ '%1000000000s' | format('a') }}",
    "{{ lipsum(n=10**8) }}",
    "{{ 'a' | indent(10**10, true) }}",
    "{{ '\\t'.expandtabs(10**10) }}",
    "{{ range(99999) | batch(10**10, 'x') | list }}",
    "{{ messages | tojson(indent=10**10) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "{{ range(99999) | map('string') | join('a' * 10**6) }}",
    "{% set n = namespace(s='a') %}{% for i in range(40) %}{% set s %}{{ n.s }}{{ n.s }}{% endset %}"
    "{% set n.s = s %}{% endfor %}",
    "{{ ('a' * 10**6) | wordwrap(1) | wordwrap(1) }}" * 50,
    "{{ ('a ' * 10**7) | title | urlize }}",
    "{{ ((('a' * 9999) | list) | sum(start='')) }}{{ range(99999) | sort | unique | list | length ** 99999999 }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_no_template_reaches_out_of_the_sandbox(tokenizer: Tokenizer, template: str) -> None:
    try:
        text = render_text(MESSAGES, template, tokenizer)
    except UsageError:
        return
    assert not any(sign in text for sign in ("<class", "<module", "<function", "root:", "uid=", "code object")), text
    assert render_text(MESSAGES, "{{ messages | length }}", tokenizer) == "3"


@pytest.mark.parametrize("template", DEVOURERS)
def test_what_eats_time_or_memory_is_stopped(tokenizer: Tokenizer, template: str) -> None:
    with pytest.raises(UsageError):
        render_text(MESSAGES, template, tokenizer)
    assert render_text(MESSAGES, "{{ messages | length }}", tokenizer) == "3"


def test_the_limit_is_under_a_second_of_processor_time(tokenizer: Tokenizer) -> None:
    render_text(MESSAGES, CHATML, tokenizer)
    before = os.times()
    with pytest.raises(UsageError, match="limits of time and memory"):
        render_text(MESSAGES, DEVOURERS[0], tokenizer)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 2  # the whole life of the process, its start and its imports too


def test_a_forked_process_has_a_sandbox_of_its_own(tokenizer: Tokenizer) -> None:
    assert render_text(MESSAGES, "{{ 1 + 1 }}", tokenizer) == "2"
    child = os.fork()
    if child == 0:
        ok = render_text(MESSAGES, "{{ 2 + 2 }}", tokenizer) == "4"
        chat._sandbox.close()
        os._exit(0 if ok else 1)
    assert render_text(MESSAGES, "{{ 3 + 3 }}", tokenizer) == "6"
    assert os.waitpid(child, 0)[1] == 0


def test_a_sandbox_that_hangs_is_ended(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_WALL_SECONDS", 0.0)
    with pytest.raises(UsageError, match="limits"):
        render_text(MESSAGES, DEVOURERS[0], tokenizer)
    monkeypatch.undo()
    assert render_text(MESSAGES, "{{ 1 }}", tokenizer) == "1"
