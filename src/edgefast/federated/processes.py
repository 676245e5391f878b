"""Every device in a process of its own. The global model goes to each through a SharedQueue, the updates come back
through another: a device that is killed or stopped, at whatever instruction, takes nothing but its own update along.

The devices are forked from a process that has only loaded the package (`forkserver`). A bare `fork` of this one would
copy locks that its other threads may hold; `spawn` would load numpy anew for every device.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, Literal

import numpy as np

from edgefast import backends
from edgefast.errors import InputError
from edgefast.federated import remote
from edgefast.federated.depths import MAX_SAMPLES, fullest
from edgefast.federated.device import DeviceReport, Update
from edgefast.federated.engine import DevicesLost, Fault
from edgefast.federated.plan import Parameters, Plan
from edgefast.pipeline import _publish
from edgefast.queues import Empty, SharedQueue, ShutDown, list_shared

__all__ = ["ProcessEngine", "prepare"]

_START_SECONDS = 60.0  # for all devices to be ready
_POLL_SECONDS = 0.1  # between two looks at the progress
_MOST_DEVICES = 1000  # a SharedQueue takes 1023 participants
_END_SECONDS = 1.0  # for the devices to end by themselves


def prepare(*, deaf: bool = False) -> None:
    """Have the process ready that devices are forked from: it loads the package meanwhile.

    Args:
        deaf: what is forked from it ignores Ctrl-C from its first instruction on. For programs in which nobody else
            forks from it.

    Raises:
        ImportError: there is no SharedQueue here: not Linux, or no native backend.
    """
    try:
        list_shared()
    except ImportError as error:
        raise ImportError(f"processes: {error}") from None
    from multiprocessing import forkserver, resource_tracker

    _context().set_forkserver_preload(["edgefast.federated.remote"])
    with _ctrl_c_waits():
        resource_tracker.ensure_running()  # leaves SIGINT unblocked: first
        # What is started with the signal blocked never gets it. To ignore it meanwhile would lose one meant for us.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT} if deaf else set())
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _ending(status: int) -> str:
    """How a process ended, by multiprocessing's exit code."""
    if status >= 0:
        return f"its process ended with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _context() -> Any:
    return multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block: half a request would bring the forking process down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *args: came.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(*came[0])


class _Remote:
    """The server's side of one device."""

    def __init__(self, index: int, process: Any, inbox: SharedQueue) -> None:
        self.index = index
        self.process = process
        self.inbox = inbox
        self.alive = True
        self.busy = True  # has not answered what it was last sent; starts, to begin with
        self.failure: str | None = None  # what it said before it ended
        self.report = DeviceReport()


class ProcessEngine:
    """All devices in processes of their own, all at work at the same time.

    Args:
        plan: of the run.
        publish: whether devices and queues show themselves in `edgefast top`.

    Raises:
        ImportError: there is no SharedQueue here: not Linux, or no native backend.
        InputError: more than 1000 devices.
        OSError: shared memory or a process cannot be had.
        DevicesLost: no device could be started; it says why.
    """

    def __init__(self, plan: Plan, *, publish: bool = False) -> None:
        self._timeout = plan.config.device_timeout
        self._remotes: list[_Remote] = []
        self._queues: list[SharedQueue] = []  # that close() removes
        self._faults: list[Fault] = []
        self._depths: list[tuple[float, int]] = []
        self._recent = 0
        self._trace: list[tuple[float, int]] = []
        self._round = 0
        self._high = plan.config.watermarks[0]
        self._watcher: threading.Thread | None = None
        sizes = (plan.config.components, len(plan.data.classes), plan.scaler.dtype)
        self._order = np.zeros((), remote.down_type(*sizes))
        self._up = remote.up_type(*sizes)
        devices = plan.config.devices
        prefix = f"run-{os.getpid()}-{secrets.token_hex(4)}"
        if devices > _MOST_DEVICES:
            raise InputError(f"devices: expected at most {_MOST_DEVICES} with processes, got {devices}; ask for fewer")
        prepare()
        try:
            self._outbox = self._create(
                min(64, devices + 1), dtype=self._up, name=f"{prefix}-updates", max_participants=devices + 3
            )
            self._start(plan, prefix, publish)
        except BaseException:
            self.close()
            raise

    def _create(self, maxsize: int, **options: Any) -> SharedQueue:
        """A queue with a name, in the books before Ctrl-C can take effect: nobody else would remove it."""
        with _ctrl_c_waits():
            queue = SharedQueue.create(maxsize, **options)
            self._queues.append(queue)
        return queue

    def _start(self, plan: Plan, prefix: str, publish: bool) -> None:
        context = _context()
        for index in range(plan.config.devices):
            inbox = self._create(
                1,
                dtype=self._order.dtype,
                policy="latest",
                name=f"{prefix}-model-{index}",
                max_participants=4,
                on_consumer_death="drop",
            )
            order = remote.Order(plan.shard(index), inbox.name, self._outbox.name, backends.backend(), publish)
            process = context.Process(target=remote.serve, args=(order,), name=f"edgefast-device-{index}", daemon=True)
            self._remotes.append(_Remote(index, process, inbox))
            with _ctrl_c_waits():
                process.start()
        if publish:
            for queue in self._queues:
                _publish.publish(queue)
        with _ctrl_c_waits():
            self._watcher = threading.Thread(target=self._watch, name="edgefast-watch", daemon=True)
            self._watcher.start()
        deadline = time.monotonic() + _START_SECONDS
        starting = set(range(plan.config.devices))
        while starting and (left := deadline - time.monotonic()) > 0:
            self._receive(min(left, _POLL_SECONDS))
            starting = {i for i in starting if self._remotes[i].alive and self._remotes[i].busy}
        for index in sorted(starting):
            self._remotes[index].failure = f"not ready within {_START_SECONDS:.0f} s"
            self._remotes[index].process.kill()
            self._remotes[index].process.join()
            self._lost(self._remotes[index])
        # From here on nothing can be left behind: who is attached goes on, the memory is freed with the last of them.
        for queue in self._queues:
            queue.unlink()
        if not any(r.alive for r in self._remotes):
            raise DevicesLost(f"no device could be started: {self._faults[0].reason}")

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def train(self, number: int, model: Parameters, poll: Callable[[], None]) -> Iterator[Update]:
        self._round = number
        updates: dict[int, Update] = {}
        # Only a device that was late before can be alive and busy. If all are, the first that answers goes on.
        while not (idle := [r for r in self._remotes if r.alive and not r.busy]):
            if not any(r.alive for r in self._remotes):
                raise DevicesLost("every device was lost")
            self._receive(_POLL_SECONDS)
            poll()
        self._order["round"] = number
        for key, value in model.items():
            self._order[key] = value
        for each in idle:
            each.inbox.put(self._order)
            each.busy = True
        waiting = {each.index for each in idle}
        deadline = None
        while waiting:
            pause = _POLL_SECONDS if deadline is None else min(_POLL_SECONDS, deadline - time.monotonic())
            if pause <= 0:
                break
            update = self._receive(pause)
            if update is not None:
                if update.round == number:
                    updates[update.device] = update
                if deadline is None:
                    deadline = time.monotonic() + self._timeout
            waiting = {i for i in waiting if i not in updates and self._remotes[i].alive}
            poll()
        if not updates and not any(r.alive for r in self._remotes):
            raise DevicesLost("every device was lost")
        for each in self._remotes:
            if each.alive and each.index not in updates:
                self._fault(each.index, "late", "slow or stopped")
        for index in sorted(updates):
            yield updates[index]

    def _receive(self, seconds: float) -> Update | None:
        """Take in one message; the update, if it is one."""
        try:
            message = self._outbox.get(timeout=seconds)
        except Empty:
            return None
        event, sender = int(message["event"]), self._remotes[int(message["device"])]
        samples = [(float(t), int(depth)) for t, depth in message["samples"][: int(message["count"])]]
        if event == remote.READY:
            sender.busy = False
        elif event == remote.TRACE:
            self._trace += samples
        elif event == remote.FAILED:
            sender.failure = message["text"].decode(errors="replace")
        elif event == remote.LOST and sender.alive:
            sender.process.join()
            self._lost(sender)
        elif event == remote.UPDATE:
            sender.busy = False
            sender.report = remote.to_report(message["report"])
            self._depths += samples
            self._recent = max(self._recent, *(depth for _, depth in samples), 0)
            if len(self._depths) > 4 * MAX_SAMPLES:
                self._depths = fullest(self._depths, MAX_SAMPLES)
            return Update(
                sender.index,
                int(message["round"]),
                remote.to_parameters(message),
                int(message["rows"]),
                float(message["loss"]),
            )
        return None

    def _lost(self, gone: _Remote) -> None:
        gone.alive = gone.busy = False
        self._fault(gone.index, "lost", gone.failure or _ending(gone.process.exitcode))

    def _fault(self, device: int, kind: Literal["lost", "late"], reason: str) -> None:
        self._faults.append(Fault(device, self._round + 1, kind, reason))

    def _watch(self) -> None:
        """Tells the server of every process that ends, through the queue on which it waits for everything else."""
        message = np.zeros((), self._up)
        message["event"] = remote.LOST
        living = {each.process.sentinel: each.index for each in self._remotes}
        while living:
            for sentinel in connection.wait(list(living)):
                message["device"] = living.pop(sentinel)
                with contextlib.suppress(ShutDown, ValueError):
                    self._outbox.put(message)

    # ---- numbers -----------------------------------------------------------------------------------------------------

    @property
    def depths(self) -> Sequence[tuple[float, int]]:
        return fullest(self._depths, MAX_SAMPLES)

    @property
    def trace(self) -> Sequence[tuple[float, int]]:
        return self._trace

    @property
    def faults(self) -> Sequence[Fault]:
        return self._faults

    def reports(self) -> list[DeviceReport]:
        return [each.report for each in self._remotes]

    def gauge(self) -> tuple[int, bool]:
        depth, self._recent = self._recent, 0
        return depth, depth < self._high

    # ---- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        with _ctrl_c_waits():  # a second at most
            self._close()

    def _close(self) -> None:
        for queue in self._queues:
            queue.shutdown(immediate=True)
        started = [each.process for each in self._remotes if each.process.pid is not None]
        for each in self._remotes:
            if each.busy and each.process.pid is not None:
                each.process.kill()  # in the middle of a round, or stopped
        deadline = time.monotonic() + _END_SECONDS
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in started:
            process.kill()
            process.join()
        if self._watcher is not None:
            self._watcher.join()
        for queue in self._queues:
            _publish.unpublish(queue)
            queue.unlink()
            queue.close()
