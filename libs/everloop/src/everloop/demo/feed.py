"""What the world sends while the client asks: each flight when it departs, its label a day later."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import numpy as np
from kafka import KafkaProducer

from everloop.client import Everloop, Rejection
from everloop.demo.flights import Flights

__all__ = ["Feed"]

LABEL_DELAY_SECONDS = 86_400
TICK_SECONDS = 0.25
LABELS_PER_CALL = 500
PATIENCE_SECONDS = 60.0
"""An ingest that was killed is back before."""


class Feed:
    """Pushes the flights from `first` on, as the replay passes them.

    A departed flight goes through Kafka as a record without a label. Its label follows through ingest's gRPC door when
    the replay is one day past the scheduled departure; where the year ends before, at once.
    """

    def __init__(
        self,
        flights: Flights,
        first: int,
        position: Callable[[], int],
        client: Everloop,
        pipeline: str,
        topic: str,
        bootstrap: str,
    ) -> None:
        """Takes what to send, how far the replay is, and where to."""
        self._flights = flights
        self._position = position
        self._client = client
        self._pipeline = pipeline
        self._topic = topic
        self._bootstrap = bootstrap
        self._ids = flights.frame["flight_id"].to_numpy(dtype=object)
        self._late = flights.late
        self._departed = first
        self._landed = first
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._watched(run), name=name, daemon=True)
            for name, run in (("departures", self._departures), ("labels", self._labels))
        ]
        self.records_sent = 0
        self.labels_sent = 0
        self.labels_rejected: list[Rejection] = []
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begins."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends at once."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=15)

    def end_of_year(self) -> None:
        """Tells that no flight is to come: the labels that are still due follow without waiting."""
        self._ended.set()

    @property
    def finished(self) -> bool:
        """True when everything has been sent."""
        return not any(thread.is_alive() for thread in self._threads)

    def _watched(self, run: Callable[[], None]) -> Callable[[], None]:
        def target() -> None:
            try:
                run()
            except Exception as error:
                self.failure = error

        return target

    def _departures(self) -> None:
        failures: list[BaseException] = []
        producer = KafkaProducer(
            bootstrap_servers=self._bootstrap.split(","), linger_ms=50, compression_type="lz4"
        )
        try:
            while not self._stop.is_set():
                ended = self._ended.is_set()
                position = self._position()
                for row in range(self._departed, position):
                    producer.send(
                        self._topic, key=self._ids[row].encode(), value=self._flights.lines[row]
                    ).add_errback(failures.append)
                self.records_sent += position - self._departed
                self._departed = position
                if failures:
                    raise failures[0]
                if ended:
                    break
                self._stop.wait(TICK_SECONDS)
            producer.flush(timeout=30)
            if failures:
                raise failures[0]
        finally:
            producer.close(timeout=5)

    def _labels(self) -> None:
        departs = self._flights.departs
        while not self._stop.is_set():
            ended = self._ended.is_set()
            due = self._departed
            if not ended and due > 0:
                clock = departs[due - 1]
                due = int(np.searchsorted(departs, clock - LABEL_DELAY_SECONDS, side="right"))
            while self._landed < due and not self._stop.is_set():
                stop = min(self._landed + LABELS_PER_CALL, due)
                self._push(self._landed, stop)
                self._landed = stop
            if ended and self._landed >= self._departed and self._departed >= self._position():
                return
            self._stop.wait(TICK_SECONDS)

    def _push(self, start: int, stop: int) -> None:
        labels = [
            json.dumps({"flight_id": self._ids[row], "late": bool(self._late[row])}).encode()
            for row in range(start, stop)
            if not np.isnan(self._late[row])
        ]
        pushed = self._client.push(
            self._pipeline, labels, batch=LABELS_PER_CALL, patience=PATIENCE_SECONDS
        )
        self.labels_sent += len(labels)
        self.labels_rejected += pushed.rejected
