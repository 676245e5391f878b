"""A SuperLink and SuperNodes as processes of this machine, on loopback, gone when the block ends.

For tests, demonstrations and `edgefast run --engine flower`. No TLS, no authentication: 127.0.0.1 only. Nothing is
read from or written to ~/.flwr; telemetry, update checks and the installation of dependencies at run time are off.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Deployment", "DeploymentError"]

_HOST = "127.0.0.1"
_CONNECTION = "edgefast-local"
_GRACE = 1.5  # seconds from SIGTERM to SIGKILL; a SuperNode takes 3 to say goodbye
_LAST_WAIT = 10.0  # seconds for which those that have been killed are waited for
_POLL = "0.1"  # seconds between two looks of Flower's SuperExec for work; its default of 1 s is for machines far apart


class DeploymentError(RuntimeError):
    """Flower's processes could not be started, or ended before their time."""


class Deployment:
    """SuperLink and SuperNodes; use it as a context manager.

    Args:
        nodes: node_config of each SuperNode: values are strings, numbers or booleans.
        folder: an existing folder for FLWR_HOME of every process and for logs; the caller removes it.
        start_timeout: seconds the SuperLink may take to listen.

    Raises (on entry):
        DeploymentError: Flower's commands are missing, or the SuperLink does not come up.

    Attributes:
        port: of the SuperLink.
        nodes: the SuperNodes' processes.
    """

    def __init__(
        self, nodes: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str], *, start_timeout: float = 60
    ):
        self.folder: Path = Path(folder)
        self.port: int = 0
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._configs = list(nodes)
        self._timeout = start_timeout
        self._processes: list[subprocess.Popen[bytes]] = []
        self._scripts = sysconfig.get_path("scripts")
        if not os.access(os.path.join(self._scripts, "flower-superlink"), os.X_OK):
            raise DeploymentError(f"no flower-superlink in {self._scripts}; pip install 'edgefast[flower]'")

    # ---- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._start_link()
            for i, config in enumerate(self._configs):
                self.nodes.append(self._start_node(i, config))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_link(self) -> None:
        for attempt in range(3):  # the port is free when we look, and somebody else's when the SuperLink does
            self.port = free_port()
            link = self._start(
                "link",
                "flower-superlink",
                *("--insecure", "--host", _HOST, "--port", str(self.port)),
                "--disable-runtime-dependency-installation",
            )
            end = time.monotonic() + self._timeout
            while link.poll() is None and time.monotonic() < end:
                with contextlib.suppress(OSError), socket.create_connection((_HOST, self.port), timeout=1):
                    config = f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
                    config += f'address = "{_HOST}:{self.port}"\ninsecure = true\n'
                    (self._home("run") / "config.toml").write_text(config)
                    return
                time.sleep(0.05)
            if link.poll() is None or attempt == 2:
                raise DeploymentError(f"the SuperLink does not listen on port {self.port}:\n{self.log('link')}")

    def _start_node(self, number: int, config: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        return self._start(
            f"node-{number}",
            "flower-supernode",
            *("--insecure", "--superlink", f"{_HOST}:{self.port}", "--host", _HOST, "--port", str(free_port())),
            *("--node-config", " ".join(f"{k}={_toml(v)}" for k, v in config.items())),
        )

    def run(self, app: str | os.PathLike[str]) -> subprocess.Popen[bytes]:
        """Submit the app in a folder and follow it: `flwr run --stream`, whose output is log("run").

        The process ends when the run does. Its exit status says nothing about the app's success.
        """
        return self._start("run", "flwr", "run", os.fspath(app), _CONNECTION, "--stream")

    def _home(self, name: str) -> Path:
        home = self.folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        return home

    def _start(self, name: str, command: str, *args: str) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            # SuperLink and SuperNode look for their helpers on the path.
            "PATH": self._scripts + os.pathsep + os.environ.get("PATH", os.defpath),
            "FLWR_HOME": str(self._home(name)),  # one each: they would unpack the app at the same time
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _POLL,
            "PYTHONUNBUFFERED": "1",
        }
        with open(self.folder / f"{name}.log", "ab") as log:
            # A session of its own: Ctrl-C is ours to handle, and a group can be ended as a whole.
            process = subprocess.Popen(
                [sys.executable, os.path.join(self._scripts, command), *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=self.folder,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def log(self, name: str, lines: int = 30) -> str:
        """The last lines "link", "node-0" ... or "run" printed."""
        path = self.folder / f"{name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def kill_node(self, number: int) -> None:
        """SIGKILL to a SuperNode and its helpers, as when a device loses power."""
        node = self.nodes[number]
        _signal_group(node, signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        """End every process that was started; at most a few seconds. May be called again."""
        for process in self._processes:
            _signal_group(process, signal.SIGTERM)
        end = time.monotonic() + _GRACE
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.05, end - time.monotonic()))
        for process in self._processes:
            _signal_group(process, signal.SIGKILL)
            process.wait()
        # Helpers in sessions of their own notice that their parents are gone, and end; who does not in time is ended,
        # and so is what it started in the meantime. A killed process takes a moment to be gone.
        end = time.monotonic() + _GRACE
        while (left := self.remaining()) and time.monotonic() < end + _LAST_WAIT:
            if time.monotonic() >= end:
                for pid in left:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._processes, self.nodes = [], []

    def remaining(self) -> list[int]:
        """Process ids of descendants that still run, by the FLWR_HOME they inherited; empty where there is no /proc."""
        mark = f"FLWR_HOME={self.folder}{os.sep}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes() and not _is_zombie(entry):
                    found.append(int(entry.name))
        return found


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _is_zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def free_port() -> int:
    """A port of 127.0.0.1 nobody listens on."""
    with socket.socket() as s:
        s.bind((_HOST, 0))
        return s.getsockname()[1]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else f'"{value}"'


def write_app(folder: Path, name: str, server: str, client: str, config: Mapping[str, Any]) -> Path:
    """A Flower app in folder/name that takes its ServerApp and ClientApp from installed modules ("module:name").

    Returns:
        The folder to give to Deployment.run.
    """
    package = name.replace("-", "_")
    app = folder / name
    (app / package).mkdir(parents=True)
    lines = "".join(f"{key} = {_toml(value)}\n" for key, value in config.items())
    (app / "pyproject.toml").write_text(_PYPROJECT.format(name=name, package=package, config=lines))
    (app / "LICENSE").write_text("MIT\n")
    (app / package / "__init__.py").write_text("")
    imports = [
        f"from {where.partition(':')[0]} import {where.partition(':')[2]} as {as_}"
        for where, as_ in ((client, "client"), (server, "server"))
    ]
    (app / package / "app.py").write_text("\n".join([*imports, "", '__all__ = ["client", "server"]', ""]))
    return app


_PYPROJECT = """\
[project]
name = "{name}"
version = "1.0.0"
description = "edgefast on Flower"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.22,<2"]

[tool.flwr.app]
publisher = "edgefast"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "{package}.app:server"
clientapp = "{package}.app:client"

[tool.flwr.app.config]
{config}"""
