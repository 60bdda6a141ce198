"""Each replica by itself, though all share one address: a kept connection stays with the replica that took it."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.serving.models import MODEL, NotServed
from everloop_inference.log.books import Counts

__all__ = ["Books", "Replica", "find", "memory", "processes"]

FIND_SECONDS = 180


@dataclass(frozen=True)
class Books(Counts):
    """Rows of the prediction log by place, as the metrics of one or more replicas say, and refused requests."""

    refused: int = 0

    def __add__(self, other: Books) -> Books:
        """Sums over replicas."""
        mine, theirs = asdict(self), asdict(other)
        return Books(**{name: value + theirs[name] for name, value in mine.items()})


class Replica:
    """One replica, by a connection of its own.

    Attributes:
        epoch: what its prediction ids begin with.
    """

    def __init__(self, address: str, body: bytes) -> None:
        """Connects to any replica and asks it for a prediction.

        Raises:
            OSError: nobody answers.
            NotServed: it does not predict.
        """
        self._connection = http.client.HTTPConnection(address, timeout=10)
        try:
            answer = json.loads(self._ask("POST", f"/v1/models/{MODEL}:predict", body))
            self.epoch = str(answer["predictions"][0]["prediction_id"]).rpartition("-")[0]
            self._refused = 0
            self._refused = self.books.refused
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the connection up."""
        self._connection.close()

    @property
    def version(self) -> int:
        """Which version it says it serves."""
        return int(json.loads(self._ask("GET", f"/v1/models/{MODEL}"))["version"])

    @property
    def books(self) -> Books:
        """Its books, from one scrape; refused counts from the moment it was found."""
        seen = dict.fromkeys(Books.__dataclass_fields__, 0)
        text = self._ask("GET", "/metrics").decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "everloop_inference_errors_total":
                    seen["refused"] += int(sample.value)
                place = sample.name.removeprefix("everloop_inference_log_").removesuffix("_total")
                if (name := place.removesuffix("_rows")) in seen and name != place:
                    seen[name] += int(sample.value)
        seen["refused"] -= self._refused
        return Books(**seen)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._connection.request(method, path, body)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise NotServed(f"{path} answers {response.status}: {content[:200]!r}")
        return content

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Closes it."""
        self.close()


def find(address: str, body: bytes, count: int) -> list[Replica]:
    """Connects to each of `count` replicas: the kernel gives a new connection to any of them.

    Raises:
        NotServed: fewer answer in time.
    """
    deadline = time.monotonic() + FIND_SECONDS
    found: dict[str, Replica] = {}
    problem = ""
    while len(found) < count:
        if time.monotonic() > deadline:
            raise NotServed(f"{len(found)} of {count} replicas answer; {problem}")
        try:
            replica = Replica(address, body)
        except (OSError, http.client.HTTPException, NotServed) as error:
            problem = str(error)
            time.sleep(0.2)
            continue
        if replica.epoch in found:
            replica.close()
        else:
            found[replica.epoch] = replica
    return list(found.values())


def memory(address: str) -> int:
    """Returns the memory that belongs to the replicas at an address alone, in bytes (unique set size)."""
    return sum(int(process.memory_full_info().uss) for process in processes(address))


def processes(address: str) -> set[psutil.Process]:
    """Returns the processes of the replicas at an address: those that listen there."""
    port = int(address.rpartition(":")[2])
    return {
        psutil.Process(one.pid)
        for one in psutil.net_connections("tcp4")
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid
    }
