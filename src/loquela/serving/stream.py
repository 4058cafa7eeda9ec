"""Server-sent events: one JSON object each, an error as one of them, `[DONE]` at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from loquela.serving.failures import failure
from loquela.serving.observe import log_bug

__all__ = ["EVENT_STREAM", "events"]

EVENT_STREAM = "text/event-stream"


def events(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Return the answer that sends each of `chunks` as it comes."""
    return StreamingResponse(_lines(chunks), media_type=EVENT_STREAM, headers={"X-Accel-Buffering": "no"})


async def _lines(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield _event(chunk)
    except Exception as error:  # the status has gone out already
        told = failure(error)
        if told.code == "internal_error" or told.code == "model_error":
            log_bug(error)
        yield _event(told.body)
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}\n\n"
