"""edgefast run: the main job."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    from edgefast.backends import streams
    from edgefast.federated.config import EngineName, Policy, RunConfig, Weights

    default = RunConfig()
    text = "federated training on sketched data: devices, sketch, queue, local training, aggregation, report"
    parser = commands.add_parser("run", help=text, description=text)
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="FILE", help=".npz, .npy, .csv or .parquet (default: scikit-learn's digits)")
    data.add_argument("--target", metavar="COLUMN", help="column of FILE that holds the class")
    data.add_argument(
        "--test-fraction", type=float, metavar="SHARE", help=f"kept for scoring ({default.test_fraction})"
    )
    job = parser.add_argument_group("job")
    job.add_argument("--devices", type=int, metavar="N", help=f"devices ({default.devices})")
    job.add_argument("--alpha", type=float, metavar="A", help=f"Dirichlet concentration of the split ({default.alpha})")
    job.add_argument("--rounds", type=int, metavar="N", help=f"rounds of averaging ({default.rounds})")
    job.add_argument("--epochs", type=int, metavar="N", help=f"local passes a round ({default.epochs})")
    job.add_argument("--batch", type=int, metavar="ROWS", help=f"rows of a mini-batch ({default.batch})")
    job.add_argument(
        "--learning-rate", type=float, metavar="RATE", help=f"step of the local training ({default.learning_rate})"
    )
    job.add_argument("--components", type=int, metavar="K", help=f"features after sketching ({default.components})")
    job.add_argument("--kind", choices=tuple(streams.KIND_NUMBERS), help=f"of the operator ({default.kind})")
    job.add_argument("--weights", choices=get_args(Weights), help=f"of a device in the mean ({default.weights})")
    job.add_argument(
        "--engine",
        choices=get_args(EngineName),
        help="local, or Flower's SuperLink and SuperNodes on 127.0.0.1 (needs edgefast[flower])",
    )
    job.add_argument(
        "--processes", action="store_true", default=None, help="each device in a process of its own (Linux, native)"
    )
    job.add_argument(
        "--device-timeout",
        type=float,
        metavar="SECONDS",
        help=f"with --processes: a round waits so long for late devices ({default.device_timeout:g})",
    )
    queue = parser.add_argument_group("queue between source and trainer")
    queue.add_argument("--queue-size", type=int, metavar="N", help=f"batches it holds ({default.queue_size})")
    queue.add_argument("--high-watermark", type=int, metavar="N", help="closes here (3/4 of the size)")
    queue.add_argument("--low-watermark", type=int, metavar="N", help="reopens here (1/4 of the high watermark)")
    queue.add_argument("--policy", choices=get_args(Policy), help=f"while it is closed ({default.policy})")
    rest = parser.add_argument_group("common")
    rest.add_argument(
        "--seed", type=int, metavar="N", help=f"of the operator, the split and the order ({default.seed})"
    )
    rest.add_argument("--backend", help="auto, native, numba or numpy")
    rest.add_argument("--threads", type=int, metavar="N", help="devices at work and threads of a kernel")
    rest.add_argument("--out", metavar="DIR", help="write model.npz, operator.bin, metrics.json and report.html there")
    rest.add_argument("--json", action="store_true", help="print the metrics as one JSON object, nothing else")
    parser.set_defaults(function=_run)


def _run(args: argparse.Namespace) -> int:
    with _ctrl_c_insists() as check:
        return _run_until(args, check)


@contextlib.contextmanager
def _ctrl_c_insists() -> Iterator[Callable[[], None]]:
    """A KeyboardInterrupt is lost where Python ignores exceptions: in a finalizer, in a callback of an import. The
    function of the block raises what came so far again."""
    came: list[object] = []

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    def interrupt(*_: object) -> None:
        came.append(_)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or somebody else's
        yield check
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run_until(args: argparse.Namespace, check: Callable[[], None]) -> int:
    import dataclasses

    from edgefast.cli._live import LiveView
    from edgefast.federated import InputError, Progress, RunConfig, digits, read_dataset, run, write_report
    from edgefast.files import replacing

    names = [field.name for field in dataclasses.fields(RunConfig)]
    config = RunConfig(**{n: getattr(args, n) for n in names if getattr(args, n) is not None})
    if args.target is not None and args.data is None:
        raise InputError("target: names a column of --data FILE, which is not given")
    if config.processes:
        from edgefast.federated.processes import prepare

        prepare(deaf=True)
    folder = None if args.out is None else _folder(Path(args.out))
    data = digits() if args.data is None else read_dataset(args.data, args.target)
    with LiveView(config, data.name) as view:

        def on_progress(progress: Progress) -> None:
            check()
            view.update(progress)

        result = run(config, data, on_progress=on_progress, publish=True)
    metrics = result.metrics
    if folder is not None:
        result.model.save(folder)
        with replacing(folder / "metrics.json") as file:
            file.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_report(metrics, folder / "report.html")
    if args.json:
        print(json.dumps(metrics, allow_nan=False))
    else:
        print("\n".join(_summary(metrics, folder)))
    if metrics["interrupted"]:
        done = len(metrics["rounds"])
        print(f"edgefast run: interrupted after {done} of {config.rounds} rounds", file=sys.stderr)
        return 130
    if metrics["deserted"]:
        done = len(metrics["rounds"])
        print(f"edgefast run: every device was lost, after {done} of {config.rounds} rounds", file=sys.stderr)
        return 1
    return 0


def _folder(folder: Path) -> Path:
    """Make the folder, and find out before the work that the results can be written."""
    import importlib.util

    from edgefast.errors import InputError

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder to write to, this is a file")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("the report in --out needs matplotlib; pip install 'edgefast[cli]'")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: no permission to write there")
    return folder


def _summary(metrics: dict[str, Any], folder: Path | None) -> list[str]:
    from edgefast.federated.report import counted, describe_faults

    def percent(value: float | None) -> str:
        return "not computed" if value is None else f"{value:.1%}"

    accuracy, queue, sent = metrics["accuracy"], metrics["queue"], metrics["uplink_bytes"]
    lines = [
        f"accuracy    federated {percent(accuracy['federated'])}, all rows in one place: same sketch "
        f"{percent(accuracy['centralised'])}, raw features {percent(accuracy['centralised_raw'])}",
        f"queue       closed {counted(queue['high_events'], 'time')}, fullest {queue['peak']} of {queue['maxsize']} "
        f"batches, {queue['dropped']} of {queue['offered']} dropped",
        f"uplink      {sent['updates']:,} bytes of updates, {sent['updates_without_sketch']:,} without the sketch",
        f"time        {metrics['seconds']:.2f} s for {counted(len(metrics['rounds']), 'round')}",
    ]
    lines += [f"{kind:12}{text}" for kind, text in describe_faults(metrics)]
    if folder is not None:
        lines.append(f"report      {folder / 'report.html'}")
    return lines
