"""The data bucket and the data repository on real object stores: SeaweedFS, and MinIO where Go can build it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from everloop.stack.home import Home, default_home
from everloop_ingest.adapters.dvc import DvcRepository
from everloop_ingest.adapters.s3 import ShardBucket
from everloop_ingest.domain import Part, ShardsLost, State, Version
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.s3 import s3_filesystem

MINIO = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
READY_SECONDS = 60.0


@dataclass(frozen=True)
class ObjectStore:
    """Where it is, and a bucket of it."""

    url: str
    key: str
    secret: str
    bucket: str

    @property
    def files(self) -> fs.FileSystem:
        return s3_filesystem(self.url, self.key, self.secret, "us-east-1")


def minio_binary() -> Path:
    """Builds MinIO from its module, once for all runs: minutes."""
    folder = Home.at(default_home()).cache / "go"
    binary = folder / "minio"
    if not binary.exists():
        if not shutil.which("go"):
            pytest.skip("MinIO is built from its Go module, and there is no Go here")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["go", "install", MINIO],
            env=os.environ | {"GOBIN": str(folder)},
            check=True,
            timeout=1500,
        )
    return binary


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory, free_address: Any) -> Iterator[ObjectStore]:
    binary = minio_binary()
    address, folder = free_address(), tmp_path_factory.mktemp("minio")
    store = ObjectStore(f"http://{address}", "everloop", "everloop-secret", "everloop-data")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(binary), "server", "--address", address, "--quiet", str(folder / "data")],
            env=os.environ
            | {
                "HOME": str(folder),
                "MINIO_ROOT_USER": store.key,
                "MINIO_ROOT_PASSWORD": store.secret,
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
            },
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{store.url}/minio/health/ready", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        admin = fs.S3FileSystem(
            access_key=store.key,
            secret_key=store.secret,
            endpoint_override=address,
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        admin.create_dir(store.bucket)
        yield store
    finally:
        process.kill()
        process.wait(30)


REAL = (
    pytest.param("seaweedfs", marks=pytest.mark.faults),
    pytest.param("minio", marks=[pytest.mark.clients, pytest.mark.timeout(1800)]),
)


@pytest.fixture(params=REAL)
def object_store(request: pytest.FixtureRequest) -> ObjectStore | None:
    """A real one, or None for the fake."""
    if request.param == "fake":
        return None
    if request.param == "minio":
        store: ObjectStore = request.getfixturevalue("minio")
        return store
    there = request.getfixturevalue("infrastructure")
    return ObjectStore(there.s3_url, there.s3_access_key, there.s3_secret_key, there.data_bucket)


@pytest.mark.parametrize("object_store", ["fake", *REAL], indirect=True)
def test_shard_files_keep_what_they_take(
    object_store: ObjectStore | None, folder_files: Any, tmp_path: Path
) -> None:
    files = ShardBucket(object_store.files, object_store.bucket) if object_store else folder_files
    large = random.Random(1).randbytes(12 * 2**20)
    contents = {"kept/a/1.parquet": b"one", "kept/a/2.parquet": large}
    for key, content in contents.items():
        files.put(key, content)
    files.put("kept/a/1.parquet", b"one")
    target = tmp_path / "fetched"
    target.mkdir()
    paths = files.fetch(list(contents), target)
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert files.fetch([], target) == []
    now = datetime.now(UTC)
    assert sorted(files.stored_before("kept", now + timedelta(hours=1))) == [*contents]
    assert files.stored_before("kept", now - timedelta(hours=1)) == []
    assert files.stored_before("nothing", now) == []
    lost = ["kept/a/3.parquet", "kept/b/1.parquet"]
    with pytest.raises(ShardsLost) as caught:
        files.fetch([*contents, *lost], target)
    assert caught.value.keys == lost
    files.delete([*contents, *lost])
    with pytest.raises(ShardsLost):
        files.fetch(["kept/a/1.parquet"], target)


def test_a_bucket_that_is_missing_loses_nothing(object_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(EverloopError) as caught:
        ShardBucket(object_store.files, "no-such-bucket").fetch(["a"], tmp_path)
    assert caught.value.kind is Kind.UNAVAILABLE


def test_stock_dvc_gets_from_it_what_was_published(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    repository = DvcRepository(
        tmp_path / "datasets",
        f"s3://{object_store.bucket}/dvc",
        {"endpointurl": object_store.url, "region": "us-east-1"},
        {"access_key_id": object_store.key, "secret_access_key": object_store.secret},
        object_store.files,
    )
    now = datetime(2026, 3, 1, tzinfo=UTC)
    contents = [b"one", random.Random(2).randbytes(6 * 2**20)]
    parts, new = [], {}
    for content in contents:
        md5 = hashlib.md5(content).hexdigest()
        parts.append(Part(md5, "", len(content), 1, 0, now, "a", now, "state", "columns"))
        new[md5] = tmp_path / md5
        new[md5].write_bytes(content)
    version = Version("parcels", 1, State.CUTTING, "r1", now, 1)
    file = repository.publish(version, parts, new, lambda: None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    dvc = str(Path(sys.executable).with_name("dvc"))
    subprocess.run(
        [dvc, "get", repository.url, file.path, "--rev", file.tag],
        cwd=elsewhere,
        check=True,
        capture_output=True,
    )
    got = sorted((elsewhere / "rows").iterdir())
    assert [path.read_bytes() for path in got] == contents
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    assert [path.read_bytes() for path in repository.fetch(parts, fetched)] == contents
