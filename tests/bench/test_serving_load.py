"""What h2load says is counted as what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.serving.load import _read

SUMMARY = """finished in 10.00s, 0.40 req/s, 40B/s
requests: 5 total, 5 started, 4 done, 4 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.50KB (1536) total, 312B (312) headers (space savings 60.00%), {size}B ({size}) data
"""


@pytest.mark.parametrize(
    ("data", "answer", "failed"), [(400, 100, 0), (300, 100, 1), (0, 100, 4), (0, 0, 0)]
)
def test_a_grpc_error_is_a_failure_though_its_status_is_200(
    tmp_path: Path, data: int, answer: int, failed: int
) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{number}000000\t200\t1500\n" for number in range(4)))
    found = _read(log, SUMMARY.format(size=data), answer)
    assert found.failed == failed
    assert list(found.seconds) == [0.0015] * 4
