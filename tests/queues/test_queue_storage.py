"""Subclasses that override _init, _qsize, _put and _get, as queue.Queue's own do."""

from __future__ import annotations

import asyncio
import gc
import heapq
import threading
import weakref
from typing import Any

import pytest

from edgefast.queues import Empty, Full, ShutDown


@pytest.fixture
def stack(queue_class: Any) -> Any:
    class Stack(queue_class):  # type: ignore[misc]
        def _init(self, maxsize: int) -> None:
            self.queue: list[Any] = []

        def _qsize(self) -> int:
            return len(self.queue)

        def _put(self, item: Any) -> None:
            self.queue.append(item)

        def _get(self) -> Any:
            return self.queue.pop()

    return Stack


@pytest.fixture
def priority(queue_class: Any) -> Any:
    """Only what differs is overridden."""

    class Priority(queue_class):  # type: ignore[misc]
        def _init(self, maxsize: int) -> None:
            self.heap: list[Any] = []

        def _put(self, item: Any) -> None:
            heapq.heappush(self.heap, item)

        def _get(self) -> Any:
            return heapq.heappop(self.heap)

        def _qsize(self) -> int:
            return len(self.heap)

    return Priority


def test_stack(stack: Any) -> None:
    q = stack(3)
    q.put_many([1, 2, 3])
    assert (q.qsize(), q.full(), q.unfinished_tasks) == (3, True, 3)
    with pytest.raises(Full):
        q.put_nowait(4)
    assert [q.get(), q.get_nowait()] == [3, 2]
    q.maxsize = 1
    assert q.full()
    assert q.get_many(5) == [1]
    for _ in range(3):
        q.task_done()
    q.join()
    with pytest.raises(ValueError, match="too many"):
        q.task_done()
    q.shutdown()
    assert q.is_shutdown
    with pytest.raises(ShutDown):
        q.get()


def test_priority_with_threads_and_statistics(priority: Any) -> None:
    q = priority(4, high_watermark=3, low_watermark=0, name="urgent")
    heard: list[tuple[Any, str]] = []
    q.add_watermark_listener(lambda queue, event: heard.append((queue, event)))
    thread = threading.Thread(target=lambda: [q.put(i) for i in (5, 3, 4, 1, 2, 0)])
    thread.start()
    got = sorted(q.get(timeout=20) for _ in range(6))
    thread.join(20)
    assert got == [0, 1, 2, 3, 4, 5]
    s = q.statistics()
    assert (s.put_count, s.get_count, s.high_watermark) == (6, 6, 3)
    assert {queue for queue, _ in heard} == {q}
    q.put_many([2, 1, 3])
    assert not q.writable
    assert q.clear() == 3
    assert q.writable
    assert "urgent" in repr(q)


def test_asyncio(stack: Any) -> None:
    async def main() -> None:
        q = stack(1)
        getter = asyncio.create_task(q.aget())
        await asyncio.sleep(0)
        await q.aput(1)
        putter = asyncio.create_task(q.aput_many([2, 3]))
        assert await getter == 1
        assert [await q.aget(), await q.aget()] == [2, 3]
        assert await putter == 2

    asyncio.run(main())


def test_what_storage_raises_changes_nothing(queue_class: Any) -> None:
    class Picky(queue_class):  # type: ignore[misc]
        fail = False

        def _put(self, item: Any) -> None:
            if item is None:
                raise LookupError("no None")
            super()._put(item)

        def _get(self) -> Any:
            if self.fail:
                raise LookupError("not now")
            return super()._get()

    q = Picky()
    q.put(1)
    with pytest.raises(LookupError):
        q.put(None)
    q.fail = True
    with pytest.raises(LookupError):
        q.get()
    q.fail = False
    assert (q.qsize(), q.unfinished_tasks) == (1, 1)
    assert q.get() == 1
    with pytest.raises(Empty):
        q.get_nowait()


def test_policies_that_need_no_order_work(stack: Any) -> None:
    q = stack(2, policy="drop_newest")
    q.put_many([1, 2, 3])
    assert q.drain() == [2, 1]
    assert q.statistics().dropped_newest == 1
    q = stack(1, policy="error")
    q.put(1)
    with pytest.raises(Full):
        q.put(2)


@pytest.mark.parametrize(
    "kwargs", [{"max_bytes": 3}, {"sizer": len}, {"max_age": 1}, {"policy": "drop_oldest"}, {"policy": "latest"}]
)
def test_limits_that_need_our_storage_refuse(stack: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Stack overrides _init, _qsize, _put, _get: expected neither max_bytes"):
        stack(**kwargs)
    with pytest.raises(TypeError, match=r"Stack.peek\(\) needs the queue's own storage"):
        stack().peek()


def test_a_subclass_that_overrides_nothing_is_as_fast(queue_class: Any) -> None:
    class Plain(queue_class):  # type: ignore[misc]
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            super().put((item, "seen"), block, timeout)

    q = Plain(2, policy="drop_oldest")
    q.put(1)
    assert q.get() == (1, "seen")
    assert Plain._overridden == ()


def test_is_collected(stack: Any) -> None:
    q = stack()
    q.put(q)
    ref = weakref.ref(q)
    del q
    gc.collect()
    assert ref() is None
