"""gRPC in: convert, call one use case, convert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import grpc

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import (
    dataset_pb2,
    dead_letter_pb2,
    ingest_pb2,
    ingest_pb2_grpc,
)
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.convert import (
    dataset_version,
    dead_letter,
    record_result,
    record_results,
    wanted,
)
from everloop_ingest.cut_version import CutVersion
from everloop_ingest.dead_letters import DeadLetters
from everloop_ingest.domain import Version
from everloop_ingest.erase_records import Entity, EraseRecords
from everloop_ingest.pipeline_stats import PipelineStats
from everloop_ingest.ports import Repositories
from everloop_ingest.push import Push
from everloop_ingest.release_version import ReleaseVersion
from everloop_ingest.request_ids import checked
from everloop_ingest.stream import Incoming, RecordStream
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.paging import page

__all__ = ["IngestServicer", "UseCases"]

_MARGIN_SECONDS = 0.5
"""Kept of the caller's deadline, so that our answer arrives before it."""
_REJECTED_TOLD = 1_000
"""Rejected records that the answer to an upload holds; the dead letters hold all."""


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the door calls."""

    push: Push
    stream: RecordStream
    cut: CutVersion
    release: ReleaseVersion
    erase: EraseRecords
    stats: PipelineStats
    dead_letters: DeadLetters


class IngestServicer(ingest_pb2_grpc.IngestServiceServicer):
    """Implements `everloop.ingest.v1.IngestService`."""

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        use_cases: UseCases,
        *,
        versions: Versions,
        repositories: Repositories,
        deadline_seconds: float,
    ) -> None:
        """Takes the pipelines by name, the use cases, and what is only read.

        `deadline_seconds` bounds calls that come without a deadline.
        """
        self._pipelines = pipelines
        self._do = use_cases
        self._versions = versions
        self._repositories = repositories
        self._deadline = deadline_seconds

    def PushRecords(
        self, request: ingest_pb2.PushRecordsRequest, context: grpc.ServicerContext
    ) -> ingest_pb2.PushRecordsResponse:
        """See the contract."""
        pipeline = self._pipeline(request.pipeline)
        request_id = checked(request.request_id) if request.request_id else ""
        rejections = self._do.push(pipeline, request.records, request_id, self._seconds(context))
        return ingest_pb2.PushRecordsResponse(
            results=record_results(len(request.records), rejections),
            accepted=len(request.records) - len(rejections),
        )

    def StreamRecords(
        self,
        request_iterator: Iterator[ingest_pb2.StreamRecordsRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[ingest_pb2.StreamRecordsResponse]:
        """See the contract."""
        for number, answer in enumerate(self._do.stream(self._incoming(request_iterator)), start=1):
            yield ingest_pb2.StreamRecordsResponse(
                sequence=number,
                results=record_results(answer.records, answer.rejections),
                accepted=answer.records - len(answer.rejections),
            )

    def UploadRecords(
        self,
        request_iterator: Iterator[ingest_pb2.UploadRecordsRequest],
        context: grpc.ServicerContext,
    ) -> ingest_pb2.UploadRecordsResponse:
        """See the contract."""
        summary = ingest_pb2.UploadRecordsResponse()
        for answer in self._do.stream(self._incoming(request_iterator)):
            for item in answer.rejections:
                summary.rejected_by_reason[item.reason] += 1
                if len(summary.rejected) < _REJECTED_TOLD:
                    summary.rejected.add(
                        position=summary.received + item.row, result=record_result(item)
                    )
            summary.received += answer.records
            summary.accepted += answer.records - len(answer.rejections)
        return summary

    def CutVersion(
        self, request: ingest_pb2.CutVersionRequest, context: grpc.ServicerContext
    ) -> ingest_pb2.CutVersionResponse:
        """See the contract."""
        pipeline = self._pipeline(request.pipeline)
        version = self._do.cut(pipeline, checked(request.request_id), self._seconds(context))
        return ingest_pb2.CutVersionResponse(dataset=self._whole(version))

    def EraseRecords(
        self, request: ingest_pb2.EraseRecordsRequest, context: grpc.ServicerContext
    ) -> ingest_pb2.EraseRecordsResponse:
        """See the contract."""
        pipeline = self._pipeline(request.pipeline)
        request_id = checked(request.request_id)
        entity = Entity(request.record_ids, request.field, request.value)
        version = self._do.erase(
            pipeline,
            entity,
            request_id,
            request.actor or "unknown",
            request.reason,
            self._seconds(context),
        )
        return ingest_pb2.EraseRecordsResponse(dataset=self._whole(version))

    def ReleaseVersion(
        self, request: ingest_pb2.ReleaseVersionRequest, context: grpc.ServicerContext
    ) -> ingest_pb2.ReleaseVersionResponse:
        """See the contract."""
        pipeline = self._pipeline(request.pipeline)
        request_id = checked(request.request_id)
        version = self._do.release(
            pipeline.name, request.version, request_id, request.actor or "unknown", request.reason
        )
        return ingest_pb2.ReleaseVersionResponse(dataset=self._whole(version))

    def GetDatasetVersion(
        self, request: ingest_pb2.GetDatasetVersionRequest, context: grpc.ServicerContext
    ) -> ingest_pb2.GetDatasetVersionResponse:
        """See the contract."""
        pipeline = self._pipeline(request.pipeline)
        version = self._versions.get(pipeline.name, request.version)
        if version is None:
            which = f"v{request.version}" if request.version else "available version"
            raise EverloopError(
                Kind.NOT_FOUND, "DATASET_VERSION_NOT_FOUND", f"{pipeline.name} has no {which}"
            )
        return ingest_pb2.GetDatasetVersionResponse(dataset=self._whole(version))

    def ListDatasetVersions(
        self, request: ingest_pb2.ListDatasetVersionsRequest, context: grpc.ServicerContext
    ) -> ingest_pb2.ListDatasetVersionsResponse:
        """See the contract; the token is the number of the last version of the page before."""
        pipeline = self._pipeline(request.pipeline)
        before, size = page(request.page_token, request.page_size)
        found = self._versions.page(pipeline.name, before, size + 1)
        repository = self._repositories[pipeline.name]
        return ingest_pb2.ListDatasetVersionsResponse(
            datasets=[dataset_version(version, repository) for version in found[:size]],
            next_page_token=str(found[size - 1].number) if len(found) > size else "",
        )

    def GetPipelineStats(
        self, request: ingest_pb2.GetPipelineStatsRequest, context: grpc.ServicerContext
    ) -> ingest_pb2.GetPipelineStatsResponse:
        """See the contract."""
        pipeline = self._pipeline(request.pipeline)
        found = self._do.stats(pipeline, self._seconds(context))
        books = found.books
        return ingest_pb2.GetPipelineStatsResponse(
            received=books.accepted + books.rejected,
            accepted=books.accepted,
            rejected=books.rejected,
            rejected_by_reason=books.rejected_by_reason,
            lag=found.lag,
            actuals=books.actuals,
            lost=found.lost,
        )

    def ListDeadLetters(
        self, request: dead_letter_pb2.ListDeadLettersRequest, context: grpc.ServicerContext
    ) -> dead_letter_pb2.ListDeadLettersResponse:
        """See the contract."""
        pipeline = self._pipeline(request.pipeline)
        _, size = page("", request.page_size)
        found, token = self._do.dead_letters.page(
            pipeline, wanted(request.filter), request.page_token, size
        )
        return dead_letter_pb2.ListDeadLettersResponse(
            dead_letters=[dead_letter(kept, pipeline, whole=False) for kept in found],
            next_page_token=token,
        )

    def GetDeadLetter(
        self, request: dead_letter_pb2.GetDeadLetterRequest, context: grpc.ServicerContext
    ) -> dead_letter_pb2.GetDeadLetterResponse:
        """See the contract."""
        pipeline = self._pipeline(request.pipeline)
        kept = self._do.dead_letters.get(pipeline, request.id)
        return dead_letter_pb2.GetDeadLetterResponse(
            dead_letter=dead_letter(kept, pipeline, whole=True)
        )

    def ReplayDeadLetters(
        self, request: dead_letter_pb2.ReplayDeadLettersRequest, context: grpc.ServicerContext
    ) -> dead_letter_pb2.ReplayDeadLettersResponse:
        """See the contract."""
        pipeline = self._pipeline(request.pipeline)
        _, size = page("", request.page_size)
        answer = self._do.dead_letters.replay(
            pipeline,
            checked(request.request_id),
            request.ids,
            wanted(request.filter),
            request.page_token,
            size,
        )
        return dead_letter_pb2.ReplayDeadLettersResponse(
            replayed=answer.replayed,
            skipped=answer.skipped,
            next_page_token=answer.next_page_token,
        )

    def _incoming(
        self,
        requests: Iterator[ingest_pb2.StreamRecordsRequest]
        | Iterator[ingest_pb2.UploadRecordsRequest],
    ) -> Iterator[Incoming]:
        name = ""
        for request in requests:
            name = request.pipeline or name
            request_id = checked(request.request_id) if request.request_id else ""
            yield Incoming(self._pipeline(name), request.records, request_id)

    def _whole(self, version: Version) -> dataset_pb2.DatasetVersion:
        parts = self._versions.parts(version)
        audit = self._versions.audit(version.pipeline, version.number)
        repository = self._repositories[version.pipeline]
        return dataset_version(version, repository, parts, audit)

    def _pipeline(self, name: str) -> Pipeline:
        pipeline = self._pipelines.get(name)
        if pipeline is None:
            raise EverloopError(
                Kind.NOT_FOUND,
                "PIPELINE_NOT_FOUND",
                f"there is no pipeline {name!r}",
                pipeline=name,
            )
        return pipeline

    def _seconds(self, context: grpc.ServicerContext) -> float:
        # The stubs leave out that it is None for a call without a deadline.
        remaining = cast("float | None", context.time_remaining())
        if remaining is None:
            return self._deadline
        return max(0.0, min(remaining - _MARGIN_SECONDS, self._deadline))
