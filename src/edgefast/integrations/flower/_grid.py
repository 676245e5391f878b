"""Grids: one that hands replies over as they arrive, one that runs ClientApps in this process."""

from __future__ import annotations

import contextvars
import importlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgefast.integrations.flower._flwr import (
    Context,
    Grid,
    GridBase,
    Message,
    RecordDict,
    app,
)
from edgefast.queues import Empty, Full, Queue, ShutDown

__all__ = ["LocalGrid", "Replies", "StreamingGrid"]

_FIRST_PAUSE = 0.02
_CLIENT_APP_RAISED = 2  # flwr.common.constant.ErrorCode


class Replies:
    """An iterator of the replies of one send_and_receive, in the order of arrival.

    A thread pulls them from the grid into a bounded queue and stops pulling while it is full: what has not been pulled
    stays at the SuperLink. Ends when all replies are there or the time is over. close() ends the thread; so does the
    end of the iteration.

    Attributes:
        expected: number of messages sent.
    """

    def __init__(
        self, grid: Grid, ids: Sequence[str], timeout: float | None, *, buffer: int, chunk: int, poll_interval: float
    ) -> None:
        self.expected: int = len(ids)
        self._grid = grid
        self._open = list(ids)
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._chunk = chunk
        self._poll = poll_interval
        self._queue: Queue[Message] = Queue(buffer)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if self._open:
            # Context variables carry edgefast.using() into the thread.
            run = contextvars.copy_context().run
            self._thread = threading.Thread(target=run, args=(self._pull,), name="edgefast-replies", daemon=True)
            self._thread.start()

    def _pull(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while self._open and not self._stop.is_set():
                found = False
                # A few at a time: pull_messages returns everything that is there for the ids it is asked about.
                for begin in range(0, len(self._open), self._chunk):
                    for reply in self._grid.pull_messages(self._open[begin : begin + self._chunk]):
                        found = True
                        name = reply.metadata.reply_to_message_id
                        if name in self._open:  # else one that has come before
                            self._open.remove(name)
                            self._hand_over(reply)
                        if self._stop.is_set():
                            return
                    if found:
                        break  # the list has changed
                pause = _FIRST_PAUSE if found else min(2 * pause, self._poll)
                if not found:
                    self._stop.wait(pause)
        except ShutDown:
            pass
        except BaseException as error:  # whatever the grid raises belongs to the caller
            self._error = error
        finally:
            self._queue.shutdown()  # what is in it can still be taken

    def _hand_over(self, reply: Message) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(reply, timeout=0.1)
                return
            except Full:
                pass

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        if self._thread is None:
            raise StopIteration
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            return self._queue.get(timeout=left)
        except Empty:  # time is over
            self.close()
            raise StopIteration from None
        except ShutDown:
            self.close()
            if self._error is not None:
                raise self._error from None
            raise StopIteration from None

    def __bool__(self) -> bool:
        return self.expected > 0

    def close(self) -> None:
        """End the thread, without waiting long for a grid that does not answer. May be called again."""
        self._stop.set()
        self._queue.shutdown(immediate=True)
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None


class StreamingGrid(GridBase):
    """A Grid whose send_and_receive returns at once and yields the replies as they arrive.

    Everything else is the wrapped grid's. With a strategy that takes one reply after the other and keeps none, memory
    holds at most buffer + chunk + 1 replies, however many nodes answer. Polls go from 20 ms up to `poll_interval`
    while nothing comes (HttpGrid: every 3 s).

    Args:
        grid: the grid to wrap.
        buffer: replies the queue between network and strategy holds.
        chunk: replies asked for at once.
        poll_interval: longest pause between two polls, seconds.
    """

    def __init__(self, grid: Grid, *, buffer: int = 2, chunk: int = 4, poll_interval: float = 0.5) -> None:
        if buffer < 1 or chunk < 1:
            raise ValueError(f"buffer, chunk: expected at least 1, got {buffer} and {chunk}")
        if not poll_interval > 0:
            raise ValueError(f"poll_interval: expected a time above 0, got {poll_interval}")
        self.grid = grid
        self._options = {"buffer": buffer, "chunk": chunk, "poll_interval": poll_interval}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send now; the replies come from the iterator that is returned, until `timeout` seconds from now."""
        ids = [i for i in self.grid.push_messages(messages) if i is not None]
        return Replies(self.grid, ids, timeout, **self._options)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "grid":  # not there yet, or not any more
            raise AttributeError(name)
        return getattr(self.grid, name)

    def set_run(self, run: Any) -> None:
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self.grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.grid.pull_messages(message_ids)


def _name_this_process() -> None:
    """Flower from 1.4x on takes a message's sender from a process-wide identity, which only its own executables set."""
    try:
        TaskIdentity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    except ImportError:
        return
    for name in ("task_id", "run_id", "node_id"):
        if getattr(TaskIdentity, f"_{name}", None) is None:
            setattr(TaskIdentity, name, 1)


class LocalGrid(GridBase):
    """Nodes in this process: ClientApps answer when their messages are pulled. For tests, notebooks, small studies.

    Every node has a Context of its own, whose state lives as long as the grid. No serialisation, no sockets, no
    processes; an exception of the app becomes an error reply, as on a SuperNode.

    Args:
        client_app: the ClientApp, or a callable (Message, Context) -> Message.
        nodes: number of nodes, or the node_config of each ({"partition-id": i, "num-partitions": n} by default).
        run_config: of all nodes.

    Attributes:
        contexts: node id -> Context.
    """

    def __init__(
        self,
        client_app: Callable[[Message, Context], Message],
        nodes: int | Sequence[Mapping[str, Any]],
        *,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        _name_this_process()
        if isinstance(nodes, int):
            nodes = [{"partition-id": i, "num-partitions": nodes} for i in range(nodes)]
        self.client_app = client_app
        self.contexts: dict[int, Context] = {
            i + 1: app.Context(
                run_id=1,
                node_id=i + 1,
                node_config=dict(config),
                state=app.RecordDict(),
                run_config=dict(run_config or {}),
            )
            for i, config in enumerate(nodes)
        }
        self._waiting: dict[str, Message] = {}
        self._sent = 0
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        self._run = run

    @property
    def run(self) -> Any:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str = "", ttl: float | None = None
    ) -> Message:
        return app.Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._sent += 1
            name = f"message-{self._sent}"
            message.metadata.__dict__["_message_id"] = name
            self._waiting[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.answer(self._waiting.pop(name)) for name in list(message_ids) if name in self._waiting]

    def answer(self, message: Message) -> Message:
        """A node's reply."""
        # The node's copy of the records: what the app does to them is its own affair.
        content = app.RecordDict({key: record.copy() for key, record in message.content.items()})
        received = app.Message(content, message.metadata.dst_node_id, message.metadata.message_type)
        received.__dict__["_metadata"] = message.metadata
        try:
            return self.client_app(received, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            return app.Message(app.Error(_CLIENT_APP_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.pull_messages(self.push_messages(messages)))
