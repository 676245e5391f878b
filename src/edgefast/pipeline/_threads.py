"""Workers that are threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from edgefast.pipeline._order import Done, Order
from edgefast.pipeline._runtime import (
    BLOCKED,
    BUSY,
    FLUSH_SECONDS,
    MOST_WAITING,
    STARVED,
    Event,
    Over,
    StageRuntime,
    Stop,
    Worker,
    batch_result,
    clock,
)
from edgefast.queues import ShutDown

__all__ = ["ThreadWorker"]


class ThreadWorker(Worker):
    """Takes items, works on them and passes the outputs on, until its stage ends."""

    def __init__(self, stage: StageRuntime) -> None:
        super().__init__(stage)
        #: What is called with an item, or with a list of them: a process worker has its own.
        self.call: Callable[[Any], Any] = stage.spec.fn

    def run(self) -> None:
        stage = self.stage
        if not stage.begins(self):
            return
        try:
            while not stage.retires(self):
                items, ticket = self.take()
                self.work(items, ticket)
        except (ShutDown, Over):
            pass
        except BaseException as error:
            stage.core.fail(stage, error)
        finally:
            stage.ended(self)

    # ---- taking ------------------------------------------------------------------------------------------------------

    def take(self) -> tuple[list[Any], int]:
        """Items to work on, and their ticket when outputs are ordered.

        Raises:
            ShutDown: there are none left.
        """
        stage = self.stage
        order = stage.order
        if order is None:
            self.switch(STARVED)
            return self._get(), -1
        if order.full(stage.window):
            self.switch(BLOCKED)
            self._until(order, lambda: not order.full(stage.window))
        self.switch(STARVED)
        with order.turn:
            return self._get(), order.ticket()

    def _get(self, block: bool = True) -> list[Any]:
        stage = self.stage
        spec = stage.spec
        if spec.batch == 1:
            items = stage.queue.get_many(stage.chunk, block)
        elif spec.linger and block:
            items = stage.queue.get_many(spec.batch, min_items=spec.batch, linger=spec.linger)
        else:
            items = stage.queue.get_many(spec.batch, block)
        self.hand = len(items)
        left = stage.queue.qsize()
        if left < stage.low_seen:
            stage.low_seen = left
        stage.core.moved()
        return items

    def _until(self, order: Order, ready: Callable[[], bool]) -> None:
        event = Event()
        while not ready():
            order.watch(event.set)
            if ready():
                return
            event.wait()
            event.clear()

    # ---- working -----------------------------------------------------------------------------------------------------

    def work(self, items: list[Any], ticket: int) -> None:
        stage = self.stage
        if stage.spec.kind == "generator":
            self._stream(items, ticket)
            return
        outputs: list[Any] = []
        failure: Stop | None = None
        n = len(items)
        self.switch(BUSY)
        try:
            if stage.spec.batch == 1:
                self._each(items, outputs)
            else:
                outputs = self._batch(items)
        except Stop as stop:
            failure = stop
        elapsed = self.switch(BLOCKED)
        stage.measured(elapsed, n)
        # One output for each item that did not fail. Behind a failure that stops the pipeline nothing was worked on.
        self.lost += self.hand - len(outputs)
        self.hand = 0
        self.deliver(outputs, len(outputs), ticket, failure)

    def _each(self, items: list[Any], outputs: list[Any]) -> None:
        call, append = self.call, outputs.append
        rest = iter(items)
        item = None
        while True:
            try:
                for item in rest:
                    append(call(item))
                return
            except Exception as error:
                ok, result = self.again(item, error, 1, call)
                if ok:
                    append(result)

    def _batch(self, items: list[Any]) -> list[Any]:
        n = len(items)

        def call(items: list[Any]) -> list[Any]:
            return batch_result(self.call(items.copy()), n)

        try:
            return call(items)
        except Exception as error:
            ok, result = self.again(items, error, n, call)
            return result if ok else []

    def _stream(self, items: list[Any], ticket: int) -> None:
        """The outputs of a generator function go on while it runs; out of turn, some of them wait."""
        stage = self.stage
        before = self.spent[BUSY]
        n = len(items)
        outputs: list[Any] = []
        finished = 0
        claimed = stage.order is None
        failure: Stop | None = None
        due = 0.0
        self.switch(BUSY)
        try:
            for work in items if stage.spec.batch == 1 else (items,):
                size = 1 if stage.spec.batch == 1 else n
                attempt = 0
                while True:
                    begun = False
                    try:
                        for output in self.results(work):
                            begun = True
                            outputs.append(output)
                            if len(outputs) >= MOST_WAITING or clock() >= due:
                                claimed = claimed or self._claim(ticket, len(outputs) >= MOST_WAITING)
                                if claimed:
                                    self.switch(BLOCKED)
                                    group, outputs = outputs, []
                                    if self.put(group) < len(group):
                                        raise Over
                                    due = self.since + FLUSH_SECONDS
                                    self.switch(BUSY)
                        finished += size
                        break
                    except Exception as error:
                        attempt += 1
                        if not self.retries(error, attempt, begun):
                            self.give_up(work, error, size)
                            break
        except Stop as stop:
            failure = stop
        self.switch(BLOCKED)
        stage.measured(self.spent[BUSY] - before, n)
        self.lost += self.hand - finished
        self.hand = 0
        self.deliver(outputs, finished, ticket, failure, claimed)

    def results(self, work: Any) -> Iterable[Any]:
        return self.call(work)

    def _claim(self, ticket: int, wait: bool) -> bool:
        """Whether it is this worker's turn to pass outputs on; waits for it when told."""
        order = self.stage.order
        assert order is not None
        try:
            if order.claim(ticket):
                return True
            if not wait:
                return False
            self.switch(BLOCKED)
            self._until(order, lambda: order.claim(ticket))
            self.switch(BUSY)
            return True
        except ShutDown:
            raise Over from None

    # ---- failures ----------------------------------------------------------------------------------------------------

    def again(self, item: Any, error: Exception, n: int, call: Callable[[Any], Any]) -> tuple[bool, Any]:
        """After a failed call on n items: further attempts, then what on_error says. (True, result) or (False, None).

        Raises:
            Stop: the pipeline is to end.
            Over: the stage was stopped meanwhile.
        """
        attempt = 1
        while self.retries(error, attempt, False):
            try:
                return True, call(item)
            except Exception as latest:
                error = latest
            attempt += 1
        self.give_up(item, error, n)
        return False, None

    def retries(self, error: Exception, attempt: int, begun: bool) -> bool:
        """After so many failed attempts: whether there is one more, when its time has come."""
        stage = self.stage
        spec = stage.spec
        if begun or attempt > spec.retries or not isinstance(error, spec.retry_on):
            return False
        if stage.stopping.wait(spec.delay(attempt)):
            raise Over
        self.retried += 1
        return True

    # ---- passing on --------------------------------------------------------------------------------------------------

    def deliver(
        self, outputs: list[Any], items: int, ticket: int, failure: BaseException | None, claimed: bool = False
    ) -> None:
        """Pass on the outputs of so many items, in turn, and those that were parked behind them."""
        order = self.stage.order
        if order is None:
            self.hand_over(outputs, items, failure)
            return
        done: Done | None = Done(outputs, items, failure)
        if not claimed:
            try:
                if not order.finish(ticket, done):
                    return
            except ShutDown:
                self.lost += items
                raise
        while done is not None:
            self.hand_over(*done)
            done = order.advance()

    def hand_over(self, outputs: list[Any], items: int, failure: BaseException | None) -> None:
        accepted = 0
        try:
            accepted = self.put(outputs) if outputs else 0
        except Stop as stop:
            failure, accepted = stop, stop.passed
        except BaseException:
            self.lost += items
            raise
        lost = min(len(outputs) - accepted, items)
        self.lost += lost
        self.completed += items - lost
        core = self.stage.core
        if failure is not None:
            error, item = (failure.error, failure.item) if isinstance(failure, Stop) else (failure, None)
            core.fail(self.stage, error, item)
            raise Over
        if lost:
            raise Over
        if core.watchers:
            core.notify()

    def put(self, outputs: list[Any]) -> int:
        """Pass outputs to the next stage or the reader; how many: less only when that was shut down."""
        stage = self.stage
        core = stage.core
        following = stage.next
        n = len(outputs)
        if core.discarding:
            self.unread += n
            return n
        if following is None:
            reader = core.reader
            accepted = 0
            try:
                if reader is not None:
                    accepted = reader.queue.put_many(outputs)
            except ShutDown:
                pass
            except Exception as error:
                return self._singly(outputs, error)
            self.emitted += n
            self.unread += n - accepted  # nobody reads any more, or nobody ever did
            return n
        try:
            accepted = following.queue.put_many(outputs)
        except ShutDown:
            return 0
        except Exception as error:
            return self._singly(outputs, error)
        if accepted < n and following.policy == "block":
            n = accepted
        self.emitted += n
        return n

    def _singly(self, outputs: list[Any], error: Exception) -> int:
        """One of the outputs cannot be queued, having no size or too much of it: it fails, the others go on."""
        if len(outputs) == 1:
            try:
                self.refused(outputs[0], error)
            except Stop as stop:
                stop.passed = 1
                raise
            return 1
        for i, output in enumerate(outputs):
            try:
                if not self.put([output]):
                    return i
            except Stop as stop:
                stop.passed += i
                raise
        return len(outputs)
