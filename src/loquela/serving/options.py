"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loquela.errors import UsageError

__all__ = ["LOCAL_HOSTS", "Options"]

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PAGE = Path(__file__).with_name("page")
_EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class Options:
    """Settings of one server; raises `UsageError` for those that would leave it open to strangers."""

    model: Path
    adapters: dict[str, Path] = field(default_factory=dict)
    name: str | None = None
    """What the base model is called; else its directory's name."""
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    admin_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    workers: int = 1
    slots: int = 16
    queue: int = 64
    cache_bytes: int = 2**30
    seconds: float = 600.0
    """How long a request may take, waiting included."""
    drain_seconds: float = 30.0
    """How long requests may go on after SIGTERM."""
    engine: Literal["auto", "torch", "compiled"] = "auto"
    quantize: Literal["int8", "int4"] | None = None
    cache_dtype: Literal["float32", "float16", "int8"] = "float32"
    page: Path = _PAGE
    again: bool = False
    """Whether it takes the place of one that died: an adapter that is no more is then left out, not fatal."""
    runs: tuple[Path, ...] = (Path("runs"), Path("my-model"))
    """Where the page looks for runs of training to watch."""

    def __post_init__(self) -> None:
        if self.host not in _LOOPBACK and not self.api_key:
            raise UsageError(
                f"a server that listens beyond this machine needs a key, but host is {self.host!r} and there is none: "
                "set LOQUELA_API_KEY or --api-key"
            )
        for key, what in ((self.api_key, "api_key"), (self.admin_key, "admin_key")):
            if key is not None and not (
                8 <= len(key) <= 256 and key.isascii() and key.isprintable() and " " not in key
            ):
                raise UsageError(f"{what} must be 8 to 256 printable ASCII characters without blanks, but is not")
        if self.admin_key is not None and self.admin_key == self.api_key:
            raise UsageError("admin_key must differ from api_key, but they are the same")

    @property
    def model_name(self) -> str:
        """What the base model is called."""
        return self.name or self.model.resolve().name

    @property
    def hosts(self) -> frozenset[str]:
        """The names under which the server may be called, without a port."""
        own = () if self.host in (*_LOOPBACK, *_EVERYWHERE) else (f"[{self.host}]" if ":" in self.host else self.host,)
        return frozenset(name.lower() for name in (*LOCAL_HOSTS, *own, *self.allowed_hosts))
