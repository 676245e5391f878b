"""Flower's names. To a type checker they are Any: whether this package's types are complete must not depend on whether
Flower is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "Array",
    "ArrayRecord",
    "ConfigRecord",
    "Context",
    "Grid",
    "GridBase",
    "InconsistentMessageReplies",
    "Message",
    "MessageType",
    "MetricRecord",
    "RecordDict",
    "aggregate_metricrecords",
    "app",
    "clientapp",
    "select_multikrum",
    "serverapp",
    "strategy",
]

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    #: flwr.app and so on, to make objects with.
    app: Any
    clientapp: Any
    serverapp: Any
    Array: TypeAlias = Any
    ArrayRecord: TypeAlias = Any
    ConfigRecord: TypeAlias = Any
    Context: TypeAlias = Any
    Grid: TypeAlias = Any
    Message: TypeAlias = Any
    MetricRecord: TypeAlias = Any
    RecordDict: TypeAlias = Any
    MessageType: Any

    class _Base:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

    class GridBase(_Base): ...

    class InconsistentMessageReplies(BaseException):
        def __init__(self, reason: str) -> None: ...

    def aggregate_metricrecords(records: Any, weighting_metric_name: str) -> Any: ...

    def select_multikrum(contents: Any, num_malicious_nodes: int, num_nodes_to_select: int) -> Any: ...

    class strategy:
        Result: Any

        class FedAvg(_Base):
            configure_train: Any

            def summary(self) -> None: ...

        class FedProx(FedAvg): ...

        class FedAvgM(FedAvg): ...

        class FedAdagrad(FedAvg): ...

        class FedAdam(FedAvg): ...

        class FedYogi(FedAvg): ...

        class FedMedian(FedAvg): ...

        class FedTrimmedAvg(FedAvg): ...

        class MultiKrum(FedAvg): ...

        class Krum(MultiKrum): ...

        class Bulyan(FedAvg): ...
else:
    from flwr import app, clientapp, serverapp
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
    from flwr.serverapp import Grid, strategy
    from flwr.serverapp.exception import InconsistentMessageReplies
    from flwr.serverapp.strategy.multikrum import select_multikrum
    from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

    GridBase = Grid
