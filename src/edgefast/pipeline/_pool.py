"""scheduler="max_weight": a fixed number of threads that serve whatever stage needs it most.

A thread that finds no room for its outputs serves the stages behind until there is some: those are never before the one
it comes from, so it comes back, and the threads together always get on as long as somebody reads the outputs.
"""

from __future__ import annotations

import threading
from typing import Any

from edgefast._threads import available_cpus
from edgefast.pipeline._runtime import BLOCKED, BUSY, IDLE, Core, Over, StageRuntime, Stop, clock
from edgefast.pipeline._threads import ThreadWorker
from edgefast.pipeline.schedule import max_weight
from edgefast.queues import Empty, Full, ShutDown

__all__ = ["Pool"]

#: A thread without a place for its outputs and nothing else to do looks again after so many seconds.
_LOOK_AGAIN = 5e-3


class _Hand(ThreadWorker):
    """What one thread of the pool is for one stage."""

    def __init__(self, stage: StageRuntime, pool: Pool) -> None:
        super().__init__(stage)
        self.state = IDLE
        self.pool = pool

    def serve(self) -> bool:
        """Work on what the stage has, without waiting for it; False if there is nothing, or somebody was faster."""
        stage = self.stage
        order = stage.order
        with stage.lock:
            if stage.active >= stage.target:
                return False
            stage.active += 1
        self.since = clock()
        self.state = BUSY
        try:
            if order is None:
                items, ticket = self._get(block=False), -1
            else:
                with order.turn:
                    items, ticket = self._get(block=False), order.ticket()
            stage.served_at = self.since
            self.work(items, ticket)
            return True
        except Empty:
            return False
        except (ShutDown, Over):
            return True
        except BaseException as error:
            stage.core.fail(stage, error)
            return True
        finally:
            self.lost += self.hand
            self.hand = 0
            self.switch(IDLE)
            with stage.lock:
                stage.active -= 1

    def put(self, outputs: list[Any]) -> int:
        following = self.stage.next
        core = self.stage.core
        if following is None or following.policy != "block" or core.discarding:
            return super().put(outputs)
        queue = following.queue
        accepted = 0
        while accepted < len(outputs):
            rest = outputs[accepted:] if accepted else outputs
            try:
                accepted += queue.put_many(rest, False)
                if accepted < len(outputs) and not self.pool.help(self.stage.index):
                    self.switch(BLOCKED)
                    queue.put(outputs[accepted], True, _LOOK_AGAIN)
                    accepted += 1
            except Full:
                pass
            except ShutDown:
                break
            except Exception as error:
                self.emitted += accepted
                try:
                    return accepted + self._singly(rest, error)
                except Stop as stop:
                    stop.passed += accepted
                    raise
        self.emitted += accepted
        return accepted


class Pool:
    def __init__(self, core: Core) -> None:
        self.core = core
        self.size = core.pool_size or available_cpus()
        self._local = threading.local()

    def start(self) -> None:
        hands = [[_Hand(stage, self) for stage in self.core.stages] for _ in range(self.size)]
        threads = [
            threading.Thread(target=self._run, args=(row,), name=f"{self.core.name}-pool-{i}", daemon=True)
            for i, row in enumerate(hands, 1)
        ]
        try:
            for stage, column in zip(self.core.stages, zip(*hands, strict=True), strict=True):
                stage.workers.update(column)
            for thread in threads:
                self.core.threads.add(thread)
                thread.start()
        except BaseException:
            if not threads[0].is_alive():  # nobody is there to serve, and to end, the stages
                for stage in self.core.stages:
                    stage.workers.clear()
            raise

    def _run(self, hands: list[_Hand]) -> None:
        core = self.core
        self._local.hands = hands
        while not core.closed.is_set():
            if not self.help(-1):
                self._close_ended()
                core.wait(self._something)

    def _something(self) -> bool:
        return self.core.closed.is_set() or self._ended() is not None or self._choose(-1) is not None

    def help(self, behind: int) -> bool:
        """Serve the best stage behind the given one, once; False if none can be."""
        i = self._choose(behind)
        return i is not None and self._local.hands[i].serve()

    def _choose(self, behind: int) -> int | None:
        stages = self.core.stages[behind + 1 :]
        if not stages:
            return None
        depths = [stage.queue.qsize() for stage in stages]
        if not any(depths):
            return None
        now = clock()
        eligible = [
            stage.active < stage.target
            and (stage.order is None or not stage.order.full(stage.window))
            and (stage.next is None or stage.next.policy != "block" or stage.next.queue.writable)
            for stage in stages
        ]
        reader = self.core.reader
        last = 0 if reader is None else reader.queue.qsize()
        i = max_weight(
            depths,
            [*depths[1:], last],
            [1 / stage.pace if stage.pace > 0 else float("nan") for stage in stages],
            eligible=eligible,
            waited=[now - stage.served_at for stage in stages],
            max_wait=self.core.target_delay,
        )
        return None if i is None else behind + 1 + i

    def _ended(self) -> StageRuntime | None:
        """The first stage with workers, if it has nothing to do any more."""
        for stage in self.core.stages:
            if stage.workers:
                over = stage.queue.is_shutdown and not stage.queue.qsize() and not stage.active
                return stage if over else None
        return None

    def _close_ended(self) -> None:
        while (stage := self._ended()) is not None:
            with stage.lock:
                if not stage.workers or stage.active or stage.queue.qsize():
                    return
                for hand in tuple(stage.workers):
                    stage._dismiss(hand)
            stage.close_behind()
