"""A program of its own that renders chat templates: one JSON request a line on stdin, one answer a line on stdout.

A template is a program that comes with a model, from anybody. Jinja's sandbox keeps it away from Python's objects;
that it can neither run for ever nor fill the memory only a process can promise, so `loquela.text.chat` starts this
file as one, with limits on processor time and memory. It imports nothing of ours.
"""

from __future__ import annotations

import datetime
import functools
import json
import signal
import sys
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 0.5
MEMORY_BYTES = 1 << 29
OUTPUT_CHARACTERS = 1 << 22


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}` mark what the assistant wrote; it is rendered as usual.

    Where the request has variables `generation_begins` and `generation_ends`, they are written at its borders.
    """

    tags = {"generation"}  # noqa: RUF012 — Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Give the marked statements back, a variable before and after them."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (
            nodes.Output([nodes.Name(name, "load")], lineno=line) for name in ("generation_begins", "generation_ends")
        )
        return [begin, *body, end]


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # Jinja's own would escape for HTML


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment.from_string(template)


def answer(request: str) -> dict[str, str]:
    """Render `{"template": …, "variables": …}`; return `{"text": …}` or, when the template fails, `{"error": …}`."""
    fields = json.loads(request)
    try:
        text, length = [], 0
        for part in _compiled(fields["template"]).generate(**fields["variables"]):
            text.append(part)
            length += len(part)
            if length > OUTPUT_CHARACTERS:
                raise SecurityError(f"it writes more than {OUTPUT_CHARACTERS} characters")
        return {"text": "".join(text)}
    except Exception as error:  # whatever a template can raise: it is theirs, not ours
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def serve() -> None:
    """Answer until stdin ends; the system kills this process when one answer takes too long."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for request in sys.stdin:
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        reply = json.dumps(answer(request))
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(reply, flush=True)


if __name__ == "__main__":
    serve()
