"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from everloop_features.inputs import Block, InputSpec
from everloop_inference.domain import Answer, ArmStats, Engine, Production, Wanted

__all__ = [
    "Artifacts",
    "Elsewhere",
    "Engines",
    "Exported",
    "HttpReply",
    "HttpRequest",
    "Log",
    "LogSink",
    "Lost",
    "Message",
    "Outcome",
    "Registry",
    "Report",
    "RpcReply",
    "RpcRequest",
]

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
"""Of gRPC; the values of names that end in `-bin` are bytes."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica has seen of a rollout.

    Attributes:
        rollout: id of the rollout.
        replica: unique name of this life of the replica.
        sequence: grows with every report of the replica.
        candidate: what the candidate has done here since its trial began here.
        baseline: what the version in Production has done here since then.
        failure: why the candidate cannot serve here; empty if it does.
    """

    rollout: str
    replica: str
    sequence: int
    candidate: ArmStats
    baseline: ArmStats
    failure: str = ""


class Registry(Protocol):
    """Says what should be served, and takes what is seen of versions on trial."""

    def production(self) -> Production:
        """Returns the Production version of every model, and those on trial beside them.

        Raises:
            EverloopError: kind unavailable: the registry does not answer.
        """

    def changes(self) -> Iterator[None]:
        """Yields when something else may be in Production or on trial; it may end, and be asked again, at any time.

        Raises:
            EverloopError: the registry does not tell.
        """

    def report(self, report: Report) -> bool:
        """Tells what this replica has seen of a rollout; returns whether it still runs.

        Raises:
            EverloopError: the registry does not take it; kind unavailable: it does not answer.
        """

    def close(self) -> None:
        """Lets go of what it holds; it is not asked any more."""


class Artifacts(Protocol):
    """Holds the files of a version."""

    def download(self, wanted: Wanted, folder: Path) -> None:
        """Puts the files of a version into an empty folder.

        That is `model.onnx` if it has an export, `manifest.json`, `golden.json`, and the rest of the MLflow model as it
        was logged below `model/`. Nobody has compared them with what the registry says.

        Raises:
            EverloopError: kind unavailable: they cannot be had now; kind not_found or precondition: they are gone, not
                what was registered (reason `ARTIFACT_CHANGED`), or too many bytes (`ARTIFACT_TOO_LARGE`).
            OSError: this machine cannot keep them.
        """


class Exported(Engine, Protocol):
    """An exported graph that can run.

    Attributes:
        inputs: names of what it takes.
    """

    inputs: list[str]


class Engines(Protocol):
    """Makes what runs a model from its files."""

    def exported(self, graph: bytes) -> Exported:
        """Returns what runs an exported graph.

        Raises:
            MemoryError, OSError: this machine lacks something.
            Exception: anything else says that the graph cannot run.
        """

    def can_run_logged(self, folder: Path) -> bool:
        """Whether a folder holds a model that was logged in another way than as the graph."""

    def logged(self, folder: Path, inputs: Sequence[InputSpec]) -> Engine:
        """Returns what runs such a model; raises as `exported`."""


class Log(Protocol):
    """Where answers are written down."""

    def offer(
        self,
        answer: Answer,
        block: Block,
        record_ids: Sequence[str],
        latency_micros: Sequence[int],
        size: int,
    ) -> None:
        """Takes the rows of a batch; never waits and never fails."""


@dataclass(frozen=True, slots=True)
class Message:
    """An event with predictions, ready for the broker.

    Attributes:
        model: name of the model.
        rows: predictions in it.
        topic: where it goes.
        key: its key.
        value: its body.
        headers: its headers.
    """

    model: str
    rows: int
    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class Outcome(Enum):
    """What became of a message."""

    STORED = "stored"
    AWAY = "away"
    """The broker did not say that it has the message: it must go again."""
    REFUSED = "refused"
    """The broker will never take it."""


class LogSink(Protocol):
    """Takes events with predictions."""

    def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """Sends in order and tells what became of each message; never raises.

        Waits for a bounded time: a few times what the broker is given to acknowledge a batch.
        """

    def close(self) -> None:
        """Lets go of what it holds."""


class HttpRequest(NamedTuple):
    """A request over HTTP.

    Attributes:
        method: of HTTP.
        path: without host and query.
        headers: names in lower case.
        body: as it came, still compressed where a header says so.
    """

    method: str
    path: str
    headers: Headers
    body: bytes


class HttpReply(NamedTuple):
    """The answer to it.

    Attributes:
        status: of HTTP.
        headers: without those of the connection and the length.
        body: as it goes out.
    """

    status: int
    headers: Headers
    body: bytes


class RpcRequest(NamedTuple):
    """A unary call of gRPC.

    Attributes:
        path: `/package.Service/Method`.
        message: the request, serialized.
        metadata: what the caller sent beside it.
        seconds: time until its deadline; None where it has none.
    """

    path: str
    message: bytes
    metadata: Metadata = ()
    seconds: float | None = None


class RpcReply(NamedTuple):
    """How it ended.

    Attributes:
        message: the response, serialized; empty where the call failed.
        code: number of the status code.
        details: text of the status.
        metadata: trailing metadata, with the details of an error.
    """

    message: bytes
    code: int = 0
    details: str = ""
    metadata: Metadata = ()


class Lost(Exception):
    """Whoever was to answer ended before it did, or cannot be reached; another one may answer."""


class Elsewhere(Protocol):
    """Replicas in other processes, behind the same doors; asked by one event loop, cancelled with its task."""

    async def http(self, request: HttpRequest) -> HttpReply:
        """Returns the answer to a request over HTTP, however long it takes.

        Raises:
            Lost: nobody answered.
        """

    async def rpc(self, request: RpcRequest) -> RpcReply:
        """Returns how a unary call of gRPC ended; raises as `http`."""
