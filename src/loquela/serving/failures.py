"""What a caller is told when something is wrong: OpenAI's error object, its status and its headers."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
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


def invalid(error: ValidationError) -> ApiError:
    """Return what to tell of a body that does not fit its schema: the first thing that is wrong."""
    wrong = error.errors(include_url=False, include_input=False, include_context=False)[0]
    steps = [str(step) for step in wrong["loc"] if not (isinstance(step, str) and _is_branch(step))]
    param = ".".join(steps) or None
    if wrong["type"] == "extra_forbidden":
        return unknown_parameter(param or "")
    message = wrong["msg"].removeprefix("Value error, ")
    where = f"{param}: " if param else ""
    return ApiError(400, f"{where}{message[:300]}", param=param, code="invalid_value")


def unknown_parameter(name: str) -> ApiError:
    """Return what to tell of a field that does not exist."""
    return ApiError(400, f"there is no parameter {name[:200]!r} here", param=name[:200], code="unknown_parameter")


def _is_branch(step: str) -> bool:
    """Pydantic names the branch of a union (`list[int]`, `function-wrap[…]`) among the steps; a caller does not."""
    return "[" in step or step in {"str", "int", "float", "bool", "none"}


def response(error: ApiError) -> JSONResponse:
    """Return the answer that carries an error."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
