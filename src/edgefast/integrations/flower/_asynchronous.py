"""FedBuff as a Flower strategy: no rounds, every node trains at its own pace."""

from __future__ import annotations

import collections
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from edgefast import aggregate
from edgefast.aggregate import DtypeMismatch, Encoded, StructureMismatch, UpdateError
from edgefast.aggregate._template import Template
from edgefast.integrations.flower import _records, _wire
from edgefast.integrations.flower._flwr import (
    ArrayRecord,
    ConfigRecord,
    Grid,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
    app,
)
from edgefast.integrations.flower._flwr import strategy as flower
from edgefast.integrations.flower._grid import StreamingGrid
from edgefast.integrations.flower._strategies import _OPTIONS, _Edge

__all__ = ["FedBuff"]

_log = logging.getLogger("flwr")
_FIRST_PAUSE = 0.02
_LOOK_AROUND = 1.0  # seconds between two looks at who is there
_CHUNK = 4  # replies asked for at once
_AFTER_ERROR = 2.0  # seconds a node that answered with an error is left alone


class _Sent:
    """A message under way: to whom, with which model, and when its sender gives up."""

    __slots__ = ("arrays", "deadline", "node", "version")

    def __init__(self, node: int, version: int, arrays: ArrayRecord, deadline: float) -> None:
        self.node = node
        self.version = version
        self.arrays = arrays
        self.deadline = deadline


class FedBuff(_Edge, flower.FedAvg):
    __doc__ = (
        """Asynchronous federated learning: a step whenever `buffer_size` replies have come, whoever sent them.

    A node that answers is sent the present model at once; nobody waits for the slowest. Its reply counts by how many
    steps the model has made meanwhile: see edgefast.aggregate.FedBuff. `num_rounds` of start() are steps; `timeout` is
    how long one reply may take, after which the node is forgotten until it is seen again, and how long the run waits
    when nobody answers at all. There is no evaluation on the nodes; evaluate_fn is called after every step.

    Memory: the model, the buffer (8 bytes a parameter) and one older model for every step a node is behind.

    Args:
        buffer_size: replies a step, at least 1.
        concurrency: nodes at work at the same time; None for all.
        server_learning_rate: above 0.
        staleness: weight of a reply by the steps made since its model was sent; None for (1 + tau) ** -0.5.
        max_staleness: replies older than this are not used; None for no limit.
        normalize: "count" as in the paper, or "weight".
        weighted: weigh replies by `weighted_by_key`, too; the paper does not.
        fraction_train and so on: FedAvg's, by keyword; fractions are not looked at.
"""
        + _OPTIONS
    )

    def __init__(
        self,
        buffer_size: int,
        *,
        concurrency: int | None = None,
        server_learning_rate: float = 1.0,
        staleness: Callable[[int], float] | None = None,
        max_staleness: int | None = None,
        normalize: Literal["count", "weight"] = "count",
        weighted: bool = False,
        **kwargs: Any,
    ) -> None:
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency: expected at least 1, got {concurrency}")
        kwargs.setdefault("fraction_evaluate", 0.0)
        super().__init__(**kwargs)
        self.buffer_size: int = buffer_size
        self.concurrency: int | None = concurrency
        self.server_learning_rate: float = server_learning_rate
        self.staleness: Callable[[int], float] | None = staleness
        self.max_staleness: int | None = max_staleness
        self.normalize: Literal["count", "weight"] = normalize
        self.weighted: bool = weighted
        # A wrong argument is an error now, not when the run starts.
        self._server({"": np.zeros(1)})

    def _server(self, model: Any) -> aggregate.FedBuff:
        return aggregate.FedBuff(
            model,
            self.buffer_size,
            lr=self.server_learning_rate,
            staleness=self.staleness,
            normalize=self.normalize,
            num_threads=self.num_threads,
        )

    def summary(self) -> None:
        _log.info(
            "\t├──> FedBuff: a step every %d replies, concurrency %s", self.buffer_size, self.concurrency or "all"
        )
        super().summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Any:
        """Run until the model has made `num_rounds` steps; Flower's Result."""
        run = _Run(self, grid.grid if isinstance(grid, StreamingGrid) else grid, initial_arrays, timeout)
        _log.info("Starting %s strategy:", type(self).__name__)
        self.summary()
        if evaluate_fn is not None:
            run.evaluate(evaluate_fn)
        config = app.ConfigRecord() if train_config is None else train_config
        while run.server.version < num_rounds:
            run.dispatch(config)
            if not run.collect():
                if run.nobody():
                    _log.warning("FedBuff: no reply for %s seconds, ending after %d steps", timeout, run.server.version)
                    break
                run.pause()
            elif run.stepped and evaluate_fn is not None:
                run.evaluate(evaluate_fn)
        run.result.arrays = run.arrays
        return run.result


class _Run:
    """State of one start()."""

    def __init__(self, strategy: FedBuff, grid: Grid, arrays: ArrayRecord, timeout: float) -> None:
        self.strategy = strategy
        self.grid = grid
        self.timeout = timeout
        self.arrays = _wire.decoded(arrays, "server")
        self.server = strategy._server(self.arrays)
        self.result = flower.Result()
        self.stepped = False
        self._outgoing = strategy._outgoing(self.arrays)
        self._sent: dict[str, _Sent] = {}
        self._ready: collections.deque[Message] = collections.deque()
        self._nodes: list[int] = []
        self._looked = -_LOOK_AROUND
        self._resting: dict[int, float] = {}
        self._contents: list[tuple[int, RecordDict]] = []
        self._pause = _FIRST_PAUSE
        self._last_reply = time.monotonic()

    # ---- out ---------------------------------------------------------------------------------------------------------

    def dispatch(self, config: ConfigRecord) -> None:
        """Send the present model to idle nodes."""
        now = time.monotonic()
        for name in [name for name, sent in self._sent.items() if sent.deadline < now]:
            _log.warning("FedBuff: no reply from node %d in %s seconds", self._sent[name].node, self.timeout)
            del self._sent[name]
        strategy = self.strategy
        most = strategy.concurrency
        if most is not None and len(self._sent) >= most:
            return
        if now - self._looked >= _LOOK_AROUND:
            self._nodes, self._looked = list(self.grid.get_node_ids()), now
        busy = {sent.node for sent in self._sent.values()}
        idle = [n for n in self._nodes if n not in busy and self._resting.get(n, 0.0) <= now]
        if len(self._nodes) < strategy.min_available_nodes or not idle:
            return
        count = len(idle) if most is None else min(len(idle), most - len(self._sent))
        chosen = random.sample(idle, count)
        config = config.copy()
        config["server-round"] = self.server.version + 1
        record = app.RecordDict({strategy.arrayrecord_key: self._outgoing, strategy.configrecord_key: config})
        messages = [app.Message(record, node, MessageType.TRAIN) for node in chosen]
        deadline = now + self.timeout
        for name, node in zip(self.grid.push_messages(messages), chosen, strict=True):
            if name is not None:
                self._sent[name] = _Sent(node, self.server.version, self.arrays, deadline)

    # ---- in ----------------------------------------------------------------------------------------------------------

    def collect(self) -> bool:
        """Take one reply; False when there is none."""
        self.stepped = False
        if not self._ready:
            names = list(self._sent)
            for begin in range(0, len(names), _CHUNK):
                self._ready.extend(self.grid.pull_messages(names[begin : begin + _CHUNK]))
                if self._ready:
                    break
        while self._ready:
            reply = self._ready.popleft()
            sent = self._sent.pop(reply.metadata.reply_to_message_id, None)
            if sent is not None:  # else given up
                self._last_reply = time.monotonic()
                self._pause = _FIRST_PAUSE
                self._accept(reply, sent)
                return True
        return False

    def _accept(self, reply: Message, sent: _Sent) -> None:
        if reply.has_error():
            _log.info("\t> Received error in reply from node %d: %s", sent.node, reply.error.reason)
            self._resting[sent.node] = time.monotonic() + _AFTER_ERROR
            return
        strategy = self.strategy
        behind = self.server.version - sent.version
        if strategy.max_staleness is not None and behind > strategy.max_staleness:
            _log.info("\t> Reply from node %d is %d steps old: not used", sent.node, behind)
            return
        content = reply.content
        try:
            weight = strategy._weight(content, sent.node)
            if strategy.weighted and weight == 0:
                _log.info("\t> Reply from node %d has weight 0: not used", sent.node)
                return
            delta = self._difference(_records.arrays_of(content, sent.node), sent)
            self.stepped = self.server.add(delta, sent.version, weight if strategy.weighted else 1.0, client=sent.node)
        except UpdateError as error:
            if strategy.invalid == "raise":
                raise
            _log.warning("\t> Dropped the reply from node %d: %s", sent.node, error)
            self._resting[sent.node] = time.monotonic() + _AFTER_ERROR
            return
        self._contents.append((sent.node, _records.without_arrays(content)))
        if self.stepped:
            self._step()

    def _difference(self, record: ArrayRecord, sent: _Sent) -> Any:
        model = _wire.model_of(record, sent.node, difference=True)
        found = _wire.packed_of(record, sent.node)
        floats = all(np.dtype(a.dtype).kind == "f" for a in sent.arrays.values())
        already = found is not None and found[0] == _wire.DIFFERENCE
        if isinstance(model, Encoded):
            if already and floats:
                return model
            model._order(Template(sent.arrays), sent.node)  # a few bytes may say they are terabytes
            model = model.decode(num_threads=self.strategy.num_threads)
        if not isinstance(model, Mapping) or set(model) != set(sent.arrays):
            raise StructureMismatch.of(sent.node, None, "the keys of the model that was sent", "others")
        return {key: self._subtract(model[key], base, already, sent.node, key) for key, base in sent.arrays.items()}

    def _subtract(self, value: Any, base: Any, already: bool, node: int, key: str) -> Any:
        try:
            here = value if isinstance(value, np.ndarray) else _wire.npy.array_in(value.data)
        except ValueError as error:
            raise DtypeMismatch.of(node, key, "an Array of .npy bytes", str(error)) from None
        there = _wire.npy.array_in(base.data)
        if here.dtype != there.dtype or here.shape != there.shape:
            raise DtypeMismatch.of(node, key, f"{there.dtype} of {there.shape}", f"{here.dtype} of {here.shape}")
        if here.dtype.kind == "b":
            raise DtypeMismatch.of(node, key, "numbers, which have differences", "bool")
        return here if already and here.dtype.kind == "f" else here - there

    def _step(self) -> None:
        self.arrays = _wire.to_record(self.server.model)
        self._outgoing = self.strategy._outgoing(self.arrays)
        contents = [c for _, c in sorted(self._contents, key=lambda pair: pair[0])]
        self._contents = []
        version = self.server.version
        self.result.train_metrics_clientapp[version] = self.strategy._metrics(contents)
        _log.info("[STEP %d] %s", version, self.result.train_metrics_clientapp[version])

    # ---- between -----------------------------------------------------------------------------------------------------

    def evaluate(self, function: Callable[[int, ArrayRecord], MetricRecord | None]) -> None:
        found = function(self.server.version, self.arrays)
        if found is not None:
            self.result.evaluate_metrics_serverapp[self.server.version] = found

    def nobody(self) -> bool:
        return time.monotonic() - self._last_reply > self.timeout

    def pause(self) -> None:
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, self.strategy.poll_interval)
