"""What stands before every handler: who may ask, from where, how much; and what every answer carries.

A page of another site can make a browser send requests to a server on this machine, and a name that a stranger owns can
be pointed at it (DNS rebinding). So the Host must be one of ours, an Origin must be the same as the Host, and a body
must be `application/json`, which another site's form cannot send.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Iterable
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loquela.serving.failures import ApiError, failure, response
from loquela.serving.observe import LOG, log_bug
from loquela.serving.options import Options

__all__ = ["BODY_BYTES", "HEADERS", "HEADER_BYTES", "Guard"]

BODY_BYTES = 2 * 2**20
HEADER_BYTES = 16 * 2**10
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_PATH = re.compile(rb"/|(/[A-Za-z0-9._-]+)+")
_OPEN = re.compile(r"/|/health|/plotly\.min\.js|/page/.+")
"""Paths that need no key: they say nothing of the model, and the page must load before it can be given a key."""
_ADMIN = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Answers(Protocol):
    """Whatever counts answers."""

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one."""


class Guard:
    """Wraps an app; `paths` are those that may be named in logs and metrics, all others are `other` there."""

    def __init__(self, app: ASGIApp, options: Options, answers: Answers, paths: Iterable[str]) -> None:
        self._app, self._options, self._answers = app, options, answers
        self._paths = frozenset(paths)
        self._hosts = options.hosts
        self._origins = frozenset(origin.lower() for origin in options.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, hand on, and see to it that every answer carries our headers and leaves one line in the log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, sent = time.perf_counter(), 500, False
        headers: dict[str, str] = {}
        named = ""

        async def answer(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status, sent = message["status"], True
                message = {**message, "headers": [*message["headers"], *_encoded(self._added(named, headers))]}
            await send(message)

        try:
            headers = _headers(scope)
            given = headers.get("x-request-id", "")
            named = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
            self._check(scope, headers)
            if scope["method"] == "OPTIONS" and headers.get("origin", "").lower() in self._origins:
                raise ApiError(204, "")
            await self._app(scope, _bounded(receive), answer)
        except ApiError as error:
            await self._refuse(error, sent, scope, receive, answer)
        except Exception as error:
            log_bug(error, request_id=named)
            await self._refuse(failure(error), sent, scope, receive, answer)
        finally:
            self._note(scope, named, status, time.perf_counter() - begun)

    async def _refuse(self, error: ApiError, sent: bool, scope: Scope, receive: Receive, send: Send) -> None:
        if sent:
            return
        if error.status == 204:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await response(error)(scope, receive, send)

    # -- checks, the cheapest first

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        if not _PATH.fullmatch(scope.get("raw_path") or b"") or ".." in scope["path"]:
            raise ApiError(404, "there is nothing here: a path is made of plain names", code="not_found")
        if _host(headers.get("host", "")) not in self._hosts:
            raise ApiError(
                403, "Host must be a name of this server: localhost, or one given with --allowed-host", code="bad_host"
            )
        self._check_origin(scope, headers)
        path = scope["path"]
        if not _OPEN.fullmatch(path) and scope["method"] != "OPTIONS":
            self._check_key(path, headers)
        if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            kind, _, rest = headers.get("content-type", "").partition(";")
            charset = rest.strip().lower().replace('"', "")
            if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
                raise ApiError(415, "Content-Type must be application/json", code="unsupported_media_type")
            if "content-encoding" in headers:
                raise ApiError(415, "Content-Encoding must be left out", code="unsupported_media_type")
            length = headers.get("content-length", "0")
            if length.isdecimal() and int(length) > BODY_BYTES:
                raise _too_large()

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None and origin.lower() in self._origins:
            return
        own = f"{scope['scheme']}://{headers.get('host', '')}"
        if origin is not None and origin.lower() != own.lower():
            raise ApiError(
                403, "Origin must be this server's own, or one given with --allowed-origin", code="bad_origin"
            )
        visit = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate" and scope["path"] == "/"
        if site not in ("none", "same-origin") and not visit:  # to follow a link to the page is no attack
            raise ApiError(403, "a page of another site may not ask this server", code="bad_origin")

    def _check_key(self, path: str, headers: dict[str, str]) -> None:
        options = self._options
        key = options.admin_key if path in _ADMIN else options.api_key
        if key is None:
            if path in _ADMIN:
                raise ApiError(403, "adapters can be changed only where the server has an --admin-key", code="no_admin")
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            wrong = f"Authorization must be `Bearer KEY` with this server's {'admin ' if path in _ADMIN else ''}key"
            raise ApiError(401, wrong, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    # -- afterwards

    def _added(self, named: str, headers: dict[str, str]) -> dict[str, str]:
        added = HEADERS | {"X-Request-ID": named}
        origin = headers.get("origin", "")
        if origin.lower() in self._origins:
            added |= {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Headers": "authorization, content-type",
                "Access-Control-Allow-Methods": "GET, POST",
                "Vary": "Origin",
                "Cross-Origin-Resource-Policy": "cross-origin",
            }
        return added

    def _note(self, scope: Scope, named: str, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._answers.answered(path, status, seconds)
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        fields = {"request_id": named, "method": method, "path": path, "status": status, "seconds": round(seconds, 4)}
        LOG.info("request", extra={"fields": fields})


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers by name; one that may stand once only is refused where it stands twice."""
    if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > HEADER_BYTES:
        raise ApiError(431, f"headers must be at most {HEADER_BYTES:,} bytes", code="headers_too_large")
    headers: dict[str, str] = {}
    for raw_name, value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in headers and name in ("host", "origin", "authorization", "content-type", "content-length"):
            raise ApiError(400, f"the header {name} must be given once", code="bad_header")
        headers[name] = value.decode("latin-1")
    return headers


def _host(header: str) -> str:
    """Return the name in a Host header, without its port."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", header.lower())
    return found[1] if found else ""


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def _too_large() -> ApiError:
    return ApiError(413, f"the body must be at most {BODY_BYTES:,} bytes", code="body_too_large")


def _bounded(receive: Receive) -> Receive:
    """Count the bytes of a body that does not say its length."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY_BYTES:
            raise _too_large()
        return message

    return bounded
