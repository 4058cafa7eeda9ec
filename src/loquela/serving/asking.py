"""From the body of a request to what the scheduler is asked: one way for completions, conversations and the page."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest

from loquela.engine.requests import Request
from loquela.generation.settings import GenerationSettings
from loquela.serving.failures import ApiError
from loquela.serving.infill import infill_ids
from loquela.serving.large import aside
from loquela.serving.owners import owner_of
from loquela.serving.schemas import Message, Writing
from loquela.serving.state import Served
from loquela.text.chat import render_text

__all__ = ["prompt_of", "rendered", "requests_of"]


async def requests_of(
    served: Served,
    http: HttpRequest,
    body: Writing,
    prompts: Sequence[Sequence[int] | str],
    settings: GenerationSettings,
    *,
    top: int = 0,
    score_prompt: bool = False,
) -> list[Request]:
    """Return one request for each prompt, with the adapter, the form, the owner and the time of the whole call."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options", code="invalid_value")
    adapter, constraint = served.adapter(body.model), await served.constraint(body)
    return [
        Request(
            tuple(served.fit(prompt, settings, adapter)),
            settings,
            served.model.end_ids,
            top=top,
            adapter=adapter,
            constraint=constraint,
            score_prompt=score_prompt,
            owner=owner_of(http),
            seconds=served.options.seconds,
        )
        for prompt in prompts
    ]


async def prompt_of(served: Served, prompt: str | list[int], suffix: str | None) -> tuple[list[int] | str, str]:
    """Return a prompt's ids (or the text that an empty prompt is), and its text."""
    tokenizer = served.model.tokenizer
    served.check_length(prompt + (suffix or "") if isinstance(prompt, str) else prompt)
    if suffix is not None:
        if not isinstance(prompt, str):
            raise ApiError(400, "a suffix goes with a prompt of text, not of token ids", param="suffix")
        return await aside(len(prompt) + len(suffix), infill_ids, tokenizer, prompt, suffix), prompt
    if not isinstance(prompt, str):
        await aside(len(prompt), served.check_ids, prompt)
        return prompt, await aside(len(prompt), tokenizer.decode, prompt)
    return (await served.encode(prompt)) or prompt, prompt


async def rendered(
    served: Served, messages: list[Message], adapter: str | None = None, *, add_generation_prompt: bool = True
) -> list[int]:
    """Return the token ids of a conversation through the template of who answers; raises a 400 where there is none."""
    tokenizer, template = served.model.tokenizer, served.template(adapter)
    if template is None:
        raise ApiError(
            400,
            "a conversation needs a chat template, but this model has none: ask /v1/completions to continue a text",
            param="messages",
            code="no_chat_template",
        )
    turns = [message.as_dict() for message in messages]
    text = await run_in_threadpool(render_text, turns, template, tokenizer, add_generation_prompt=add_generation_prompt)
    return await served.encode(text, add_special_tokens=False)  # the template has written them itself
