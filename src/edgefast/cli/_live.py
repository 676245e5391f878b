"""Progress of a run on standard error: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from edgefast.federated import InputError, Progress, RunConfig

__all__ = ["LiveView"]


class LiveView:
    """Shows round, accuracy, queue depth and drops while a run is under way."""

    def __init__(self, config: RunConfig, name: str) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar
        except ImportError:
            raise InputError("the live view needs rich; pip install 'edgefast[cli]'") from None
        self._config = config
        self._round = 0
        self._told = 0  # faults printed
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        width = console.width
        columns = [  # and the least width at which each is shown: cut off in the middle none says anything
            (80, TextColumn(f"[bold]{name.replace('[', '(')}[/]")),
            (66, BarColumn(bar_width=24 if width >= 100 else 8)),
            (0, MofNCompleteColumn()),
            (0, TextColumn("{task.fields[accuracy]}")),
            (66, TextColumn("queue {task.fields[gauge]}")),
            (40, TextColumn("{task.fields[dropped]} dropped")),
            (40, TextColumn("{task.fields[lost]}")),
            (80, TimeElapsedColumn()),
        ]
        shown = [column for least, column in columns if width >= least]
        self._bar = Bar(*shown, console=console, disable=self._plain)
        self._task = self._bar.add_task("run", total=config.rounds, accuracy="", gauge="", dropped=0, lost="")

    def __enter__(self) -> LiveView:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Called by the run."""
        # A name or a reason may hold anything: printed as it is, it would be read as markup.
        for fault in progress.faults[self._told :]:
            self._bar.console.print(fault, style="yellow", markup=False, highlight=False)
        self._told = len(progress.faults)
        lost = self._config.devices - progress.devices
        accuracy = "" if progress.accuracy is None else f"accuracy {progress.accuracy:.1%}"
        if not self._plain:
            fields: dict[str, Any] = {
                "accuracy": accuracy,
                "dropped": progress.dropped,
                "gauge": self._gauge(progress),
                "lost": f"[red]{lost} lost[/]" if lost else "",
            }
            self._bar.update(self._task, completed=progress.round, **fields)
        elif progress.round > self._round and (
            progress.round in (1, progress.rounds) or progress.round % max(1, progress.rounds // 10) == 0
        ):
            depth = f"queue {progress.depth}/{self._config.queue_size}"
            rest = f"dropped {progress.dropped}  {progress.seconds:.1f} s"
            print(f"round {progress.round}/{progress.rounds}  {accuracy}  {depth}  {rest}", file=sys.stderr)
        self._round = progress.round

    def _gauge(self, progress: Progress) -> str:
        """Depth as a small bar up to the size, red while a queue is closed."""
        size, cells = self._config.queue_size, 8
        filled = min(cells, -(-progress.depth * cells // size))
        colour = "green" if progress.writable else "red"
        return f"[{colour}]{'█' * filled}[/][dim]{'░' * (cells - filled)}[/] {progress.depth}/{size}"
