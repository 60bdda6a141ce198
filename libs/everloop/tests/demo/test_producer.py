"""The producer that uses nothing of ours."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from everloop.demo import producer

RECORD = {
    "flight_id": "UA-1",
    "scheduled_departure": "2013-01-01T05:15:00-05:00",
    "carrier": "UA",
    "distance": 1400.0,
}


class FakeKafkaProducer:
    """Takes what is sent."""

    sent: ClassVar[list[tuple[str, bytes, bytes]]] = []
    refuses = False

    def __init__(self, **options: Any) -> None:
        type(self).sent = []

    def send(self, topic: str, key: bytes, value: bytes) -> FakeKafkaProducer:
        self.sent.append((topic, key, value))
        return self

    def add_errback(self, errback: Any) -> None:
        if self.refuses:
            errback(TimeoutError("no broker"))

    def flush(self, timeout: float) -> None: ...
    def close(self) -> None: ...


def run(monkeypatch, file: Path, every: int) -> int:
    options = [
        "--bootstrap",
        "b",
        "--topic",
        "t",
        "--key",
        "flight_id",
        "--break-every",
        str(every),
    ]
    monkeypatch.setattr(producer, "KafkaProducer", FakeKafkaProducer)
    monkeypatch.setattr(sys, "argv", ["producer.py", str(file), *options])
    return producer.main()


def test_it_imports_nothing_of_ours():
    tree = ast.parse(Path(producer.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert "kafka" in imported
    assert not [name for name in imported if name and name.startswith("everloop")]


def test_each_kind_is_broken_in_its_own_way_and_keeps_its_id():
    seen = {kind: producer.broken(RECORD, number)[1] for number, kind in enumerate(producer.BROKEN)}
    assert len(set(seen.values())) == len(seen) == 6
    with pytest.raises(ValueError):
        json.loads(seen.pop("malformed_json"))
    for kind, value in seen.items():
        record = json.loads(value)
        assert record != RECORD, kind
        assert record["flight_id"] == RECORD["flight_id"], kind


def test_it_sends_every_record_as_it_is_and_tells_how_many_it_broke(
    tmp_path: Path, monkeypatch, capsys
):
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps(RECORD | {"flight_id": f"UA-{n}"}) for n in range(25)]
    file.write_text("\n".join(lines) + "\n")
    assert run(monkeypatch, file, every=10) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"sent": 27, "broken": {"malformed_json": 1, "missing_field": 1}}
    values = [value.decode() for _, _, value in FakeKafkaProducer.sent]
    assert [value for value in values if value in lines] == lines
    assert FakeKafkaProducer.sent[0][:2] == ("t", b"UA-0")


def test_a_broker_that_refuses_is_a_failure(tmp_path: Path, monkeypatch, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(RECORD) + "\n")
    monkeypatch.setattr(FakeKafkaProducer, "refuses", True)
    assert run(monkeypatch, file, every=0) == 1
    assert "1 records were not sent: no broker" in capsys.readouterr().err
