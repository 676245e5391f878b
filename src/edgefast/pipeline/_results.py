"""The two ends of map(): who feeds the first stage and who reads the last one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from edgefast.pipeline._runtime import BUSY, STARVED, Core, Reader
from edgefast.queues import ShutDown

__all__ = ["AsyncResults", "Feed", "Results", "Session", "iterator_of"]


class Feed:
    """Puts the items of an iterable into the first queue, as there is room, from a thread or a task of its own."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.error: BaseException | None = None
        self.complete = False  # the iterable is at its end, and everything is done
        self.stopped = False
        self.putting = False
        self._task: asyncio.Task[None] | None = None

    def start(self, iterator: Iterator[Any], reader: Reader) -> None:
        args = (iterator, reader)
        threading.Thread(target=self._run, args=args, name=f"{self.core.name}-source", daemon=True).start()

    def start_task(self, iterator: AsyncIterator[Any], reader: Reader) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._arun(iterator, reader), name=f"{self.core.name}-source")
        self._task.add_done_callback(lambda _: self.core.notify())  # active() was true until now

    def stop(self) -> None:
        """Nothing more is put, but for what is being put."""
        self.stopped = True
        task = self._task
        if task is not None and not task.done():
            with contextlib.suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)

    def active(self) -> bool:
        """Whether something may still be put after stop()."""
        return self.putting or (self._task is not None and not self._task.done())

    def _run(self, iterator: Iterator[Any], reader: Reader) -> None:
        core = self.core
        queue = core.stages[0].queue
        put, full = queue.put, queue.full
        plain = core.max_bytes is None and core.pool is None
        try:
            for item in iterator:
                self.putting = True  # before the look at `stopped`: stop() looks at them in the opposite order
                if self.stopped:
                    break
                try:
                    if plain and not full():
                        put(item)
                    else:
                        core.put(item)
                except ShutDown:  # of the pipeline; the iterable may raise one, too
                    return
                self.putting = False
                if self.stopped:
                    break
            else:
                core.wait(core.idle_or_over)
                self.complete = core.error is None and not core.immediate
        except BaseException as error:
            self.error = error
            self.putting = False
            core.wait(core.idle_or_over)  # what came before it is still delivered
        finally:
            self.putting = False
            del iterator
            self._finish(reader)

    def _finish(self, reader: Reader) -> None:
        core = self.core
        if not self.stopped and core.error is None and core.state == "running":
            reader.queue.shutdown()  # in the other cases the last stage does it
        core.notify()

    async def _arun(self, iterator: AsyncIterator[Any], reader: Reader) -> None:
        core = self.core
        try:
            async for item in iterator:
                try:
                    await core.aput(item)
                except ShutDown:
                    return
            await core.await_(core.idle_or_over)
            self.complete = core.error is None and not core.immediate
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.error = error
            await core.await_(core.idle_or_over)
        finally:
            self._finish(reader)


class Session:
    """One reader of a pipeline's outputs, and who feeds it if it is a map(). Ends when nobody refers to it."""

    def __init__(self, owner: Any, core: Core, feed: Feed | None) -> None:
        self._begin: Callable[[], None] | None = None  # what starts the feed once nothing is left of the map() before
        self._owner = owner  # the pipeline lives as long as somebody reads
        self._core = core
        self._reader = core.new_reader()
        self._feed = feed
        self._open = True
        self._taken = 0

    def open(self, start: Callable[[Reader], None] | None = None, later: bool = False) -> None:
        """From now on outputs wait for this reader; start() starts the feed, at once or when nothing is left of the
        map() before."""
        try:
            self._core.open_reader(self._reader, self._feed is not None)
            if later and start is not None:
                self._begin = functools.partial(start, self._reader)
            elif start is not None:
                start(self._reader)
        except BaseException:
            self.release(whole=False)
            raise

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            try:
                self.release(whole=False)
            except BaseException:  # Ctrl-C: nobody else can do it
                self.release(whole=False)
                raise

    def end(self) -> BaseException | None:
        """At the end of the outputs: what to raise, if anything."""
        core, feed = self._core, self._feed
        self.release(whole=True)
        if core.error is not None:
            core.error_seen = True
            return core.error
        if feed is not None and feed.error is not None:
            return feed.error
        if core.immediate if feed is None else not feed.complete:
            return ShutDown(f"pipeline {core.name!r} was shut down before everything was done")
        return None

    def release(self, whole: bool) -> None:
        """Stop reading; whole: at the end of the outputs."""
        if not self._open:
            return
        core, reader, feed = self._core, self._reader, self._feed
        if core.reader is reader:  # until it is forgotten all of it is done again after a Ctrl-C
            if feed is not None:
                feed.stop()
            if not whole:
                reader.queue.shutdown(immediate=True)
                if feed is not None:
                    core.abandon(feed)
            core.forget_reader(reader)
        self._open = False
        core.moved()
        self._owner = None

    def outputs(self) -> Generator[Any, None, None]:
        """The outputs, in chunks from the queue."""
        core, reader = self._core, self._reader
        queue = reader.queue
        try:
            while True:
                try:
                    chunk = queue.get_many(reader.chunk)
                except ShutDown:
                    break
                left = queue.qsize()
                if left < reader.low_seen:
                    reader.low_seen = left
                core.moved()
                reader.switch(BUSY)
                yield from chunk
                reader.measured(reader.switch(STARVED), len(chunk))
            error = self.end()
            if error is not None:
                raise error
        finally:
            self.release(whole=False)


class Results:
    """Iterator over outputs. close(), leaving a with block or dropping it ends it early: the input is not read any
    further, and what is on its way is dropped."""

    def __init__(self, session: Any) -> None:
        # Whoever iterates holds the generator, not this object: the end of a loop is the end of the session.
        self._session = session
        self._outputs = session.outputs()

    def __iter__(self) -> Iterator[Any]:
        return self._outputs

    def __next__(self) -> Any:
        return next(self._outputs)

    def close(self) -> None:
        """Stop reading."""
        try:
            self._outputs.close()
        finally:
            self._session.release(whole=False)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncResults:
    """Asynchronous iterator over outputs. aclose(), leaving an async with block or dropping it ends it early."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._chunk: list[Any] = []

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._chunk:
            return self._chunk.pop()
        session = self._session
        if not session._open:
            raise StopAsyncIteration
        if session._begin is not None:
            await session._core.await_(session._core.quiet)
            begin, session._begin = session._begin, None
            begin()
        reader = session._reader
        if session._taken:
            reader.measured(reader.switch(STARVED), session._taken)
        try:
            chunk = await reader.queue.aget_many(reader.chunk)
        except ShutDown:
            error = session.end()
            if error is not None:
                raise error from error.__cause__
            raise StopAsyncIteration from None
        reader.low_seen = min(reader.low_seen, reader.queue.qsize())
        session._core.moved()
        reader.switch(BUSY)
        session._taken = len(chunk)
        chunk.reverse()
        self._chunk = chunk
        return chunk.pop()

    async def aclose(self) -> None:
        """Stop reading."""
        self._chunk.clear()
        self._session.release(whole=False)

    async def __aenter__(self) -> AsyncResults:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def iterator_of(items: Any) -> Iterator[Any]:
    """iter(), with an error that says what was expected."""
    try:
        return iter(items)
    except TypeError:
        raise TypeError(f"iterable: expected an iterable, got {type(items).__name__}") from None
