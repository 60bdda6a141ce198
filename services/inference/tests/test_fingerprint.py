"""A deployment is replaced when it is no longer what would be deployed, and for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from everloop_inference.domain import ServingPolicy
from everloop_inference.placement.deployment import application
from everloop_inference.placement.fingerprint import SERVICE_ONLY, fingerprint
from everloop_inference.settings import InferenceSettings


class Watched(InferenceSettings):
    """Settings that know which of them were read."""

    read: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        Watched.read.add(name)
        return super().__getattribute__(name)


def test_every_setting_that_replicas_depend_on_changes_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop_inference.placement.fingerprint._CODE", ())
    settings = InferenceSettings(data_dir=tmp_path)
    before = fingerprint(settings, {})
    same = {
        name
        for name in InferenceSettings.model_fields
        if before
        == fingerprint(settings.model_copy(update={name: _another(getattr(settings, name))}), {})
    }
    assert same == SERVICE_ONLY


def test_pipelines_and_code_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = InferenceSettings(data_dir=tmp_path)
    before = fingerprint(settings, {})
    assert fingerprint(settings, {"flights": ServingPolicy()}) != before
    monkeypatch.setattr("everloop_inference.placement.fingerprint._CODE", ())
    assert fingerprint(settings, {}) != before


def test_no_replica_reads_what_is_left_out(world: Any) -> None:
    world.publish(1)
    world.settings = Watched(**world.settings.model_dump())
    Watched.read.clear()
    world.replica()
    application(world.settings, {}, "mark")
    assert {"data_dir", "http_address", "replicas"} <= Watched.read
    assert not Watched.read & SERVICE_ONLY


def _another(value: Any) -> Any:
    if value is None:  # a file that nobody named
        return Path("another")
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, (str, Path)):
        return type(value)(f"{value}x")
    return type(value)("another")  # a secret
