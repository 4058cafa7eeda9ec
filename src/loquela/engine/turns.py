"""A queue in which owners take turns: who asks for much does not keep the others waiting."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from loquela.engine.requests import Ticket

__all__ = ["Turns"]


class Turns:
    """Tickets that wait: in the order in which they came for one owner, one of each owner in turn."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._owners.values()))

    def __iter__(self) -> Iterator[Ticket]:
        for tickets in self._owners.values():
            yield from tickets

    def append(self, ticket: Ticket) -> None:
        """Let a ticket wait at its owner's end."""
        self._owners.setdefault(ticket.request.owner, deque()).append(ticket)

    def next(self) -> Ticket | None:
        """Return the ticket whose turn it is, which goes on waiting; None when nobody waits."""
        return next(iter(self._owners.values()))[0] if self._owners else None

    def pop(self) -> Ticket:
        """Take the ticket whose turn it is; its owner's next turn comes after all others'."""
        owner, tickets = self._owners.popitem(last=False)
        ticket = tickets.popleft()
        if tickets:
            self._owners[owner] = tickets
        return ticket

    def remove(self, gone: Callable[[Ticket], bool]) -> list[Ticket]:
        """Take out the tickets that are `gone`; return them."""
        out = [ticket for ticket in self if gone(ticket)]
        for owner, tickets in list(self._owners.items()):
            left = deque(ticket for ticket in tickets if ticket not in out)
            if left:
                self._owners[owner] = left
            else:
                del self._owners[owner]
        return out
