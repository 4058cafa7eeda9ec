"""The table of what can be asked; the routes and the OpenAPI document are both made of it, so that neither lies."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import anyio
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from loquela.serving.answers import ErrorAnswer
from loquela.serving.failures import ApiError, failure, invalid, response, unknown_parameter
from loquela.serving.large import aside
from loquela.serving.observe import log_bug
from loquela.serving.state import Served
from loquela.serving.stream import EVENT_STREAM
from loquela.version import VERSION

__all__ = ["Operation", "document", "route"]

BODY_SECONDS = 20.0
_JSON = "application/json"
_MEANINGS = {
    400: "The request is wrong.",
    401: "The key is missing or wrong.",
    403: "Not from here, or not by you.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests wait; `Retry-After` says when to try again.",
    500: "The server failed.",
    503: "The server is closing, or the request's time is up.",
}


@dataclass(frozen=True)
class Operation:
    """One thing that can be asked: `handler(served, request, body)` answers it.

    It returns a `BaseModel`, sent as JSON, or a `Response`. `body` and `answer` are the models of what goes in and what
    comes out.
    """

    method: str
    path: str
    summary: str
    handler: Callable[..., Awaitable[Any]]
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    media: str = "application/json"
    streams: bool = False
    admin: bool = False
    """Whether it takes the administrator's key."""
    errors: Sequence[int] = field(default=(400, 401, 403, 404, 413, 415, 429, 500, 503))
    """Statuses of its errors."""


def route(operation: Operation, served: Served) -> Route:
    """Return the route of an operation."""

    async def endpoint(request: Request) -> Response:
        try:
            if operation.body is None:
                answer = await operation.handler(served, request)
            else:
                answer = await operation.handler(served, request, await _body(operation.body, request))
        except Exception as error:
            told = failure(error)
            if told.status == 500:
                log_bug(error)
            return response(told)
        return (
            answer
            if isinstance(answer, Response)
            else Response(answer.model_dump_json(by_alias=True), media_type=_JSON)
        )

    return Route(operation.path, endpoint, methods=[operation.method])


async def _body(model: type[BaseModel], request: Request) -> BaseModel:
    try:
        with anyio.fail_after(BODY_SECONDS):
            raw = await request.body()
    except TimeoutError:
        raise ApiError(408, f"the body must come within {BODY_SECONDS:g} s", code="timeout") from None
    except ClientDisconnect:
        raise ApiError(499, "the caller left") from None
    return await aside(len(raw), _validated, model, raw)


def _validated(model: type[BaseModel], raw: bytes) -> BaseModel:
    """Check a body that was read before: an error then points at what is wrong in it, and need not copy it."""
    try:
        given = from_json(raw, allow_inf_nan=False)
    except ValueError:
        raise ApiError(400, "the body must be valid JSON, but is not", code="invalid_json") from None
    if isinstance(given, dict) and (unknown := given.keys() - _fields(model)):
        raise unknown_parameter(min(unknown))
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from None


@cache
def _fields(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def document(operations: Sequence[Operation], title: str, *, keyed: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a server that has a key or has none."""
    models: list[tuple[type[BaseModel], Any]] = [(ErrorAnswer, "serialization")]
    models += [(operation.body, "validation") for operation in operations if operation.body]
    models += [(operation.answer, "serialization") for operation in operations if operation.answer]
    names, definitions = models_json_schema(list(dict.fromkeys(models)), ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, names, keyed=keyed)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation, names: Any, *, keyed: bool) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media: {}}
    if operation.answer is not None:
        content = {operation.media: {"schema": names[(operation.answer, "serialization")]}}
    if operation.streams:
        content[EVENT_STREAM] = {}  # a schema here would be that of one event, and OpenAPI 3.1 has no word for it
    wrong = {"application/json": {"schema": names[(ErrorAnswer, "serialization")]}}
    answers: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    answers |= {str(status): {"description": _MEANINGS[status], "content": wrong} for status in operation.errors}
    name = operation.path.strip("/").replace("/", "_").replace(".", "_").replace("{", "").replace("}", "") or "page"
    described: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}_{name}",
        "summary": operation.summary,
        "responses": answers,
    }
    if parts := re.findall(r"{(\w+)}", operation.path):
        of_path = {"in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        described["parameters"] = [{"name": part, **of_path} for part in parts]
    if operation.admin or (keyed and 401 in operation.errors):
        described["security"] = [{"key": []}]
    if operation.body is not None:
        schema = names[(operation.body, "validation")]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described
