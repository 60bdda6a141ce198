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

from everloop import Everloop, EverloopError, stack
from everloop.stack.endpoints import Endpoints
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # What registers models is the benchmarks' code, beside MLflow in this process.
    pytest.mark.filterwarnings("default"),
]

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

    @property
    def count(self) -> int:
        """Answers so far."""
        return sum(len(versions) for versions in list(self.versions.values()))

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


def test_a_version_is_tried_and_promoted_though_the_gateway_is_killed(there: Endpoints) -> None:
    home = Path(there.home)
    with (
        Everloop.connect(home) as everloop,
        Caller(home) as caller,
        ThreadPoolExecutor(1) as trainer,
    ):

        def running() -> list[registry_pb2.Rollout]:
            state = registry_pb2.ROLLOUT_STATE_RUNNING
            return [rollout for rollout in everloop.rollouts(MODEL) if rollout.state == state]

        def ended(rollout_id: str) -> bool:
            try:
                rollout = everloop.rollout(rollout_id)
            except EverloopError:  # the gateway is on its way back
                return False
            return rollout.state != registry_pb2.ROLLOUT_STATE_RUNNING

        def on_trial() -> bool:
            try:
                return everloop.served(MODEL).on_trial.version == 2
            except EverloopError:  # the first version is on its way
                return False

        registering = trainer.submit(register, there, sample_row(), 2)
        until(lambda: bool(running()) or registering.done())
        assert not registering.done(), registering.exception()
        (trial,) = running()
        assert (trial.baseline_version, trial.candidate_version) == (1, 2)
        until(on_trial)
        counted = caller.count
        until(lambda: caller.count > counted + 2 * KEYS)
        tried = [key for key, versions in caller.versions.items() if versions[-1] == 2]
        assert 0.15 < len(tried) / KEYS < 0.45
        stack.kill(home, "registry_gateway")
        until(lambda: ended(trial.id))
        promoted = everloop.rollout(trial.id)
        assert promoted.state == registry_pb2.ROLLOUT_STATE_PROMOTED, promoted.reason
        assert promoted.candidate.requests >= 200
        assert (promoted.candidate.errors, promoted.baseline.errors) == (0, 0)
        until(lambda: everloop.served(MODEL).version == 2)
        counted = caller.count
        until(lambda: caller.count > counted + KEYS)
    # Who waits for the version may have met the gateway while it was away.
    assert not isinstance(registering.exception(), NotServed)
    assert caller.failed == []
    # A key stays with its version for as long as the trial runs.
    assert all(
        [new for old, new in zip([0, *versions], versions, strict=False) if new != old]
        in ([1, 2], [2])
        for versions in caller.versions.values()
    )
