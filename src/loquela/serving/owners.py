"""Who asks: those who share a key and an address wait in one line, others in another."""

from __future__ import annotations

import hashlib

from starlette.requests import Request

__all__ = ["owner_of"]


def owner_of(http: Request) -> str:
    """Return a name for the caller that says nothing of their key."""
    address = http.client.host if http.client else ""
    secret = http.headers.get("authorization", "")
    return hashlib.blake2b(f"{address}\n{secret}".encode(), digest_size=8).hexdigest()
