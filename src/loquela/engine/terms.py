"""What the scheduler takes: its limits, and the memory that a request may cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from loquela.engine.requests import Request
from loquela.errors import UsageError
from loquela.generation.decode import check_room
from loquela.models.base import Network

__all__ = ["Limits", "Terms"]


@dataclass(frozen=True)
class Limits:
    """What one network serves at once."""

    slots: int = 16
    """Texts that are written at the same time."""
    queue: int = 64
    """Requests that may wait."""
    cache_bytes: int = 2**30
    """Memory for the caches of all requests, and for beginnings of prompts that are kept."""


@dataclass
class Terms:
    """Judges requests to one network, a position of whose cache costs `price` bytes."""

    network: Network
    limits: Limits
    price: int
    windows: dict[str | None, int] = field(default_factory=dict)
    """The context window under each adapter that may be worn, and under None."""

    def check(self, request: Request) -> None:
        """Raise `UsageError` or `ContextWindowError` for a request that can never be served."""
        if self.network.kind == "encoder":
            raise UsageError(f"a {self.network.config.model_type} model reads text and writes none: ask for embeddings")
        if not request.prompt:
            raise UsageError("the prompt must have at least one token, but has none")
        if request.settings.num_beams > 1 or request.settings.n > self.limits.slots:
            raise UsageError(f"num_beams must be 1 and n at most {self.limits.slots} for a text served with others")
        wrong = [token for token in request.prompt if not 0 <= token < self.network.vocab_size]
        if wrong:
            raise UsageError(f"token ids must be from 0 to {self.network.vocab_size - 1}, but one is {wrong[0]}")
        if request.adapter not in self.windows:
            raise UsageError(f"there is no adapter {request.adapter!r}")
        check_room(len(request.prompt), self.windows[request.adapter])
        if self.cost(request) > self.limits.cache_bytes:
            raise UsageError(
                f"prompt and completion must fit the {self.limits.cache_bytes:,} bytes for caches, but may take "
                f"{self.cost(request):,}: ask for fewer tokens"
            )

    def cost(self, request: Request) -> int:
        """Return the most bytes that a request's caches can take."""
        prompt, settings = len(request.prompt), request.settings
        longest = min(prompt + settings.max_new_tokens, self.windows[request.adapter])
        return self.price * (longest if self.network.kind == "decoder" else prompt + longest) * settings.n
