"""What a caller is told when something is wrong: OpenAI's error object, its status and its headers."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import JSONResponse

from loquela.errors import (
    BusyError,
    ContextWindowError,
    DataError,
    LoquelaError,
    TokenizerError,
    UnavailableError,
    UsageError,
)

__all__ = ["ApiError", "failure", "invalid", "response", "unknown_parameter"]

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error; `message` says what must hold, what was given, and the way out."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def failure(error: Exception) -> ApiError:
    """Return what to tell of an error; of a bug nothing but that there is one, since it may quote the prompt."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        status, code = (503, "unavailable") if isinstance(error, UnavailableError) else (429, "queue_full")
        return ApiError(status, str(error), code=code, headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, ContextWindowError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, UsageError | DataError | TokenizerError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, LoquelaError):
        return ApiError(500, "the model could not answer; the server's log has the kind of error", code="model_error")
    return ApiError(500, "an error inside the server; its log says where", code="internal_error")


_MUST = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a number that is finite",
    "float_type": "a number",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "a whole number",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "an object",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters long",
    "string_too_short": "at least {min_length} characters long",
    "string_type": "text",
    "too_long": "at most {max_length} long",
    "too_short": "at least {min_length} long",
}
"""What must hold, by pydantic's kinds of errors."""


def invalid(error: ValidationError) -> ApiError:
    """Return what to tell of a body that does not fit its schema: the first thing that is wrong.

    Of the branches of a union that is the one that fits furthest. Of what was given it quotes numbers only.
    """
    found = error.errors(include_url=False)
    field = _steps(found[0])[:1]
    wrong = max((each for each in found if _steps(each)[:1] == field), key=_fits)
    param = ".".join(_steps(wrong)) or None
    kind, bounds = wrong["type"], wrong.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_parameter(param or "")
    name = param or "the body"
    if kind == "missing":
        return ApiError(400, f"{name} must be given, but is not", param=param, code="invalid_value")
    if kind in _MUST:
        message = f"{name} must be {_MUST[kind].format(**bounds)}, but is {_shown(wrong['input'])}"
    else:
        message = f"{name}: {wrong['msg'].removeprefix('Value error, ')}"
    return ApiError(400, message[:400], param=param, code="invalid_value")


def _fits(wrong: ErrorDetails) -> tuple[int, list[int], bool]:
    """How far it fits until it does not: deeper, later in a list, of the right type at least."""
    places = [step for step in wrong["loc"] if isinstance(step, int)]
    return len(_steps(wrong)), places, not wrong["type"].endswith("_type")


def _steps(wrong: ErrorDetails) -> list[str]:
    return [str(step) for step in wrong["loc"] if not (isinstance(step, str) and _is_branch(step))]


def _shown(given: object) -> str:
    """What was given: a number, or of what kind it is, since a text may be a part of a prompt."""
    if isinstance(given, str):
        return f"text of {len(given)} characters"
    if isinstance(given, list | dict):
        return f"{'a list' if isinstance(given, list) else 'an object'} of {len(given)}"
    if isinstance(given, int) and abs(given) >= 10**9:
        return "a number of more than 9 digits"
    return f"{given:g}" if isinstance(given, float) else json.dumps(given)


def unknown_parameter(name: str) -> ApiError:
    """Return what to tell of a field that does not exist."""
    return ApiError(400, f"there is no parameter {name[:200]!r} here", param=name[:200], code="unknown_parameter")


def _is_branch(step: str) -> bool:
    """Pydantic names the branch of a union (`list[int]`, `function-wrap[…]`) among the steps; a caller does not."""
    return "[" in step or step.removeprefix("constrained-") in {"str", "int", "float", "bool", "none"}


def response(error: ApiError) -> JSONResponse:
    """Return the answer that carries an error."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
