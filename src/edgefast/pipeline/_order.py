"""Outputs in the order of inputs, whatever the speed of the workers.

A worker takes items and a ticket in one step. When it is done, its outputs go on if its ticket is the next one, and are
parked otherwise; whoever passes its own on passes on those that were parked behind it. A worker whose ticket is far
ahead waits before it takes more, so what is parked stays bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from edgefast.queues import ShutDown

__all__ = ["Done", "Order"]


class Done(NamedTuple):
    """What came of the items of one ticket."""

    outputs: list[Any]
    items: int  # that are accounted for once the outputs are passed on
    failure: BaseException | None  # that ends the pipeline behind the outputs


class Order:
    def __init__(self) -> None:
        #: Held while a worker takes items and a ticket; of no use within one event loop.
        self.turn = threading.Lock()
        self._lock = threading.RLock()  # a finalizer may stop it
        self._next = 0
        self._head = 0
        self._claimed = False  # someone passes on the outputs of the ticket at the head
        self._parked: dict[int, Done] = {}
        self._waiting: list[Callable[[], object]] = []
        self._stopped = False
        self.lost = 0  # items whose outputs were parked at stop()

    def ticket(self) -> int:
        """The next ticket."""
        number = self._next
        self._next = number + 1
        return number

    def full(self, window: int) -> bool:
        """Whether a worker should wait before it takes more."""
        return self._next - self._head >= window and not self._stopped

    def finish(self, ticket: int, done: Done) -> bool:
        """True: the caller passes its outputs on now and calls advance(); False: they are parked."""
        with self._lock:
            if self._stopped:
                raise ShutDown
            if ticket == self._head and not self._claimed:
                self._claimed = True
                return True
            self._parked[ticket] = done
            return False

    def claim(self, ticket: int) -> bool:
        """True when the ticket is at the head: until advance() its outputs go on as they come.

        Raises:
            ShutDown: stopped.
        """
        with self._lock:
            if self._stopped:
                raise ShutDown
            if ticket == self._head and not self._claimed:
                self._claimed = True
                return True
            return False

    def advance(self) -> Done | None:
        """The head's outputs are passed on: the next ones, if they are there already."""
        with self._lock:
            self._head += 1
            done = self._parked.pop(self._head, None)
            self._claimed = done is not None
            waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()
        return done

    def watch(self, wake: Callable[[], object]) -> None:
        """Have wake() called once, at the next advance() or stop()."""
        with self._lock:
            if not self._stopped:
                self._waiting.append(wake)
                return
        wake()

    def stop(self) -> None:
        """Nothing goes on from here."""
        with self._lock:
            self._stopped = True
            lost = self.lost + sum(done.items for done in self._parked.values())
            self.lost, self._parked = lost, {}
            waiting = tuple(self._waiting)
        for wake in waiting:
            wake()
        with self._lock:
            self._waiting.clear()  # nobody is added any more; after a Ctrl-C all are woken again
