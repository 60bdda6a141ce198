"""The real parts: each works as its clients use it, comes back after `kill -9`, and leaves nothing behind."""

import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from pyarrow import fs

from everloop import stack
from everloop.stack import processes
from everloop.stack.endpoints import Endpoints

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    home = tmp_path_factory.mktemp("home")
    try:
        yield stack.up(home, print, only=stack.INFRA)
    finally:
        stack.down(home)


def _kafka(there: Endpoints) -> None:
    """Put a record in a new topic and take it out again."""
    topic, sent = f"t-{uuid.uuid4().hex}", uuid.uuid4().bytes
    admin = KafkaAdminClient(bootstrap_servers=there.kafka_bootstrap)
    admin.create_topics([NewTopic(name=topic, num_partitions=6, replication_factor=1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=there.kafka_bootstrap)
    producer.send(topic, sent).get(timeout=20)
    producer.close()
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=there.kafka_bootstrap,
        auto_offset_reset="earliest",
        group_id=topic,
        consumer_timeout_ms=20_000,
    )
    assert next(iter(consumer)).value == sent
    consumer.close()


def _s3(there: Endpoints) -> None:
    """Write an object and read it again."""
    store = _filesystem(there)
    key = f"{there.data_bucket}/{uuid.uuid4().hex}"
    with store.open_output_stream(key) as out:
        out.write(b"rows")
    assert store.open_input_stream(key).read() == b"rows"


def _filesystem(there: Endpoints) -> Any:
    return fs.S3FileSystem(
        access_key=there.s3_access_key,
        secret_key=there.s3_secret_key,
        endpoint_override=there.s3_url,
        region=there.s3_region,
    )


def _mlflow(there: Endpoints) -> None:
    """Make a run with an artifact, which the server stores on S3."""
    script = """
import mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("test")
with mlflow.start_run() as run:
    mlflow.log_metric("m", 1)
    mlflow.log_text("kept", "note.txt")
print(mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt"))
"""
    assert _python(script, there.mlflow_uri, there) == "kept"


def _ray(there: Endpoints) -> None:
    """Run a task on the head, from a process that joins it as the services do."""
    script = """
import os, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
work = ray.remote(lambda: (os.environ["EVERLOOP_PART"], os.nice(0)))
print(*ray.get(work.remote(), timeout=60))
"""
    assert _python(script, there.ray_address, there) == f"ray {os.nice(0)}"


def _python(script: str, argument: str, there: Endpoints) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, argument],
        env={**os.environ, **there.environment()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


USES = {"kafka": _kafka, "s3": _s3, "mlflow": _mlflow, "ray": _ray}


@pytest.mark.parametrize("part", USES)
def test_the_part_does_its_work(there: Endpoints, part: str) -> None:
    USES[part](there)


def test_every_bucket_is_there_and_a_wrong_key_is_refused(there: Endpoints) -> None:
    names = {info.path for info in _filesystem(there).get_file_info(fs.FileSelector(""))}
    assert names >= {there.data_bucket, there.dvc_bucket, there.mlflow_bucket}
    intruder = fs.S3FileSystem(
        access_key=there.s3_access_key,
        secret_key="wrong",
        endpoint_override=there.s3_url,
        region=there.s3_region,
    )
    with pytest.raises(
        OSError, match=r"ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch"
    ):
        intruder.get_file_info(fs.FileSelector(there.data_bucket))


def test_nothing_listens_beyond_the_loopback_interface(there: Endpoints) -> None:
    listening = [
        connection.laddr.ip
        for process in processes.marked(there.home)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 15
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_status_sees_every_part_and_its_memory(there: Endpoints) -> None:
    lines = {line.part: line for line in stack.status(Path(there.home))}
    assert {lines[part].state for part in stack.INFRA} == {"healthy"}
    total = sum(line.memory_bytes for line in lines.values())
    print({part: lines[part].memory_bytes >> 20 for part in stack.INFRA})
    assert 400 << 20 < total < 1600 << 20


def test_mlflow_answers_its_health_check(there: Endpoints) -> None:
    with urllib.request.urlopen(f"{there.mlflow_uri}/health", timeout=10) as answer:
        assert answer.read() == b"OK"


@pytest.mark.faults
@pytest.mark.parametrize("part", USES)
def test_a_killed_part_comes_back_and_works(there: Endpoints, part: str) -> None:
    home = Path(there.home)
    began = time.monotonic()
    killed = stack.kill(home, part)
    stack.wait_healthy(home, part, 60, not_pid=killed)
    print(f"{part} healthy {time.monotonic() - began:.1f} s after kill -9")
    USES[part](there)


@pytest.mark.faults
def test_a_ray_server_that_dies_takes_the_head_down_and_up_again(there: Endpoints) -> None:
    home = Path(there.home)
    head = next(line.pid for line in stack.status(home) if line.part == "ray")
    (raylet,) = [p for p in processes.marked(home, "ray") if p.name() == "raylet"]
    raylet.kill()
    stack.wait_healthy(home, "ray", 60, not_pid=head)
    _ray(there)


@pytest.mark.faults
def test_what_was_stored_survives_down_and_up_and_nothing_is_left_after_down(
    tmp_path: Path,
) -> None:
    there = stack.up(tmp_path, only=["s3"])
    with _filesystem(there).open_output_stream(f"{there.data_bucket}/kept") as out:
        out.write(b"kept")
    stack.down(tmp_path)
    assert processes.marked(tmp_path) == []

    again = stack.up(tmp_path, only=["s3"])
    assert again.s3_secret_key == there.s3_secret_key
    assert _filesystem(again).open_input_stream(f"{again.data_bucket}/kept").read() == b"kept"
    assert json.loads((tmp_path / "stack.json").read_text())["s3_url"] == again.s3_url
    stack.down(tmp_path)
    assert processes.marked(tmp_path) == []
