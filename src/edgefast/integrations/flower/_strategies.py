"""Flower's strategies with this package's aggregation, streaming where the rule allows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from edgefast import aggregate, backends
from edgefast.aggregate import (
    Encoded,
    MeanAccumulator,
    NonFiniteUpdate,
    ServerOptimizer,
    StructureMismatch,
    TooFewUpdates,
    UpdateError,
    ZeroWeightError,
    _policy,
)
from edgefast.aggregate._policy import Accumulate, Ints
from edgefast.aggregate._template import Template
from edgefast.aggregate.mean import nonfinite_error
from edgefast.integrations.flower import _records, _wire
from edgefast.integrations.flower._flwr import (
    ArrayRecord,
    ConfigRecord,
    Grid,
    InconsistentMessageReplies,
    Message,
    MetricRecord,
    RecordDict,
    app,
)
from edgefast.integrations.flower._flwr import aggregate_metricrecords as _flower_metrics
from edgefast.integrations.flower._flwr import select_multikrum as _flower_select
from edgefast.integrations.flower._flwr import strategy as flower
from edgefast.integrations.flower._grid import Replies, StreamingGrid

__all__ = [
    "Bulyan",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedMedian",
    "FedProx",
    "FedTrimmedAvg",
    "FedYogi",
    "Krum",
    "MultiKrum",
    "RobustStrategy",
]

_log = logging.getLogger("flwr")

#: Replies that are all there are added so many at a time.
_BATCH = 16
#: Squared norms below it have distances and products a float64 holds.
_MOST_SQUARES = 2.0**1000

Invalid = Literal["raise", "drop"]
Downlink = Literal["float", "bfloat16"]

_OPTIONS = """
    Beside Flower's own arguments, all by keyword:

    Args:
        accumulate: "float64", "float32" or "reproducible", as in edgefast.aggregate.weighted_mean: the last gives the
            same bits whatever the order in which replies arrive.
        ints: what becomes of integer arrays, as in weighted_mean.
        invalid: what a reply does that does not fit (records, keys, shapes, dtypes, NaN, infinity, damaged bytes):
            "raise" ends the run with an error that names the node; "drop" leaves it out and logs why. Metrics that
            cannot be averaged with those of most replies are left out then, too.
        downlink: "float", or "bfloat16": the model goes out in half the bytes, to ClientApps with bfloat16_mod or
            compression_mod.
        buffer, poll_interval: of the StreamingGrid that start() puts around the grid.
        num_threads: threads of the kernels; None for the default (see edgefast.using).
"""


class _Edge:
    """What the strategies share: the options, the streaming grid, the model that went out, screening of replies."""

    _own = ("accumulate", "ints", "invalid", "downlink", "buffer", "poll_interval", "num_threads")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in self._own if name in kwargs}
        super().__init__(*args, **kwargs)
        self._configure(**own)

    def _configure(
        self,
        *,
        accumulate: Accumulate = "float64",
        ints: Ints = "round",
        invalid: Invalid = "raise",
        downlink: Downlink = "float",
        buffer: int = 2,
        poll_interval: float = 0.5,
        num_threads: int | None = None,
    ) -> None:
        _policy.check_options(accumulate, ints, "raise")
        _policy.check_choice(invalid, "invalid", ("raise", "drop"))
        _policy.check_choice(downlink, "downlink", ("float", "bfloat16"))
        self.accumulate: Accumulate = accumulate
        self.ints: Ints = ints
        self.invalid: Invalid = invalid
        self.downlink: Downlink = downlink
        self.buffer: int = buffer
        self.poll_interval: float = poll_interval
        self.num_threads: int | None = num_threads
        #: Seconds the last round spent on aggregation: adding replies up, the rule, the model's bytes.
        self.aggregation_seconds: float = 0.0
        #: The model of the round under way, as Arrays of .npy bytes.
        self._model: ArrayRecord | None = None

    # ---- Flower's hooks ----------------------------------------------------------------------------------------------

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Any:
        """Flower's start, with replies that are taken as they arrive."""
        if not isinstance(grid, StreamingGrid):
            grid = StreamingGrid(grid, buffer=self.buffer, poll_interval=self.poll_interval)
        return super().start(grid, *args, **kwargs)  # type: ignore[misc]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._model = _wire.decoded(arrays, "server")
        return self._configure_train(server_round, self._outgoing(arrays), config, grid)

    def _configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return super().configure_train(server_round, arrays, config, grid)  # type: ignore[misc]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return super().configure_evaluate(server_round, self._outgoing(arrays), config, grid)  # type: ignore[misc]

    def _outgoing(self, arrays: ArrayRecord) -> ArrayRecord:
        return _wire.to_bfloat16(arrays) if self.downlink == "bfloat16" else arrays

    # ---- replies -----------------------------------------------------------------------------------------------------

    def _take(
        self, replies: Iterable[Message], take: Callable[[list[_Reply]], dict[int, UpdateError]]
    ) -> list[RecordDict]:
        """Hand every reply to `take`, which gives the errors of those that do not fit, and forget its arrays.

        Returns what is left of the contents, in the order of the node ids: metrics do not depend on who was first.
        """
        rest: list[tuple[int, RecordDict]] = []
        failures = 0
        self.aggregation_seconds = 0.0
        try:
            for group in _groups(replies):
                batch: list[_Reply] = []
                errors: dict[int, UpdateError] = {}
                began = time.perf_counter()
                for reply in group:
                    node = reply.metadata.src_node_id
                    if reply.has_error():
                        failures += 1
                        _log.info("\t> Received error in reply from node %d: %s", node, reply.error.reason)
                        continue
                    try:
                        weight = self._weight(reply.content, node)
                        batch.append((reply.content, weight, node))
                    except UpdateError as error:
                        failures += self._dropped(error, node)
                if batch:
                    errors = take(batch)
                    self._spent(began)
                for place, (content, _, node) in enumerate(batch):
                    if place in errors:
                        failures += self._dropped(errors[place], node)
                    else:
                        rest.append((node, _records.without_arrays(content)))
                # The caller's loop and this one must not keep the last reply alive while the next one is awaited.
                batch, group, reply, content = [], [], None, None
        finally:
            if isinstance(replies, Replies):
                replies.close()
        _log.info("aggregate_train: Received %s results and %s failures", len(rest), failures)
        rest.sort(key=lambda pair: pair[0])
        return [content for _, content in rest]

    def _weight(self, content: RecordDict, node: int) -> float:
        return _records.weight_of(content, self.weighted_by_key, node, self.accumulate)  # type: ignore[attr-defined]

    def _dropped(self, error: UpdateError, node: int) -> int:
        """Log a reply that is left out; 1. With invalid="raise", raises the error."""
        if self.invalid == "raise":
            raise error
        _log.warning("\t> Dropped the reply from node %d: %s", node, error)
        return 1

    def _spent(self, began: float) -> None:
        self.aggregation_seconds += time.perf_counter() - began

    def _metrics(self, contents: list[RecordDict]) -> MetricRecord:
        key, function = self.weighted_by_key, self.train_metrics_aggr_fn  # type: ignore[attr-defined]
        if self.invalid == "raise":
            keys = [set(_records.metrics_of(c, "train")) for c in contents]
            if any(k != keys[0] for k in keys[1:]):
                raise InconsistentMessageReplies(reason="All MetricRecords must have the same keys for aggregation.")
            return function(contents, key)
        used = [contents[i] for i in _records.alike(contents, lengths=function is _flower_metrics)]
        if len(used) < len(contents):
            _log.warning("\t> Left out the metrics of %d replies: unlike the others'", len(contents) - len(used))
        if not any(_records.metrics_of(c, "train")[key] for c in used):
            return app.MetricRecord()  # weights that add up to 0 have no mean
        return function(used, key)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Flower's hook. With invalid="drop", without the replies whose metrics cannot be averaged with the others'."""
        if self.invalid == "drop":
            kept = []
            for reply in replies:
                try:
                    if not reply.has_error():
                        self._weight(reply.content, reply.metadata.src_node_id)
                    kept.append(reply)
                except UpdateError as error:
                    self._dropped(error, reply.metadata.src_node_id)
            answers = [reply for reply in kept if not reply.has_error()]
            lengths = self.evaluate_metrics_aggr_fn is _flower_metrics  # type: ignore[attr-defined]
            fitting = [answers[i] for i in _records.alike([reply.content for reply in answers], lengths=lengths)]
            for reply in answers:
                if not any(reply is other for other in fitting):
                    _log.warning("\t> Dropped the metrics of node %d: unlike the others'", reply.metadata.src_node_id)
            key = self.weighted_by_key  # type: ignore[attr-defined]
            if fitting and not any(_records.metrics_of(reply.content, "evaluate")[key] for reply in fitting):
                return None
            replies = [*fitting, *(reply for reply in kept if reply.has_error())]
        return super().aggregate_evaluate(server_round, replies)  # type: ignore[misc]

    def _template(self, arrays: ArrayRecord | None) -> ArrayRecord | None:
        """What replies have to look like: the model that was sent. Flower lets nodes answer with something else as long
        as all do; so does invalid="raise": the first reply then is the measure."""
        if self._model is not None and (arrays is None or self.invalid == "drop" or set(arrays) == set(self._model)):
            return self._model
        return arrays


#: Content, weight and node.
_Reply = tuple[RecordDict, float, int]


def _groups(replies: Iterable[Message]) -> Iterable[list[Message]]:
    """One reply after the other as they arrive; some at a time where the caller holds them all anyway."""
    if isinstance(replies, (list, tuple)):
        return (list(replies[i : i + _BATCH]) for i in range(0, len(replies), _BATCH))
    return ([reply] for reply in replies)


class _Sums:
    """The running sums of the replies of a round: models, compressed models and partial sums in one accumulator,
    differences to the model that was sent in another."""

    def __init__(self, strategy: _Edge) -> None:
        self._strategy = strategy
        self.models: MeanAccumulator | None = None
        self.differences: MeanAccumulator | None = None
        self._previous: MeanAccumulator | None = None
        self.template: ArrayRecord | None = None

    def reset(self) -> None:
        self._previous = self.models or self.differences or self._previous
        self.models = self.differences = None

    def add(self, batch: list[_Reply]) -> dict[int, UpdateError]:
        """Add replies in their order. By place in the batch, the errors of those that do not fit."""
        errors: dict[int, UpdateError] = {}
        run: list[tuple[int, Any, float, int]] = []
        last: MeanAccumulator | None = None
        for place, (content, weight, node) in enumerate(batch):
            try:
                record = _records.arrays_of(content, node)
                found = _wire.packed_of(record, node)
                stype = found[0] if found else None
                if found and stype == _wire.SUMS:
                    self._flush(last, run, errors)
                    self._merge(_wire.sums_of(found[1], node), node)
                    continue
                acc = self._accumulator(None if found else record, stype, node)
                model = _wire.model_of(record, node, difference=True)
            except UpdateError as error:
                errors[place] = self._refused(error)
                continue
            if acc is not last:
                self._flush(last, run, errors)
                last = acc
            run.append((place, model, weight, node))
        self._flush(last, run, errors)
        # The first reply may have been the measure of the others, and then not have fitted itself.
        if self.models is not None and not self.models.count:
            self._previous, self.models = self.models, None
        if self.differences is not None and not self.differences.count:
            self._previous, self.differences = self.differences, None
        return errors

    def _flush(
        self,
        acc: MeanAccumulator | None,
        run: list[tuple[int, Any, float, int]],
        errors: dict[int, UpdateError],
    ) -> None:
        if acc is None or not run:
            return
        try:
            acc.add_many([m for _, m, _, _ in run], [w for *_, w, _ in run], clients=[n for *_, n in run])
        except UpdateError as error:
            self._refused(error)
            for place, model, weight, node in run:
                try:
                    acc.add(model, weight, client=node)
                except UpdateError as found:
                    errors[place] = found
        run.clear()

    def _refused(self, error: UpdateError) -> UpdateError:
        if self._strategy.invalid == "raise":
            raise error
        return error

    def _accumulator(self, arrays: ArrayRecord | None, stype: str | None, node: int) -> MeanAccumulator:
        difference = stype == _wire.DIFFERENCE
        if difference and self._strategy._model is None:
            raise StructureMismatch.of(node, None, "a model: none was sent that a difference could be added to", stype)
        acc = (self.differences if difference else self.models) or self._begin(arrays)
        if acc is None:
            raise StructureMismatch.of(node, None, "a model: none was sent that says what this one is", stype)
        if difference:
            self.differences = acc
        else:
            self.models = acc
        return acc

    def _merge(self, sums: MeanAccumulator, node: int) -> None:
        acc = self._accumulator(None, _wire.SUMS, node)
        try:
            if not sums._is_finite():
                raise NonFiniteUpdate.of(node, None, "finite sums", "NaN or infinity")
            acc.merge(sums)
        except StructureMismatch as error:
            raise StructureMismatch.of(node, None, error.expected, error.got) from None
        except UpdateError:
            raise
        except ValueError as error:  # reproducible sums hold so many updates and no more
            raise StructureMismatch.of(node, None, "sums of fewer updates", str(error)) from None

    def _begin(self, arrays: ArrayRecord | None) -> MeanAccumulator | None:
        template = self._strategy._template(arrays)
        if template is None:
            return None
        before, like = self._previous, self.template
        if before is not None and like is not None and self._strategy.ints != "skip" and _same(like, template):
            # The memory of the last round: fresh pages would cost more than the sums.
            self._previous = None
            before.reset()
            return before
        self.template = template
        return MeanAccumulator(
            template,
            accumulate=self._strategy.accumulate,
            ints=self._strategy.ints,
            num_threads=self._strategy.num_threads,
        )


def _same(a: ArrayRecord, b: ArrayRecord) -> bool:
    """Whether two records have the same keys, shapes and dtypes, in the same order."""
    return list(a) == list(b) and all(
        x.dtype == y.dtype and tuple(x.shape) == tuple(y.shape) and x.stype == y.stype
        for x, y in zip(a.values(), b.values(), strict=True)
    )


class _Streaming(_Edge):
    """Strategies whose rule needs the mean alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums = _Sums(self)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's hook: every reply goes into the sums when it comes, and is dropped."""
        self._sums.reset()
        contents = self._take(replies, self._sums.add)
        if not contents:
            return None, None
        began = time.perf_counter()
        try:
            arrays = self._finish()
        except ZeroWeightError as error:
            if self.invalid == "raise":
                raise
            _log.warning("aggregate_train: the model stays as it was: %s", error)
            return None, None
        self._spent(began)
        return arrays, self._metrics(contents)

    def _finish(self) -> ArrayRecord:
        mean = self._mean()
        return _wire.to_record(mean.result() if isinstance(mean, MeanAccumulator) else mean)

    def _mean(self) -> Any:
        """The mean of the round, or the accumulator that holds it."""
        models, differences = self._sums.models, self._sums.differences
        if differences is None:
            if models is None:
                raise ZeroWeightError("expected at least one reply of weight above 0, got none")
            return models
        moved = self._moved(differences.result())
        if models is None:
            return moved
        # Some nodes compress and some do not.
        return aggregate.weighted_mean(
            [models.result(), moved],
            [models.weight, differences.weight],
            ints=self.ints,
            num_threads=self.num_threads,
        )

    def _moved(self, mean: Any) -> Any:
        """The model that was sent plus a mean difference: float arrays move, others are the mean as it is."""
        assert self._model is not None
        moved = {}
        for key, array in self._model.items():
            base, change = _wire.npy.array_in(array.data), _wire.npy.array_in(mean[key].data)
            moved[key] = mean[key] if base.dtype.kind != "f" else np.add(base, change, dtype=base.dtype)
        return moved


class FedAvg(_Streaming, flower.FedAvg):
    __doc__ = (
        """Flower's FedAvg in O(model) memory: replies are added up as they arrive, each read once and then dropped.
"""
        + _OPTIONS
        + """
    Train metrics functions get the replies' contents without the arrays, in the order of the node ids.

    Raises (aggregate_train):
        ZeroWeightError, NonFiniteUpdate, StructureMismatch, ShapeMismatch, DtypeMismatch, IntegerRange: ValueErrors
            that name the node, with invalid="raise".
        InconsistentMessageReplies: MetricRecords with different keys, as in Flower.
"""
    )


class FedProx(_Streaming, flower.FedProx):
    __doc__ = "Flower's FedProx(proximal_mu), which is FedAvg on the server: see this package's FedAvg.\n" + _OPTIONS


class _Optimizing(_Streaming):
    """The mean, and a step of a server optimizer on the way out of the sums."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: state_dict() and load_state_dict() save and restore the strategy's state.
        self.optimizer: ServerOptimizer = self._optimizer()

    def _optimizer(self) -> ServerOptimizer:
        raise NotImplementedError

    def _configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        # Flower's FedOpt would copy the model here; these optimizers read it in place.
        return flower.FedAvg.configure_train(self, server_round, arrays, config, grid)  # type: ignore[arg-type]

    def _finish(self) -> ArrayRecord:
        if self._model is None:
            raise ValueError(f"{type(self).__name__}: expected configure_train before aggregate_train, got none")
        return _wire.to_record(self.optimizer.step(self._model, self._mean()))


_FUSED = """
    The step runs on the accumulator's float64 sums, in one pass with the division; the optimizer's state is in
    `optimizer` (state_dict, load_state_dict). Integer arrays take the mean. With the options of this package's FedAvg.
"""


class FedAvgM(_Optimizing, flower.FedAvgM):
    __doc__ = (
        """Flower's FedAvgM, streaming and fused: see edgefast.aggregate.FedAvgM.
"""
        + _FUSED
    )

    def _optimizer(self) -> ServerOptimizer:
        return aggregate.FedAvgM(self.server_learning_rate, self.server_momentum, num_threads=self.num_threads)

    def _finish(self) -> ArrayRecord:
        # Flower's rule: without momentum and at rate 1 it is the mean, to the last bit.
        return super()._finish() if self.server_opt else _Streaming._finish(self)


class _Adaptive(_Optimizing):
    _class: Any

    def _optimizer(self) -> ServerOptimizer:
        return self._class(
            self.eta,  # type: ignore[attr-defined]
            beta_1=self.beta_1,  # type: ignore[attr-defined]
            beta_2=self.beta_2,  # type: ignore[attr-defined]
            tau=self.tau,  # type: ignore[attr-defined]
            preset="flower",
            num_threads=self.num_threads,
        )


class FedAdagrad(_Adaptive, flower.FedAdagrad):
    __doc__ = "Flower's FedAdagrad, streaming and fused: see edgefast.aggregate.FedAdagrad.\n" + _FUSED
    _class = aggregate.FedAdagrad


class FedAdam(_Adaptive, flower.FedAdam):
    __doc__ = "Flower's FedAdam, streaming and fused: see edgefast.aggregate.FedAdam.\n" + _FUSED
    _class = aggregate.FedAdam


class FedYogi(_Adaptive, flower.FedYogi):
    __doc__ = "Flower's FedYogi, streaming and fused: see edgefast.aggregate.FedYogi.\n" + _FUSED
    _class = aggregate.FedYogi


# ---- robust rules ----------------------------------------------------------------------------------------------------


class _Gathering(_Edge):
    """Strategies whose rule needs all models: their bytes are kept as they came, and read in place."""

    #: Whether the rule stops at distances beyond float64.
    _distances = False

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's hook. The replies are not changed (Flower's robust strategies take the arrays out of them)."""
        models: list[tuple[int, Any, float]] = []

        def keep(batch: list[_Reply]) -> dict[int, UpdateError]:
            errors: dict[int, UpdateError] = {}
            for place, (content, weight, node) in enumerate(batch):
                try:
                    record = _records.arrays_of(content, node)
                    model = _wire.model_of(record, node, difference=True)
                    if isinstance(model, Encoded):
                        found = _wire.packed_of(record, node)
                        model = self._whole(model, found is not None and found[0] == _wire.DIFFERENCE, node)
                    models.append((node, self._checked(model, record, node), weight))
                except UpdateError as error:
                    if self.invalid == "raise":
                        raise
                    errors[place] = error
            return errors

        contents = self._take(replies, keep)
        if not contents:
            return None, None
        models.sort(key=lambda m: m[0])
        if not self._enough(len(models)):
            return None, None
        began = time.perf_counter()
        try:
            value, used = self._rule([m for _, m, _ in models], [w for _, _, w in models])
        except (TooFewUpdates, ZeroWeightError) as error:
            if self.invalid == "raise":
                raise
            _log.warning("aggregate_train: the model stays as it was: %s", error)
            return None, None
        except UpdateError as error:
            if isinstance(error.client, int):  # its place among the models: say which node that is
                raise type(error).of(models[error.client][0], error.key, error.expected, error.got) from None
            raise
        arrays = _wire.to_record(value)
        self._spent(began)
        if used is not None:
            contents = [contents[i] for i in used]
        return arrays, self._metrics(contents)

    def _whole(self, encoded: Encoded, difference: bool, node: int) -> Any:
        """A compressed model, expanded: distances and ranks need its values."""
        if self._model is not None:  # a few bytes may say they are terabytes
            encoded._order(Template(self._model), node)
        elif difference:
            raise StructureMismatch.of(node, None, "a model: none was sent that a difference could be added to", "one")
        arrays = encoded.decode(num_threads=self.num_threads)
        if not difference or self._model is None:
            return arrays
        for key, array in self._model.items():
            base = _wire.npy.array_in(array.data)
            if base.dtype.kind == "f":
                arrays[key] = np.add(base, arrays[key], dtype=base.dtype)
        return arrays

    def _checked(self, model: Any, record: ArrayRecord, node: int) -> Any:
        """The model; with invalid="drop" once it is known to fit and to be finite. Otherwise the rule finds out."""
        example = self._template(record if isinstance(model, ArrayRecord) else None)
        if self.invalid == "drop" and example is not None:
            template = Template(example)
            arrays = template.flatten(model, node)
            if self.ints == "round":
                _policy.check_integers(arrays, template.keys, node)
            if not backends.kernels().all_finite(arrays, backends.num_threads(self.num_threads)):
                raise nonfinite_error(arrays, template.keys, node)
            if self._distances and any(a.dtype == np.float64 for a in arrays):
                squares = np.zeros(1)
                backends.kernels().square_norms([arrays], None, squares, backends.num_threads(self.num_threads))
                if not squares[0] < _MOST_SQUARES:
                    raise NonFiniteUpdate.of(node, None, "a norm below 2**500", "a larger one")
        return model

    def _enough(self, count: int) -> bool:
        return True

    def _rule(self, models: list[Any], weights: list[float]) -> tuple[Any, Sequence[int] | None]:
        """The aggregated model, and which replies the metrics are of (None: all)."""
        raise NotImplementedError


class FedMedian(_Gathering, flower.FedMedian):
    __doc__ = "Flower's FedMedian by edgefast.aggregate.median. The replies stay as they are.\n" + _OPTIONS

    def _rule(self, models: list[Any], weights: list[float]) -> tuple[Any, Sequence[int] | None]:
        return aggregate.median(models, ints=self.ints, num_threads=self.num_threads), None


class FedTrimmedAvg(_Gathering, flower.FedTrimmedAvg):
    __doc__ = "Flower's FedTrimmedAvg(beta=0.2) by edgefast.aggregate.trimmed_mean.\n" + _OPTIONS

    def _rule(self, models: list[Any], weights: list[float]) -> tuple[Any, Sequence[int] | None]:
        return aggregate.trimmed_mean(models, trim=self.beta, ints=self.ints, num_threads=self.num_threads), None


class MultiKrum(_Gathering, flower.MultiKrum):
    __doc__ = (
        """Flower's MultiKrum(num_malicious_nodes, num_nodes_to_select) by edgefast.aggregate.multi_krum: right where
    Flower's float32 distances are not. Metrics are those of the selected nodes.
"""
        + _OPTIONS
    )

    def _rule(self, models: list[Any], weights: list[float]) -> tuple[Any, Sequence[int] | None]:
        if len(models) == 1:
            return models[0], None
        value, info = aggregate.multi_krum(
            models,
            self.num_malicious_nodes,
            min(self.num_nodes_to_select, len(models)),
            weights=weights,
            neighbours="flower",
            ints=self.ints,
            num_threads=self.num_threads,
            return_info=True,
        )
        return value, info.selected


class Krum(MultiKrum, flower.Krum):
    __doc__ = "Flower's Krum(num_malicious_nodes) by edgefast.aggregate.krum.\n" + _OPTIONS


class Bulyan(_Gathering, flower.Bulyan):
    __doc__ = (
        """Flower's Bulyan(num_malicious_nodes) by edgefast.aggregate.bulyan.

    Flower's `selection_rule` is kept: without one (or with this package's select_multikrum) the one-shot selection of
    Flower 1.22 and later; with another, its choice, then this package's second step. Fewer than 4f + 3 replies: the
    round is skipped, as in Flower.
"""
        + _OPTIONS
    )

    def _enough(self, count: int) -> bool:
        least = 4 * self.num_malicious_nodes + 3
        if count < least:
            _log.warning(
                "Insufficient replies, skipping Bulyan aggregation: Required at least %d, got %d", least, count
            )
        return count >= least

    def _rule(self, models: list[Any], weights: list[float]) -> tuple[Any, Sequence[int] | None]:
        f = self.num_malicious_nodes
        if self.selection_rule in (_flower_select, _records.select_multikrum):
            value, info = aggregate.bulyan(
                models, f, selection="one-shot", ints=self.ints, num_threads=self.num_threads, return_info=True
            )
            return value, sorted(info.selected)
        contents = [
            app.RecordDict(
                {
                    "arrays": m if isinstance(m, ArrayRecord) else _wire.to_record(m),
                    "metrics": app.MetricRecord({self.weighted_by_key: w}),
                }
            )
            for m, w in zip(models, weights, strict=True)
        ]
        places = {id(c): i for i, c in enumerate(contents)}
        chosen = [places[id(c)] for c in self.selection_rule(contents, f, len(models) - 2 * f)]
        value = aggregate.meamed([models[i] for i in chosen], 2 * f, ints=self.ints, num_threads=self.num_threads)
        return value, chosen


Rule = Literal[
    "median",
    "trimmed_mean",
    "meamed",
    "krum",
    "multi_krum",
    "bulyan",
    "geometric_median",
    "centered_clip",
]
Before = Literal["nnm", "bucketing", "clip_by_global_norm"]
_RULES: tuple[str, ...] = get_args(Rule)
_BEFORE: tuple[str, ...] = get_args(Before)


class RobustStrategy(_Gathering, flower.FedAvg):
    __doc__ = (
        """FedAvg with any robust rule of edgefast.aggregate in place of the mean.

    RobustStrategy("geometric_median"), RobustStrategy("centered_clip", {"tau": 10.0}),
    RobustStrategy("trimmed_mean", {"f": 2}, before=("nnm", {"f": 2})).

    Args:
        rule: name of a function of edgefast.aggregate: "median", "trimmed_mean", "meamed", "krum", "multi_krum",
            "bulyan", "geometric_median" or "centered_clip"; or a callable (models, weights) -> model. Centred clipping
            starts from the model that was sent.
        options: its keyword arguments.
        before: what is done to the models first: ("nnm", {"f": 2}), ("bucketing", {"s": 2, "seed": 0}) or
            ("clip_by_global_norm", {"max_norm": 1.0}). Bucketing's seed moves on by one every round.
        weighted: give the weights to geometric_median and multi_krum, which take them.
        fraction_train and so on: FedAvg's, by keyword.
"""
        + _OPTIONS
    )
    _distances = True

    def __init__(
        self,
        rule: Rule | Callable[[list[Any], list[float]], Any],
        options: dict[str, Any] | None = None,
        *,
        before: tuple[Before, dict[str, Any]] | None = None,
        weighted: bool = False,
        **kwargs: Any,
    ) -> None:
        if not callable(rule):
            _policy.check_choice(rule, "rule", _RULES)
        if before is not None:
            _policy.check_choice(before[0], "before", _BEFORE)
        if weighted and rule not in ("geometric_median", "multi_krum"):
            raise ValueError(f"weighted: expected False with rule={rule!r}, which takes no weights, got True")
        super().__init__(**kwargs)
        self.rule: Rule | Callable[[list[Any], list[float]], Any] = rule
        self.options: dict[str, Any] = dict(options or {})
        self.before: tuple[Before, dict[str, Any]] | None = before
        self.weighted: bool = weighted
        self._round = 0

    def summary(self) -> None:
        _log.info("\t├──> Robust rule: %s %s", self.rule, self.options or "")
        super().summary()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self._round = server_round
        return super().aggregate_train(server_round, replies)

    def _rule(self, models: list[Any], weights: list[float]) -> tuple[Any, Sequence[int] | None]:
        common: dict[str, Any] = {"ints": self.ints, "num_threads": self.num_threads}
        if self.before is not None:
            name, options = self.before
            options = dict(options)
            if name == "bucketing":
                options["seed"] = (options.get("seed", 0) + self._round) % (1 << 64)
            models = getattr(aggregate, name)(models, **options, **common)
        if callable(self.rule):
            return self.rule(models, weights), None
        options = dict(self.options)
        if self.weighted and len(weights) == len(models):
            options["weights"] = weights
        if self.rule == "centered_clip" and self._model is not None:
            options.setdefault("center", self._model)
        return getattr(aggregate, self.rule)(models, **common, **options), None
