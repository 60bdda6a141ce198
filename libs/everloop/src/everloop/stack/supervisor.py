"""supervisord: its configuration, generated from the parts, and what is said to it over its Unix socket."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from everloop.stack.errors import PartFailed, StackError
from everloop.stack.home import Home
from everloop.stack.part import Part
from everloop.stack.private_file import write_private
from everloop.stack.processes import PART_MARK, STACK_MARK

__all__ = ["ProcessState", "Supervisor", "render"]

_NOT_RUNNING, _ALREADY_STARTED, _NO_SUCH_PART = 70, 60, 10

# A developer's own settings for these tools must not reach the stack's parts.
_NOT_INHERITED = ("AWS_", "MLFLOW_", "RAY_", "EVERLOOP_STACK", "EVERLOOP_PART")


@dataclass(frozen=True)
class ProcessState:
    """What supervisord knows about a part: `state` as it names it (RUNNING, BACKOFF, FATAL, …)."""

    name: str
    state: str
    pid: int
    started: float
    reason: str


def render(home: Home, parts: Iterable[Part], environment: Mapping[str, str]) -> str:
    """Return the configuration that supervises `parts`; each is started by name, none by itself.

    Raises:
        StackError: A value cannot be written in supervisord's syntax.
    """
    sections = [
        "[unix_http_server]",
        f"file={_plain(home.run / 'supervisor.sock')}",
        "chmod=0700",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        "[supervisord]",
        f"logfile={_plain(home.log('supervisord'))}",
        "logfile_maxbytes=5MB",
        "logfile_backups=1",
        f"pidfile={_plain(home.run / 'supervisord.pid')}",
        f"directory={_plain(home.root)}",
        *(["user=root"] if os.getuid() == 0 else []),
    ]
    for part in parts:
        command = (
            ("nice", "-n", str(part.niceness), *part.command) if part.niceness else part.command
        )
        own = {**environment, **part.environment, PART_MARK: part.name}
        sections += [
            f"[program:{part.name}]",
            f"command={_plain(shlex.join(command))}",
            f"environment={','.join(f'{key}={_quoted(key, value)}' for key, value in own.items())}",
            "autostart=false",
            "autorestart=true",
            "startsecs=1",
            # The pause between tries grows by a second each time: this keeps trying for over 7 minutes.
            "startretries=30",
            "stopsignal=TERM",
            f"stopwaitsecs={part.stop_seconds}",
            "stopasgroup=true",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={_plain(home.log(part.name))}",
            "stdout_logfile_maxbytes=20MB",
            "stdout_logfile_backups=2",
        ]
    return "\n".join(sections) + "\n"


def _plain(value: object) -> str:
    text = str(value)
    if "\n" in text or " ;" in text or " #" in text:
        raise StackError(f"cannot be written in supervisord's configuration: {text!r}")
    return text.replace("%", "%%")


def _quoted(key: str, value: str) -> str:
    # supervisord has no escapes, and takes quotes off both ends of a value however many there are.
    if '"' in value or "\n" in value or value != value.strip("'"):
        # Without its value, which may be a secret.
        raise StackError(f"{key} holds what cannot be an environment value under supervisord")
    return f'"{_plain(value)}"'


class Supervisor:
    """The supervisord of one home. Instances hold no connection and may be used from any thread."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def alive(self) -> bool:
        """Say whether it answers."""
        try:
            with self._rpc() as rpc:
                return bool(rpc.getState()["statename"] == "RUNNING")
        except (OSError, xmlrpc.client.Error):
            return False

    def launch(self, configuration: str, deadline_seconds: float = 15) -> None:
        """Start it, detached from this terminal.

        Raises:
            PartFailed: It ended or does not answer.
        """
        path = self._home.secrets / "supervisord.conf"
        write_private(path, configuration)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)
        }
        for name in ("NO_PROXY", "no_proxy"):
            there = environment.get(name)
            environment[name] = ",".join(filter(None, [there, "127.0.0.1", "localhost"]))
        environment[STACK_MARK] = str(self._home.root)
        environment["PYTHONUNBUFFERED"] = "1"
        log = self._home.log("supervisord")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(path)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise PartFailed("supervisord", (done.stderr or done.stdout).strip(), log)
        deadline = time.monotonic() + deadline_seconds
        while not self.alive():
            if time.monotonic() > deadline:
                raise PartFailed(
                    "supervisord", f"does not answer after {deadline_seconds:.0f} s", log
                )
            time.sleep(0.02)

    def states(self) -> dict[str, ProcessState]:
        """Return the state of every part by name; nothing where it does not answer."""
        try:
            with self._rpc() as rpc:
                answer = cast(list[dict[str, Any]], rpc.getAllProcessInfo())
        except (OSError, xmlrpc.client.Error):
            return {}
        return {
            info["name"]: ProcessState(
                name=info["name"],
                state=info["statename"],
                pid=info["pid"],
                started=float(info["start"]),
                reason=info["spawnerr"] or info["description"],
            )
            for info in answer
        }

    def start(self, name: str) -> None:
        """Start a part, without waiting; nothing happens where it runs."""
        with _accepting(_ALREADY_STARTED), self._rpc() as rpc:
            rpc.startProcess(name, False)

    def stop(self, name: str) -> None:
        """Stop a part and wait for it; nothing happens where it does not run."""
        with _accepting(_NOT_RUNNING, _NO_SUCH_PART), self._rpc() as rpc:
            rpc.stopProcess(name, True)

    def shutdown(self) -> None:
        """Tell it to end, with whatever still runs."""
        with contextlib.suppress(OSError, xmlrpc.client.Error), self._rpc() as rpc:
            rpc.shutdown()

    @contextlib.contextmanager
    def _rpc(self) -> Iterator[Any]:
        transport = _UnixTransport(self._home.run / "supervisor.sock")
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as proxy:
            yield proxy.supervisor


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket. supervisor's own leaves the socket open where nobody listens."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _UnixConnection(self._path)
        self._connection = host, connection  # what close() closes
        return connection


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._path))
        except OSError:
            self.close()
            raise


@contextlib.contextmanager
def _accepting(*codes: int) -> Iterator[None]:
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode not in codes:
            raise StackError(f"supervisord: {fault.faultString}") from fault
