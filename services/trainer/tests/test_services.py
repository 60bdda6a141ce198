"""The other services, as their answers are read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from everloop_contracts.stubs.everloop.ingest.v1 import dataset_pb2, ingest_pb2
from everloop_runtime.errors import EverloopError, Kind
from everloop_trainer.adapters.services import IngestCutter
from everloop_trainer.ports import QUARANTINED


def cutter(dataset: dataset_pb2.DatasetVersion) -> IngestCutter:
    found: Any = IngestCutter("127.0.0.1:9", 0.0, "")
    answer = ingest_pb2.CutVersionResponse(dataset=dataset)
    found._stub = SimpleNamespace(CutVersion=lambda *arguments, **keywords: answer)
    return found  # type: ignore[no-any-return]


def test_a_version_is_read_part_by_part() -> None:
    dataset = dataset_pb2.DatasetVersion(
        pipeline="sales", version=3, state=dataset_pb2.DatasetVersion.STATE_AVAILABLE
    )
    for number in range(2):
        dataset.objects.add(uri=f"s3://bucket/{number}", md5=str(number))
    found = cutter(dataset).cut("sales", "r")
    assert [(file.uri, file.md5) for file in found.files] == [
        ("s3://bucket/0", "0"),
        ("s3://bucket/1", "1"),
    ]


def test_a_version_in_quarantine_is_not_trained_on() -> None:
    dataset = dataset_pb2.DatasetVersion(
        version=3, state=dataset_pb2.DatasetVersion.STATE_QUARANTINED, error="too few rows"
    )
    with pytest.raises(EverloopError, match="v3 is in quarantine: too few rows") as caught:
        cutter(dataset).cut("sales", "r")
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, QUARANTINED)
