"""Asking for a training: one use case behind Kafka and gRPC."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta

import sqlalchemy as sa

from everloop_contracts.pipeline import Pipeline
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.telemetry import trace_headers
from everloop_trainer.adapters import store
from everloop_trainer.domain import Cause, Dataset, State, Training
from everloop_trainer.ports import QUARANTINED, Cutter
from everloop_trainer.trigger import superseded_by, trigger_of

__all__ = ["Requests"]

log = logging.getLogger(__name__)


class Requests:
    """Decides about and queues trainings; all of it is safe to repeat."""

    def __init__(
        self,
        database: Database,
        pipelines: Mapping[str, Pipeline],
        cutter: Cutter,
        queued: Callable[[], None],
        keep: timedelta,
    ) -> None:
        """Takes the trainer's database, what is declared, who cuts versions, whom to wake, how old a request gets."""
        self._database = database
        self._pipelines = pipelines
        self._cutter = cutter
        self._queued = queued
        self._keep = keep

    def dataset_created(self, event_id: str, dataset: Dataset, request_id: str) -> None:
        """Trains on a new dataset version where it was cut for a training, or the pipeline's triggers say so.

        Args:
            event_id: id of the event that announces the version.
            dataset: the version.
            request_id: what the version was cut for.
        """
        pipeline = self._pipelines.get(dataset.pipeline)
        if pipeline is None:
            log.warning("no pipeline '%s' is declared here", dataset.pipeline)
            return
        with self._database.unit_of_work() as work:
            if not work.first_time(event_id):
                return
            history = store.history(work.connection, dataset.pipeline)
            # The announcement may overtake ingest's answer to the request: one version, one training, one cause.
            cause, cause_id = store.asked(work.connection, dataset.pipeline, request_id), request_id
            if cause is None:
                cause, why = trigger_of(pipeline.training.triggers, dataset, history)
                cause_id = event_id
                if cause is None:
                    log.info("%s starts no training: %s", dataset.git_tag, why)
            if cause and not store.by_cause(work.connection, dataset.pipeline, cause_id):
                self._queue(work.connection, history, dataset, cause, cause_id)
        self._queued()

    def retrain_requested(self, event_id: str, name: str) -> None:
        """Trains on everything that has arrived, because the monitor asks for it.

        Raises:
            EverloopError: kind unavailable while ingest cannot be reached. A version in quarantine is trained on once
                it is released.
        """
        pipeline = self._pipelines.get(name)
        if pipeline is None or not pipeline.training.triggers.on_drift:
            log.info("pipeline '%s' does not train on drift", name)
            return
        try:
            self._request(name, event_id, Cause.DRIFT)
        except EverloopError as error:
            if error.reason != QUARANTINED:
                raise
            log.warning("no training on drift of '%s': %s", name, error)

    def start(self, name: str, request_id: str) -> Training:
        """Trains on everything that has arrived, because somebody asks for it.

        Raises:
            EverloopError: kind not_found for an unknown pipeline; precondition for a version in quarantine, which is
                trained on once it is released; unavailable while ingest cannot be reached.
        """
        if name not in self._pipelines:
            raise EverloopError(
                Kind.NOT_FOUND,
                "PIPELINE_NOT_FOUND",
                f"there is no pipeline '{name}'",
                pipeline=name,
            )
        return self._request(name, request_id or str(uuid.uuid4()), Cause.REQUEST)

    def cancel(self, training_id: str, actor: str, reason: str) -> Training:
        """Ends a training that waits, and sees to it that one that runs ends soon; a repeat changes nothing.

        Raises:
            EverloopError: kind not_found for an unknown training; precondition, reason TRAINING_ENDED, for one that
                has ended in another way.
        """
        who = f"cancelled by {actor}" if actor else "cancelled"
        with self._database.unit_of_work() as work:
            store.cancel(work.connection, training_id, f"{who}: {reason}" if reason else who)
            training = store.by_id(work.connection, training_id)
        if training is None:
            raise EverloopError(
                Kind.NOT_FOUND,
                "TRAINING_NOT_FOUND",
                f"there is no training '{training_id}'",
                training=training_id,
            )
        if training.cancel_time is None:
            raise EverloopError(
                Kind.PRECONDITION,
                "TRAINING_ENDED",
                f"training {training_id} has ended: {training.state}",
                training=training_id,
            )
        self._queued()
        return training

    def _request(self, name: str, cause_id: str, cause: Cause) -> Training:
        with self._database.unit_of_work() as work:
            if known := store.by_cause(work.connection, name, cause_id):
                return known
            store.ask(work.connection, name, cause_id, cause, self._keep)
        dataset = self._cutter.cut(name, cause_id)
        with self._database.unit_of_work() as work:
            # Asked again: a repeat of the request, or the version's announcement, may have come in meanwhile.
            training = store.by_cause(work.connection, name, cause_id)
            if training is None:
                history = store.history(work.connection, name)
                training = self._queue(work.connection, history, dataset, cause, cause_id)
        self._queued()
        return training

    def _queue(
        self,
        connection: sa.Connection,
        history: list[Training],
        dataset: Dataset,
        cause: Cause,
        cause_id: str,
    ) -> Training:
        replaced = [item.id for item in superseded_by(dataset, history)]
        store.set_state(connection, replaced, State.QUEUED, State.SUPERSEDED)
        training = store.add(
            connection, str(uuid.uuid4()), dataset, cause, cause_id, trace_headers()
        )
        log.info(
            "training %s queued: %s, %s, replaces %d",
            training.id,
            dataset.git_tag,
            cause,
            len(replaced),
        )
        return training
