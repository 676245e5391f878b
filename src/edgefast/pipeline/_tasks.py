"""Workers that are tasks of an event loop: the thread worker's steps, with await."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

from edgefast.pipeline._order import Done, Order
from edgefast.pipeline._runtime import (
    BLOCKED,
    BUSY,
    FLUSH_SECONDS,
    MOST_WAITING,
    STARVED,
    Over,
    StageRuntime,
    Stop,
    Worker,
    batch_result,
    clock,
)
from edgefast.queues import ShutDown
from edgefast.queues._loops import loop_of

__all__ = ["LoopThread", "TaskWorker"]


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def give_up(self) -> None:
        """After a start that failed."""
        self.stop()
        with contextlib.suppress(RuntimeError):  # it runs: Ctrl-C came while it began
            self.loop.close()

    def _run(self) -> None:
        if self.loop.is_closed():
            return
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._finish())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _finish(self) -> None:
        """Ends what functions left behind."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self.loop.shutdown_asyncgens()

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # closed already
            self.loop.call_soon_threadsafe(self.loop.stop)


async def _iterate(results: Any) -> AsyncGenerator[Any, None]:
    """A generator, or an asynchronous one."""
    if hasattr(results, "__aiter__"):
        async with contextlib.aclosing(results):
            async for output in results:
                yield output
    else:
        for output in results:
            yield output


class TaskWorker(Worker):
    def __init__(self, stage: StageRuntime) -> None:
        super().__init__(stage)
        self.task: asyncio.Task[None] | None = None

    def begin(self, name: str) -> None:
        """In the loop's thread."""
        if self.stage.begins(self):
            self.task = asyncio.get_running_loop().create_task(self.run(), name=name)

    def kill(self) -> None:
        """End at once, from any thread."""
        loop, task = self.stage.core.loop, self.task
        if loop is not None and task is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(task.cancel)

    async def run(self) -> None:
        stage = self.stage
        try:
            while not stage.retires(self):
                items, ticket = await self.take()
                await self.work(items, ticket)
        except (ShutDown, Over):
            pass
        except asyncio.CancelledError as error:
            if not stage.core.immediate:
                stage.core.fail(stage, error)
        except BaseException as error:
            stage.core.fail(stage, error)
        finally:
            stage.ended(self)

    async def take(self) -> tuple[list[Any], int]:
        stage = self.stage
        spec = stage.spec
        order = stage.order
        if order is not None and order.full(stage.window):
            self.switch(BLOCKED)
            await self._until(order, lambda: not order.full(stage.window))
        self.switch(STARVED)
        if spec.batch > 1:
            least = spec.batch if spec.linger else 1
            items = await stage.queue.aget_many(spec.batch, min_items=least, linger=spec.linger)
        else:
            items = await stage.queue.aget_many(stage.chunk)
        # No await between taking and the ticket: nobody comes between.
        self.hand = len(items)
        ticket = -1 if order is None else order.ticket()
        stage.low_seen = min(stage.low_seen, stage.queue.qsize())
        stage.core.moved()
        return items, ticket

    async def _until(self, order: Order, ready: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        notifier = loop_of(loop)
        while not ready():
            future = loop.create_future()
            order.watch(lambda future=future: notifier.wake(future))
            if ready():
                return
            await future

    async def work(self, items: list[Any], ticket: int) -> None:
        stage = self.stage
        kind = stage.spec.kind
        if kind in ("generator", "async generator"):
            await self._stream(items, ticket)
            return
        outputs: list[Any] = []
        failure: Stop | None = None
        n = len(items)
        self.switch(BUSY)
        try:
            if stage.spec.batch == 1:
                for item in items:
                    try:
                        outputs.append(await self._call(item))
                    except Exception as error:
                        ok, result = await self.again(item, error, 1, self._call)
                        if ok:
                            outputs.append(result)
            else:
                outputs = await self._batch(items)
        except Stop as stop:
            failure = stop
        elapsed = self.switch(BLOCKED)
        if kind == "plain":  # others of the stage could await theirs meanwhile
            stage.measured(elapsed, n)
        self.lost += self.hand - len(outputs)
        self.hand = 0
        await self.deliver(outputs, len(outputs), ticket, failure)

    async def _call(self, work: Any) -> Any:
        result = self.stage.spec.fn(work)
        return await result if self.stage.spec.kind == "coroutine" else result

    async def _batch(self, items: list[Any]) -> list[Any]:
        n = len(items)

        async def call(items: list[Any]) -> list[Any]:
            return batch_result(await self._call(items.copy()), n)

        try:
            return await call(items)
        except Exception as error:
            ok, result = await self.again(items, error, n, call)
            return result if ok else []

    async def _stream(self, items: list[Any], ticket: int) -> None:
        stage = self.stage
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
                        async with contextlib.aclosing(_iterate(stage.spec.fn(work))) as results:
                            async for output in results:
                                begun = True
                                outputs.append(output)
                                if len(outputs) >= MOST_WAITING or clock() >= due:
                                    claimed = claimed or await self._claim(ticket, len(outputs) >= MOST_WAITING)
                                    if claimed:
                                        self.switch(BLOCKED)
                                        group, outputs = outputs, []
                                        if await self.put(group) < len(group):
                                            raise Over
                                        due = self.since + FLUSH_SECONDS
                                        self.switch(BUSY)
                        finished += size
                        break
                    except Exception as error:
                        attempt += 1
                        if not await self.retries(error, attempt, begun):
                            self.give_up(work, error, size)
                            break
        except Stop as stop:
            failure = stop
        self.switch(BLOCKED)
        self.lost += self.hand - finished
        self.hand = 0
        await self.deliver(outputs, finished, ticket, failure, claimed)

    async def _claim(self, ticket: int, wait: bool) -> bool:
        order = self.stage.order
        assert order is not None
        try:
            if order.claim(ticket):
                return True
            if not wait:
                return False
            self.switch(BLOCKED)
            await self._until(order, lambda: order.claim(ticket))
            self.switch(BUSY)
            return True
        except ShutDown:
            raise Over from None

    async def again(self, item: Any, error: Exception, n: int, call: Callable[[Any], Any]) -> tuple[bool, Any]:
        attempt = 1
        while await self.retries(error, attempt, False):
            try:
                return True, await call(item)
            except Exception as latest:
                error = latest
            attempt += 1
        self.give_up(item, error, n)
        return False, None

    async def retries(self, error: Exception, attempt: int, begun: bool) -> bool:
        stage = self.stage
        spec = stage.spec
        if begun or attempt > spec.retries or not isinstance(error, spec.retry_on):
            return False
        until = clock() + spec.delay(attempt)
        while not stage.stopping.is_set() and (left := until - clock()) > 0:
            await asyncio.sleep(min(left, 0.1))
        if stage.stopping.is_set():
            raise Over
        self.retried += 1
        return True

    async def deliver(
        self, outputs: list[Any], items: int, ticket: int, failure: BaseException | None, claimed: bool = False
    ) -> None:
        order = self.stage.order
        if order is None:
            await self.hand_over(outputs, items, failure)
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
            await self.hand_over(*done)
            done = order.advance()

    async def hand_over(self, outputs: list[Any], items: int, failure: BaseException | None) -> None:
        accepted = 0
        try:
            accepted = await self.put(outputs) if outputs else 0
        except Stop as stop:
            failure, accepted = stop, stop.passed
        except BaseException:  # cancelled
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

    async def put(self, outputs: list[Any]) -> int:
        stage = self.stage
        core = stage.core
        following = stage.next
        if core.discarding:
            self.unread += len(outputs)
            return len(outputs)
        queue = None
        if following is not None:
            queue = following.queue
        elif core.reader is not None:
            queue = core.reader.queue
        for i, output in enumerate(outputs):
            if queue is None:
                self.unread += 1
            else:
                try:
                    await queue.aput(output)
                except ShutDown:
                    if following is not None:
                        return i
                    self.unread += 1
                except Exception as error:  # it has no size, or too much of it
                    try:
                        self.refused(output, error)
                    except Stop as stop:
                        stop.passed = i + 1
                        raise
                    continue
            self.emitted += 1
        return len(outputs)
