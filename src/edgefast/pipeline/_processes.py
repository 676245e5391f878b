"""Workers that are processes.

A worker is a thread with a process of its own: the thread does all a thread worker does - queues, order, errors,
counts - and has the process call the function. It holds the item until the answer is there, so a process that dies
takes nothing with it: the thread starts another one and hands it the item again, or counts it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing as mp
import multiprocessing.forkserver
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from edgefast.pipeline._channel import Channel, Gone, PipeChannel, dumps, forget_others, open_channel, parent_lives
from edgefast.pipeline._errors import WorkerDied
from edgefast.pipeline._runtime import Core, Over, StageRuntime, Stop, batch_result
from edgefast.pipeline._threads import ThreadWorker

__all__ = ["ProcessWorker", "RemoteTraceback", "prepare"]

log = logging.getLogger("edgefast.pipeline")

#: Seconds a process gets to end by itself.
_PATIENCE = 5.0

#: Items that travel together take so many seconds: a journey costs some ten microseconds.
_CHUNK_SECONDS = 1e-3

#: Requests: call the function with each of some items, with one argument, or iterate over what it returns.
_EACH, _CALL, _ITERATE = range(3)

#: Outputs of a generator function travel in groups: so many, or those of so many seconds.
_GROUP, _GROUP_SECONDS = 64, 1e-3

_starting = threading.Lock()


def _after_fork_in_child() -> None:
    global _starting
    _starting = threading.Lock()  # whoever held it does not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

#: A process that is killed before it is ready is started again, so often in all.
_STARTS = 5


class RemoteTraceback(Exception):
    """Where in the worker's process an exception came from: its `__cause__` here."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def prepare(core: Core) -> None:
    """Check that the functions reach their processes.

    Raises:
        TypeError: one cannot be pickled.
        ValueError: the start method does not exist here.
    """
    methods = mp.get_all_start_methods()
    method = core.start_method or ("forkserver" if "forkserver" in methods else "spawn")
    if method not in methods:
        raise ValueError(f"start_method: expected one of {', '.join(methods)}, got {method!r}")
    core.start_method = method
    if method == "fork":
        return
    if method == "forkserver":
        _preload()
    for stage in core.stages:
        if stage.backend == "process":
            try:
                ForkingPickler.dumps(stage.spec.fn)
            except Exception as error:
                raise TypeError(
                    f"stage {stage.name!r}: expected a function that can be pickled for its processes, such as one of "
                    f'a module\'s top level, got {stage.spec.fn!r} ({error}); or pass start_method="fork"'
                ) from error


def _preload() -> None:
    """Have the fork server import what every worker needs: a process then starts in milliseconds. Not if somebody else
    has chosen what it imports."""
    server = mp.forkserver._forkserver  # type: ignore[attr-defined]
    if getattr(server, "_preload_modules", None) == ["__main__"]:
        mp.set_forkserver_preload(["__main__", __name__])


class ProcessWorker(ThreadWorker):
    """A thread whose calls happen in a process."""

    def __init__(self, stage: StageRuntime) -> None:
        super().__init__(stage)
        self.call = self._call
        self._process: Any = None
        stage.budget = _CHUNK_SECONDS
        if stage.spec.on_worker_death == "drop":
            stage.single = True  # one at a time, or nobody would know which of several was lost
        self._channel: Any = None

    # ---- the process -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        stage = self.stage
        if not stage.begins(self):
            return
        try:
            self._start()
        except BaseException as error:
            if not isinstance(error, Over):
                stage.core.fail(stage, error.error if isinstance(error, Stop) else error)
            stage.ended(self)
        else:
            super().run()
        finally:
            self._stop()

    def _start(self) -> None:
        """Start a process and wait until it is ready; again when it was killed meanwhile.

        Raises:
            Stop: it cannot be.
            Over: the stage was stopped meanwhile.
        """
        how = "was not started"
        for _ in range(_STARTS):
            try:
                self._launch()
            except Exception as error:
                raise Stop(error, None) from None
            try:
                while self._channel.receive(self._alive) is not None:
                    pass
                self._channel.settled()
                return
            except Gone:
                how = self._stop()
            if self.stage.stopping.is_set() or self.stage.core.immediate:
                raise Over
            if "killed" not in how:
                break
            self.restarts += 1
        raise Stop(WorkerDied(f"the process {how} before it was ready"), None)

    def _launch(self) -> None:
        stage = self.stage
        forked = stage.core.start_method == "fork"
        context: Any = mp.get_context(stage.core.start_method)
        with _starting:  # what is forked meanwhile would keep an end open after its process is gone
            ours, theirs = open_channel(context)
            try:
                process = context.Process(
                    target=_main,
                    args=(stage.spec.fn, stage.spec.batch, theirs, forked),
                    name=threading.current_thread().name,
                    daemon=True,
                )
                process.start()
            except BaseException:
                ours.close()
                theirs.close()
                raise
            if isinstance(theirs, PipeChannel):
                theirs.close()
        self._process, self._channel = process, ours

    def _alive(self) -> bool:
        if self.stage.core.immediate:
            self.kill()
        if self.stage.core.start_method == "forkserver":
            # Not is_alive(): two threads that ask at once would take the exit status from each other.
            return not connection.wait([self._process.sentinel], 0)
        return self._process.is_alive()

    def _stop(self) -> str:
        """End the process; how it ended."""
        process, channel = self._process, self._channel
        if process is None:
            return "was not there"
        channel.hang_up()
        if self.stage.core.immediate:
            process.kill()
        if not _ended(process):
            process.kill()
            while not _ended(process):
                pass
        how = _ending(process.exitcode)
        self._process = self._channel = None
        process.close()
        channel.close()
        return how

    def kill(self) -> None:
        """End the process at once, from any thread."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ValueError, AttributeError):  # closed meanwhile
                process.kill()

    @property
    def pid(self) -> int | None:
        """The process at the moment."""
        process = self._process
        return None if process is None else process.pid

    def _replace(self) -> WorkerDied:
        """The process died: start another one."""
        stage = self.stage
        how = self._stop()
        if stage.stopping.is_set() or stage.core.immediate:
            raise Over
        log.warning("pipeline %r: a worker of stage %r %s and is replaced", stage.core.name, stage.name, how)
        self.restarts += 1
        self._start()
        return WorkerDied(f"the process {how} while it worked on the item")

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _send(self, kind: int, work: Any) -> None:
        message = dumps((kind, work))
        try:
            self._channel.send(message, self._alive)
        except Gone:
            raise self._replace() from None

    def _receive(self) -> Any:
        try:
            return self._channel.receive(self._alive)
        except Gone:
            raise self._replace() from None

    def _call(self, work: Any) -> Any:
        self._send(_CALL, work)
        result, error = self._receive()
        if error is not None:
            raise error
        return result

    def _each(self, items: list[Any], outputs: list[Any]) -> None:
        rest = items
        while rest:
            try:
                self._send(_EACH, rest)
                results, error = self._receive()
            except WorkerDied as death:
                if len(rest) > 1:  # nobody knows at which of them
                    self.redelivered += len(rest)
                    for item in rest:
                        self._each([item], outputs)
                    return
                results, error = [], death
            except Exception as unsent:
                if len(rest) > 1:
                    for item in rest:
                        self._each([item], outputs)
                    return
                results, error = [], unsent
            outputs += results
            if error is None:
                return
            item, rest = rest[len(results)], rest[len(results) + 1 :]
            ok, result = self.again(item, error, 1, self._call)
            if ok:
                outputs.append(result)

    def results(self, work: Any) -> Iterable[Any]:
        return self._iterate(work)

    def _iterate(self, work: Any) -> Iterator[Any]:
        self._send(_ITERATE, work)
        while True:
            try:
                outputs, error = self._receive()
            except WorkerDied:
                raise
            except Exception:
                # Cannot be unpickled. What else is on its way would be taken for the next item's.
                self._stop()
                self._start()
                raise
            if outputs is not None:
                yield from outputs
            if error is not None:
                raise error
            if outputs is None:
                return

    # ---- failures ----------------------------------------------------------------------------------------------------

    def retries(self, error: Exception, attempt: int, begun: bool) -> bool:
        if not isinstance(error, WorkerDied):
            return super().retries(error, attempt, begun)
        if begun or self.stage.spec.on_worker_death == "drop" or attempt > max(1, self.stage.spec.retries):
            return False
        self.redelivered += 1
        return True

    def give_up(self, item: Any, error: Exception, n: int) -> None:
        if isinstance(error, WorkerDied) and self.stage.spec.on_worker_death == "drop":
            self.lost += n
            self.hand -= n
        else:
            super().give_up(item, error, n)


def _ended(process: Any) -> bool:
    """Wait a while for the end of a process."""
    connection.wait([process.sentinel], _PATIENCE)
    with _starting:  # multiprocessing asks for the status of all when it starts one, and only one may
        return not process.is_alive()


def _ending(exitcode: int | None) -> str:
    if exitcode is None:
        return "closed its pipe"
    if exitcode < 0:
        try:
            return f"was killed by {signal.Signals(-exitcode).name}"
        except ValueError:
            return f"was killed by signal {-exitcode}"
    return f"ended with status {exitcode}"


# ---- in the process --------------------------------------------------------------------------------------------------


def _main(fn: Any, batch: int, channel: Channel, forked: bool) -> None:
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    if forked:
        forget_others()
    try:
        channel.send(dumps(None), parent_lives)
        while True:
            try:
                kind, work = channel.receive(parent_lives)
            except Gone:
                raise
            except Exception as error:
                # Of no item in particular: the sender tries them one by one.
                _reply(channel, [], error)
                continue
            _answer(fn, batch, channel, kind, work)
    except Gone:
        pass
    channel.close()


def _answer(fn: Any, batch: int, channel: Channel, kind: int, work: Any) -> None:
    if kind == _EACH:
        outputs: list[Any] = []
        failure: Exception | None = None
        for item in work:
            try:
                outputs.append(fn(item))
            except Exception as error:
                failure = error
                break
        _reply(channel, outputs, failure)
    elif kind == _CALL:
        try:
            result = fn(work)
            if batch > 1:
                result = batch_result(result, len(work))
        except Exception as error:
            _reply(channel, None, error)
        else:
            _reply(channel, result, None)
    else:
        _stream(fn, channel, work)


def _stream(fn: Any, channel: Channel, work: Any) -> None:
    group: list[Any] = []
    due = 0.0
    failure: Exception | None = None
    try:
        for output in fn(work):
            group.append(output)
            now = time.monotonic()
            if len(group) >= _GROUP or now >= due:
                if not _reply(channel, group, None):
                    return
                group, due = [], now + _GROUP_SECONDS
    except Gone:
        raise
    except Exception as error:
        failure = error
    if not group or _reply(channel, group, None):
        _reply(channel, None, failure)


def _reply(channel: Channel, result: Any, error: Exception | None) -> bool:
    """Send (result, error), or of a list that cannot be pickled what comes before the first such output, and False."""
    whole = True
    try:
        message = dumps((result, None if error is None else _portable(error)))
    except Exception as unsent:
        whole = False
        failure = TypeError(f"expected an output that can be pickled: {unsent}")
        message = dumps((_sendable(result), _portable(failure)))
    channel.send(message, parent_lives)
    return whole


def _sendable(result: Any) -> list[Any] | None:
    if not isinstance(result, list):
        return None
    good: list[Any] = []
    for output in result:
        try:
            dumps(output)
        except Exception:
            break
        good.append(output)
    return good


class _Traced:
    """An exception that is unpickled with the text of its traceback as its cause."""

    def __init__(self, error: Exception, text: str) -> None:
        self.error = error
        self.text = text

    def __reduce__(self) -> Any:
        return _rebuild, (self.error, self.text)


def _rebuild(error: Exception, text: str) -> Exception:
    error.__cause__ = RemoteTraceback(text)
    return error


def _portable(error: Exception) -> _Traced:
    """The exception, or what can be said about it when it cannot be pickled, with its traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        if type(pickle.loads(ForkingPickler.dumps(error))) is type(error):
            return _Traced(error, text)
    except Exception:
        pass
    return _Traced(RuntimeError(f"{type(error).__name__}: {error}"), text)
