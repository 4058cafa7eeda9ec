"""Requests to a server, sent again where it asks for patience; many threads may use one client."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from loquela.errors import ContextWindowError, LoquelaError, UsageError

__all__ = ["Client"]

_TRIES = 7
_BUSY = (429, 502, 503, 504)
_DROPPED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_SECONDS = 600.0
_LONGEST = 600.0
"""Seconds of patience at a time: a server that asks for more is not waited for."""


class Client:
    """Speaks JSON to what answers under `url`.

    What is refused for now (429, 502 to 504) or dropped on the way is sent again, after as long as Retry-After says
    (seconds or a date), else after 1, 2, 4 … seconds; in that time no thread sends anything.
    """

    def __init__(self, url: str, headers: dict[str, str], transport: httpx.BaseTransport | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"a URL must begin with http:// or https://, but is {url!r}")
        self.url = url.rstrip("/") + "/"
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.Client(headers=headers, timeout=_SECONDS, transport=transport, limits=limits)
        self._lock, self._resume = threading.Lock(), 0.0

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON object that the server answers; `path` goes behind the URL, or begins with / at its root.

        Raises `ContextWindowError` for a prompt that is refused as too long, `LoquelaError` for all else.
        """
        where = self.url + path if not path.startswith("/") else str(httpx.URL(self.url).copy_with(path=path))
        for attempt in range(1, _TRIES + 1):
            self._wait()
            again = 2.0 ** (attempt - 1)
            try:
                reply = self._http.request(method, where, json=body)
            except _DROPPED as error:
                if attempt == _TRIES:
                    raise self._silent(error) from error
            except httpx.HTTPError as error:
                raise self._silent(error) from error
            else:
                if reply.status_code not in _BUSY or attempt == _TRIES:
                    break
                again = _seconds(reply.headers.get("retry-after"), again)
                if again > _LONGEST:
                    raise LoquelaError(f"{where} asks for {again:.0f} seconds of patience: try again then")
            with self._lock:
                self._resume = max(self._resume, time.monotonic() + again)
        return _answer(where, reply)

    def _wait(self) -> None:
        while (left := self._resume - time.monotonic()) > 0:
            time.sleep(left)

    def _silent(self, error: httpx.HTTPError) -> LoquelaError:
        return LoquelaError(f"{self.url} must answer, but: {error or type(error).__name__}")


def _seconds(said: str | None, otherwise: float) -> float:
    """Return the seconds of a Retry-After: a number, or a date (RFC 9110, 10.2.3)."""
    if said is None:
        return otherwise
    if said.replace(".", "", 1).isdigit():
        return float(said)
    try:
        date = parsedate_to_datetime(said)
    except ValueError:
        return otherwise
    date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


def _answer(where: str, reply: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of a reply; raises what its error means."""
    try:
        value = reply.json()
    except ValueError:
        value = None
    if reply.status_code != 200:
        said = value.get("error") if isinstance(value, dict) else None
        details = said if isinstance(said, dict) else {"message": said or reply.text}
        message = " ".join(str(details.get("message")).split())[:300]
        if reply.status_code == 400 and "context" in f"{details.get('code')} {message}".lower():
            raise ContextWindowError(f"{where} refuses a prompt as too long: {message}")
        raise LoquelaError(f"{where} must answer 200, but answers {reply.status_code}: {message}")
    if not isinstance(value, dict):
        raise LoquelaError(f"{where} must answer a JSON object, but does not")
    return value
