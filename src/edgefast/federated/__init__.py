"""The main job: federated training on sketched data, the three loops joined. `edgefast run` on the command line."""

from __future__ import annotations

from edgefast.errors import InputError
from edgefast.federated.config import RunConfig
from edgefast.federated.data import Dataset, digits, read_dataset, read_features
from edgefast.federated.job import Progress, RunResult, run
from edgefast.federated.model import Model, load_model
from edgefast.federated.partition import dirichlet_partition
from edgefast.federated.report import write_report

__all__ = [
    "Dataset",
    "InputError",
    "Model",
    "Progress",
    "RunConfig",
    "RunResult",
    "digits",
    "dirichlet_partition",
    "load_model",
    "read_dataset",
    "read_features",
    "run",
    "write_report",
]
