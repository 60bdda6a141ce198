"""A version on trial: real gateway, broker, MLflow and replicas on Ray; the gateway is killed meanwhile."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bench.flights_model import PIPELINES
from bench.serving.models import MODEL, NotServed, register
from bench.serving.rows import sample_row

from everloop import Everloop, stack
from everloop.stack.endpoints import Endpoints
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

PERCENT = 30
KEYS = 200
PLAN = f"""
  rollout: {{strategy: canary, percent: {PERCENT}, bake: 15s, min_requests: 200}}
"""


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Endpoints]:
    """A stack whose flights pipeline tries versions before they serve."""
    text = (PIPELINES / f"{MODEL}.yaml").read_text()
    pipelines = tmp_path / "pipelines"
    pipelines.mkdir()
    (pipelines / f"{MODEL}.yaml").write_text(text.replace("promotion:\n", f"promotion:{PLAN}"))
    home = tmp_path / "home"
    try:
        yield stack.up(home, only=("s3", "inference"), pipelines=pipelines)
    finally:
        stack.down(home)


class Caller:
    """Asks without a pause, key after key, from when a model serves; knows which version answered whom."""

    def __init__(self, home: Path) -> None:
        self.versions: dict[str, list[int]] = defaultdict(list)
        self.failed: list[str] = []
        self._home = home
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        row = sample_row()
        with Everloop.connect(self._home) as everloop:
            number = 0
            while not self._stop.is_set():
                key = f"flight-{number % KEYS}"
                number += 1
                try:
                    answer = everloop.predict(
                        MODEL, [{**row, "flight_id": key}], http=number % 2 == 0
                    )
                except Exception as error:
                    if self.versions:
                        self.failed.append(f"{type(error).__name__}: {error}")
                    self._stop.wait(0.1)
                else:
                    self.versions[key].append(answer.version)


def until(found: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_version_is_tried_promoted_and_another_taken_back(there: Endpoints) -> None:
    home = Path(there.home)
    with (
        Everloop.connect(home) as everloop,
        Caller(home) as caller,
        ThreadPoolExecutor(1) as trainer,
    ):

        def running() -> list[registry_pb2.Rollout]:
            state = registry_pb2.ROLLOUT_STATE_RUNNING
            return [rollout for rollout in everloop.rollouts(MODEL) if rollout.state == state]

        # The second is promoted by its own trial; for the third somebody steps in.
        registering = trainer.submit(register, there, sample_row(), 3)
        until(lambda: bool(running()))
        (first,) = running()
        assert (first.baseline_version, first.candidate_version) == (1, 2)
        stack.kill(home, "registry_gateway")

        def ended(rollout_id: str) -> registry_pb2.Rollout | None:
            try:
                rollout = everloop.rollout(rollout_id)
            except Exception:  # the gateway is on its way back
                return None
            return None if rollout.state == registry_pb2.ROLLOUT_STATE_RUNNING else rollout

        until(lambda: ended(first.id) is not None)
        promoted = everloop.rollout(first.id)
        assert promoted.state == registry_pb2.ROLLOUT_STATE_PROMOTED, promoted.reason
        assert promoted.candidate.requests >= 200
        assert (promoted.candidate.errors, promoted.baseline.errors) == (0, 0)

        until(lambda: bool(running()))
        (second,) = running()
        assert (second.baseline_version, second.candidate_version) == (2, 3)
        until(lambda: any(3 in versions for versions in caller.versions.values()))
        aborted = everloop.end_rollout(second.id, promote=False, reason="we know better")
        assert aborted.state == registry_pb2.ROLLOUT_STATE_ABORTED
        with pytest.raises(NotServed, match="rollout"):
            registering.result(timeout=60)
        seen = sum(map(len, caller.versions.values()))
        until(lambda: not everloop.trials(MODEL))
        until(lambda: everloop.served(MODEL).on_trial.version == 0)
        until(lambda: sum(map(len, caller.versions.values())) > seen + KEYS)
        assert everloop.model(MODEL, 3).stage == registry_pb2.STAGE_REJECTED
        assert everloop.served(MODEL).version == 2
    assert caller.failed == []
    tried = 0
    for key, versions in caller.versions.items():
        changes = [new for old, new in zip([0, *versions], versions, strict=False) if new != old]
        # A key stays with its version for as long as a trial runs: it changes when one begins or ends.
        assert changes in ([1, 2], [1, 2, 3, 2]), (key, changes)
        tried += 3 in changes
    assert 0.1 < tried / len(caller.versions) < 0.6
