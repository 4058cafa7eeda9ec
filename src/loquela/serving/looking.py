"""Looking at the network while others write: a twin of it, in a thread of its own.

A picture listens to what modules compute, wears an adapter meanwhile, and may take seconds. The rows that the scheduler
computes wear others, and must neither wait nor be heard. So whoever looks has a twin of the network: other modules,
another wardrobe, the very same tensors. It takes next to no memory, and gives the same bits.

A network of rounded weights is one compiled piece without modules to look into. Pictures of it have a network made for
them when the first is asked for, and dropped when none has been asked for some minutes (`loquela.serving.unrounded`).
What needs one look at its logits or vectors runs on the piece itself, between two steps of those who write.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from loquela.api import LanguageModel
from loquela.engine.choosing import compiled_already
from loquela.engine.work import do
from loquela.errors import BusyError, UnavailableError
from loquela.models.base import Network
from loquela.peft.wardrobe import wardrobe_of

__all__ = ["Looking", "twin"]

T = TypeVar("T")
IDLE_SECONDS = 300.0
CLOSING = "the server is closing: try again later"


def twin(network: Network) -> Network:
    """Return other modules over the same tensors, with the same adapters, of which nothing is worn.

    To be called while nobody puts adapters on `network` or takes them off.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    wardrobe = wardrobe_of(network)
    for adapter in {} if wardrobe is None else wardrobe.adapters.values():
        memo.update((id(tensor), tensor) for _, tensor in adapter.tensors())
    made = copy.deepcopy(network, memo)
    assert all(a is b for a, b in zip(made.parameters(), network.parameters(), strict=True))
    return made


class Looking:
    """A thread that looks at a model, one job after the other; at most so `many` wait.

    Of a network without a twin it looks at what `made` gives, if there is that; else `beside` runs its jobs, between
    two steps of those who write.
    """

    def __init__(
        self,
        model: LanguageModel,
        many: int,
        beside: Callable[[Callable[[], Any]], Future[Any]],
        made: Callable[[], Network] | None = None,
    ) -> None:
        self._model, self._many, self._beside, self._made = model, many, beside, made
        self._jobs: queue.Queue[tuple[Callable[[LanguageModel], Any], LanguageModel | None, Future[Any]] | None]
        self._jobs = queue.Queue()
        self._closed = False
        self._compiled = compiled_already(model.network)
        self._seen: LanguageModel | None = None
        self._renewals = 0
        self.renew()
        self._thread = threading.Thread(target=self._run, name="loquela-looking", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """See the adapters that are on the network now. To be called in the thread that changes them."""
        self._seen = None if self._compiled else self._of(twin(self._model.network))
        self._renewals += 1

    def call(self, job: Callable[[LanguageModel], T]) -> Future[T]:
        """Run `job` on the model's twin; it may wear adapters there. Raises `BusyError` where too many wait."""
        if self._compiled and self._made is None:
            return self._beside(lambda: job(self._model))
        if self._closed:
            raise UnavailableError(CLOSING)
        if self._jobs.qsize() >= self._many:
            raise BusyError(f"{self._many} look into the model already, as many as may: try again in a moment")
        future: Future[T] = Future()
        self._jobs.put((job, self._seen, future))
        return future

    def close(self) -> None:
        """Take no more, and drop what has not begun."""
        self._closed = True
        self._jobs.put(None)

    def _of(self, network: Network) -> LanguageModel:
        model = self._model
        return LanguageModel(network, model.tokenizer, model.generation_config, model.pooling)

    def _run(self) -> None:
        while True:
            try:
                item = self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                if self._compiled:
                    self._seen = None  # it has the memory of a whole network
                continue
            if item is None:
                return
            job, seen, future = item
            if not self._closed:
                do(partial(self._look, job, seen), future)
            elif future.set_running_or_notify_cancel():
                future.set_exception(UnavailableError(CLOSING))
            del item, job, seen, future

    def _look(self, job: Callable[[LanguageModel], T], seen: LanguageModel | None) -> T:
        if seen is None and (seen := self._seen) is None:
            assert self._made is not None
            renewals = self._renewals
            seen = self._of(self._made())
            if renewals == self._renewals:  # else other adapters have come on or off meanwhile
                self._seen = seen
        return job(seen)
