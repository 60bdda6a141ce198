"""Registration: a trained model becomes a version, the gates speak, and what passes goes its way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from everloop_contracts.artifacts import artifact_sha256
from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.registry.v1 import events_pb2
from everloop_registry_gateway import gates, trial
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.adapters.trail import Trail
from everloop_registry_gateway.artifacts import Artifacts
from everloop_registry_gateway.convert import version_message
from everloop_registry_gateway.domain import (
    GATEWAY,
    Candidate,
    GateResult,
    ModelVersion,
    Stage,
)
from everloop_registry_gateway.metrics import VERDICTS
from everloop_registry_gateway.ports import ModelRegistry
from everloop_registry_gateway.promote import Promoter, find
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import new_event

__all__ = ["Registrar"]

ARTIFACT = "artifact"
"""Name of the verdict on a model's file; it is given where it is bad."""

log = logging.getLogger(__name__)


class Registrar:
    """Takes trained models into the registry."""

    def __init__(
        self,
        database: Database,
        registry: ModelRegistry,
        artifacts: Artifacts,
        promoter: Promoter,
        pipelines: Mapping[str, Pipeline],
    ) -> None:
        """Takes the gateway's database, the registry, its files, what promotes, and the pipelines by name."""
        self._database = database
        self._registry = registry
        self._artifacts = artifacts
        self._promoter = promoter
        self._pipelines = pipelines

    def register(self, candidate: Candidate) -> None:
        """Registers a candidate, judges it and, where its pipeline says so, promotes it or tries it. May be repeated.

        Raises:
            EverloopError: kind precondition, reason PIPELINE_UNKNOWN; kind unavailable if MLflow does not answer.
        """
        pipeline = self._pipelines.get(candidate.model)
        if pipeline is None:
            raise EverloopError(
                Kind.PRECONDITION,
                "PIPELINE_UNKNOWN",
                f"no pipeline is named {candidate.model!r}, so there are no gates to judge its model by",
                model=candidate.model,
            )
        with self._promoter.turn(candidate.model):
            # What is half done decides which version the gates compare with.
            self._promoter.settle(candidate.model)
            if not self._known(candidate):
                files, changed = self._files(candidate)
                number = self._registry.ensure_version(
                    candidate.model,
                    candidate.training_id,
                    candidate.run_id,
                    candidate.model_uri,
                    _tags(candidate, files),
                )
                self._record(candidate, number, pipeline, files, changed)
            self._promoter.settle(candidate.model)

    def _known(self, candidate: Candidate) -> bool:
        with self._database.read() as connection:
            return Store(connection).has_training(candidate.training_id)

    def _files(self, candidate: Candidate) -> tuple[Mapping[str, str], tuple[GateResult, ...]]:
        """SHA-256 of the model's files, and a verdict where they are not what was announced: nobody judged that."""
        try:
            found = self._artifacts.look(candidate.model, candidate.run_id, candidate.onnx_sha256)
        except EverloopError as error:
            if error.kind not in (Kind.PRECONDITION, Kind.NOT_FOUND):
                raise
            return {}, (GateResult(ARTIFACT, False, error.message),)
        return found, ()

    def _record(
        self,
        candidate: Candidate,
        number: int,
        pipeline: Pipeline,
        files: Mapping[str, str],
        changed: tuple[GateResult, ...],
    ) -> None:
        model = candidate.model
        with self._database.unit_of_work() as work:
            store = Store(work.connection)
            store.lock(model)
            if not work.first_time(candidate.event_id):
                return
            production = next((version.version for version in store.production(model)), 0)
            results = gates.evaluate(pipeline.promotion.gates, candidate, production) + changed
            refused = [
                f"{result.gate}: {result.message}" for result in results if not result.passed
            ]
            version = ModelVersion(
                model=model,
                version=number,
                stage=Stage.REJECTED if refused else Stage.STAGING,
                training_id=candidate.training_id,
                run_id=candidate.run_id,
                model_uri=candidate.model_uri,
                onnx_sha256=candidate.onnx_sha256,
                family=candidate.family,
                metrics=candidate.metrics,
                dataset_version=candidate.dataset_version,
                dataset_tag=candidate.dataset_tag,
                cause=candidate.cause,
                gates=results,
                trained_event_id=candidate.event_id,
                training_cause_id=candidate.cause_id,
                create_time=datetime.now(UTC),
                promote_time=None,
                etag="",
                files=files,
            )
            store.add_model(model)
            store.add_version(version)
            store.advance(model)
            origin = f"{candidate.family} from dataset version {candidate.dataset_version}"
            verdict = "; ".join(refused) or f"{len(results)} of {len(results)} gates passed"
            for action, reason, evidence in (
                ("registered", origin, ()),
                ("rejected" if refused else "staged", verdict, results),
            ):
                Trail(work.connection).note(
                    model,
                    number,
                    action,
                    actor=GATEWAY,
                    reason=reason,
                    cause_id=candidate.event_id,
                    evidence=evidence,
                )
            registered = events_pb2.ModelRegistered(
                version=version_message(find(store, model, number))
            )
            work.publish(new_event(GATEWAY, model, registered, cause=candidate.event_id))
            if not refused and pipeline.promotion.approval == "automatic":
                trial.send_on(
                    work,
                    version,
                    pipeline.promotion.rollout,
                    actor=GATEWAY,
                    reason=verdict,
                    cause_id=candidate.event_id,
                    now=version.create_time,
                )
        for result in results:
            VERDICTS.labels(model, result.gate, "passed" if result.passed else "refused").inc()
        log.info("version %d of %s is %s: %s", number, model, version.stage, verdict)


def _tags(candidate: Candidate, files: Mapping[str, str]) -> dict[str, str]:
    return {
        "everloop.dataset_version": str(candidate.dataset_version),
        "everloop.dataset_tag": candidate.dataset_tag,
        "everloop.cause": candidate.cause,
        "everloop.onnx_sha256": candidate.onnx_sha256,
        "everloop.artifact_sha256": artifact_sha256(files) if files else "",
        "everloop.family": candidate.family,
    }
