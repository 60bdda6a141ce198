"""Where the parts of a stack are: what `stack.json` says, and the environment that says the same to a process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from everloop.stack.credentials import Credentials, ray_token_path
from everloop.stack.errors import StackError
from everloop.stack.home import Home
from everloop.stack.private_file import write_private

__all__ = ["BUCKETS", "Endpoints", "load", "plan", "save"]

DATA_BUCKET = "everloop-data"
DVC_BUCKET = "everloop-dvc"
MLFLOW_BUCKET = "everloop-mlflow"
BUCKETS = (DATA_BUCKET, DVC_BUCKET, MLFLOW_BUCKET)


@dataclass(frozen=True)
class Endpoints:
    """Addresses and keys of one stack. Addresses are `host:port` unless the name says URL or URI.

    Attributes:
        home: The home of the stack.
        ports: Every port that was chosen, by name (see `everloop.stack.ports.DEFAULTS`).
        kafka_bootstrap: Kafka's bootstrap servers.
        kafka_is_ours: False where the bootstrap servers were configured and no broker is started.
        s3_url: The S3 endpoint.
        mlflow_uri: The tracking and registry server, which is also MLflow's UI.
        ray_address: What `ray.init(address=...)` takes.
        ray_token_path: File with Ray's token.
        ingest: gRPC of ingest; likewise trainer, registry, monitor.
        inference: gRPC health of the inference service's own process.
        inference_http_url: Base URL of the data plane over HTTP.
        inference_grpc: The data plane over gRPC.
        metrics: `/metrics` address of each service.
        pipelines_dir: Folder with the pipeline specifications.
    """

    home: str
    ports: dict[str, int]
    kafka_bootstrap: str
    kafka_is_ours: bool
    s3_url: str
    s3_access_key: str
    s3_secret_key: str
    s3_region: str
    data_bucket: str
    dvc_bucket: str
    mlflow_bucket: str
    mlflow_uri: str
    ray_address: str
    ray_token_path: str
    ingest: str
    trainer: str
    registry: str
    monitor: str
    inference: str
    inference_http_url: str
    inference_grpc: str
    metrics: dict[str, str]
    pipelines_dir: str

    def environment(self) -> dict[str, str]:
        """Return the environment variables that tell any process, service or client, where the stack is."""
        return {
            "EVERLOOP_HOME": self.home,
            "EVERLOOP_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "EVERLOOP_S3_ENDPOINT": self.s3_url,
            "EVERLOOP_S3_ACCESS_KEY": self.s3_access_key,
            "EVERLOOP_S3_SECRET_KEY": self.s3_secret_key,
            "EVERLOOP_S3_REGION": self.s3_region,
            "EVERLOOP_DATA_BUCKET": self.data_bucket,
            "EVERLOOP_DVC_BUCKET": self.dvc_bucket,
            "EVERLOOP_MLFLOW_URI": self.mlflow_uri,
            "EVERLOOP_RAY_ADDRESS": self.ray_address,
            "EVERLOOP_PIPELINES_DIR": self.pipelines_dir,
            "EVERLOOP_INGEST_ADDRESS": self.ingest,
            "EVERLOOP_TRAINER_ADDRESS": self.trainer,
            "EVERLOOP_REGISTRY_ADDRESS": self.registry,
            "EVERLOOP_MONITOR_ADDRESS": self.monitor,
            "EVERLOOP_INFERENCE_HTTP": self.inference_http_url,
            "EVERLOOP_INFERENCE_GRPC": self.inference_grpc,
            **self.ray_environment(),
        }

    def listening(self) -> dict[str, str]:
        """Return every address that a user may want, by name; `<service>_metrics` is what Prometheus scrapes."""
        return {
            "kafka": self.kafka_bootstrap,
            "s3": self.s3_url,
            "mlflow": self.mlflow_uri,
            "ray": self.ray_address,
            "inference_http": self.inference_http_url,
            "inference_grpc": self.inference_grpc,
            "inference": self.inference,
            "ingest": self.ingest,
            "trainer": self.trainer,
            "registry": self.registry,
            "monitor": self.monitor,
            **{f"{name}_metrics": f"http://{at}/metrics" for name, at in self.metrics.items()},
        }

    def ray_environment(self) -> dict[str, str]:
        """Return what Ray's head and everything that joins it must agree on."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.ray_token_path,
            "RAY_USAGE_STATS_ENABLED": "0",
            # The name misleads: off, it keeps Ray on 127.0.0.1. Otherwise Ray replaces a loopback address by the
            # machine's outward one and listens on every interface.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }


def plan(
    home: Home, ports: dict[str, int], keys: Credentials, pipelines: Path, bootstrap: str | None
) -> Endpoints:
    """Lay out the endpoints of a stack whose ports are chosen; `bootstrap` names a Kafka that is already there."""

    def at(name: str) -> str:
        return f"127.0.0.1:{ports[name]}"

    services = ("ingest", "trainer", "registry", "monitor", "inference")
    return Endpoints(
        home=str(home.root),
        ports=ports,
        kafka_bootstrap=bootstrap or at("kafka"),
        kafka_is_ours=not bootstrap,
        s3_url=f"http://{at('s3')}",
        s3_access_key=keys.s3_access_key,
        s3_secret_key=keys.s3_secret_key,
        s3_region="us-east-1",
        data_bucket=DATA_BUCKET,
        dvc_bucket=DVC_BUCKET,
        mlflow_bucket=MLFLOW_BUCKET,
        mlflow_uri=f"http://{at('mlflow')}",
        ray_address=at("ray"),
        ray_token_path=str(ray_token_path(home)),
        ingest=at("ingest"),
        trainer=at("trainer"),
        registry=at("registry"),
        monitor=at("monitor"),
        inference=at("inference"),
        inference_http_url=f"http://{at('inference_http')}",
        inference_grpc=at("inference_grpc"),
        metrics={name: at(f"{name}_metrics") for name in services},
        pipelines_dir=str(pipelines),
    )


def save(home: Home, endpoints: Endpoints) -> None:
    """Write `stack.json`; it holds keys, so that only its owner can read it."""
    write_private(home.endpoints, json.dumps(asdict(endpoints), indent=2) + "\n")


def load(home: Path | Home) -> Endpoints:
    """Read `stack.json`.

    Raises:
        StackError: There is none, so that no stack was started here.
    """
    found = home if isinstance(home, Home) else Home.at(home)
    try:
        return Endpoints(**json.loads(found.endpoints.read_text()))
    except FileNotFoundError:
        raise StackError(f"no stack was started in {found.root}: run `make up`") from None
    except (TypeError, ValueError) as error:
        raise StackError(f"{found.endpoints} cannot be read: {error}") from None
