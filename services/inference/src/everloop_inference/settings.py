"""Settings of the inference service: the only place that reads its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from everloop_contracts.services import Service
from everloop_runtime.settings import ServiceSettings, host_and_port

__all__ = ["InferenceSettings", "PackagedSettings"]


class InferenceSettings(ServiceSettings):
    """What the service process and its replicas need to know.

    The service process reads it once and hands it to the replicas, so that a replica is configured alike wherever
    Ray places it.
    """

    service = Service.INFERENCE

    database_url: str = ""
    """Not used: what a replica must remember is a file in `data_dir`."""
    grpc_address: str = "127.0.0.1:15055"
    """Where the service process answers `grpc.health.v1`, `host:port`."""
    metrics_address: str = "127.0.0.1:9405"
    """Where the service process serves `/metrics`: its own, and by the label `replica` those of all replicas."""
    metrics_push_address: str = ""
    """Where replicas push their metrics, `host:port` as they reach it; `metrics_address` where it is empty."""
    metrics_push_seconds: float = Field(default=5.0, ge=0)
    """Time between two pushes, in seconds; after three without one a replica's metrics are gone. 0 for no pushes."""
    metrics_push_max_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    """Size of what the service process holds of them, in bytes; beyond it a replica's metrics are refused."""

    http_address: str = "127.0.0.1:8080"
    """Where every replica listens for predictions over HTTP, `host:port`; replicas of a node share it."""
    predict_grpc_address: str = "127.0.0.1:8081"
    """Where every replica listens for predictions over gRPC, `host:port`; replicas of a node share it."""
    http_max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Largest HTTP body, in bytes; beyond it the answer is 413."""
    http_max_received_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    """HTTP bodies that a replica holds at once, in bytes; beyond it a large one is answered 503. One body must fit."""
    http_max_connections: int = Field(default=4096, ge=1)
    """HTTP connections that a replica serves at once; beyond it the answer is 503."""
    http_keep_alive_seconds: int = Field(default=75, ge=1)
    """Time after which an idle HTTP connection is closed, in seconds."""
    http_max_head_bytes: int = Field(default=64 * 1024, ge=1024)
    """Request line and headers of an HTTP request, in bytes; beyond it the answer is 431."""
    predict_grpc_server: Literal["native", "grpcio"] = "native"
    """Who answers gRPC predictions: the native listener, or grpcio's asyncio server."""
    predict_grpc_max_connections: int = Field(default=4096, ge=1)
    """gRPC connections that a replica serves at once; beyond it a new one is closed."""
    predict_grpc_max_concurrent_calls: int = Field(default=1024, ge=1)
    """gRPC predictions that a replica holds at once; beyond it the answer is RESOURCE_EXHAUSTED."""
    predict_grpc_max_received_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    """Messages that a replica has received in part, or not read, in bytes; beyond it RESOURCE_EXHAUSTED."""
    predict_grpc_max_unsent_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    """gRPC answers that callers do not take, in bytes; beyond it RESOURCE_EXHAUSTED."""
    predict_grpc_idle_seconds: float = Field(default=300.0, gt=0)
    """Time without a call after which a gRPC connection is told to go, in seconds."""
    predict_grpc_age_seconds: float = Field(default=3600.0, gt=0)
    """Time after which a gRPC connection is told to come again, give or take a tenth, in seconds: new replicas get
    their share."""
    request_seconds: float = Field(default=60.0, gt=0)
    """Time for the head of an HTTP request and a pause in its body, and for a unary gRPC message, in seconds."""
    stall_seconds: float = Field(default=60.0, gt=0)
    """Time for which a caller may take nothing of its answer, in seconds; then it is cut off."""

    queue_rows: int = Field(default=65_536, ge=1)
    """Rows that may wait in a replica; beyond it a request is refused with 429 / RESOURCE_EXHAUSTED."""
    queue_requests: int = Field(default=4096, ge=1)
    """Requests that may wait in a replica; beyond it a request is refused."""
    queue_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    """Size of the requests that may wait in a replica, in bytes; beyond it a request is refused."""
    model_queue_rows: int = Field(default=32_768, ge=1)
    """Rows that may wait for one version of a model in a replica; beyond it a request is refused."""
    model_queue_requests: int = Field(default=2048, ge=1)
    """Requests that may wait for one version of a model in a replica; beyond it a request is refused."""
    model_queue_bytes: int = Field(default=128 * 1024 * 1024, ge=1)
    """Size of these requests, in bytes; beyond it a request is refused."""
    stream_requests: int = Field(default=64, ge=1)
    """Requests of one PredictStream that may be without an answer; beyond it the stream is not read."""
    explain_rows: int = Field(default=32, ge=1)
    """Rows that one request to explain may hold."""
    explain_requests: int = Field(default=16, ge=1)
    """Requests to explain that a replica holds at once; beyond it one is refused."""
    mirror_rows: int = Field(default=8192, ge=1)
    """Rows that may wait in a replica to be predicted by a shadow; beyond it a request is not mirrored, and counted."""
    mirror_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Size of the requests that wait for that, in bytes; beyond it a request is not mirrored, and counted."""
    slow_threads: int = Field(default=1, ge=1)
    """Threads of a replica for runs that take longer than a batch may: large requests, explanations, slow models."""

    registry_address: str = "127.0.0.1:15053"
    """Registry gateway, `host:port`."""
    registry_timeout_seconds: float = Field(default=2.0, gt=0)
    """Time that the registry gateway has to answer, in seconds."""
    reconcile_seconds: float = Field(default=1.0, gt=0)
    """Time between two looks at what should be served, in seconds."""
    downloads: int = Field(default=4, ge=1)
    """Artifacts that a replica downloads at once."""
    artifact_cache_bytes: int = Field(default=2 * 1024**3, ge=1)
    """Disk for the files of versions, in bytes: what served lately serves again at once. Replicas of a node share
    it, those of a pool have as much of their own. What serves, what served before it and what is on trial stays also
    beyond it. A version that is larger by itself is refused."""
    download_timeout_seconds: float = Field(default=120.0, gt=0)
    """Time that the download of one artifact may take, in seconds."""
    load_retry_max_seconds: float = Field(default=60.0, gt=0)
    """Longest pause before an artifact that could not be loaded is tried again, in seconds."""
    golden_tolerance: float = Field(default=1e-4, gt=0)
    """Largest difference to a golden answer, absolute and relative, with which a model may serve."""
    prime_seconds: float = Field(default=20.0, ge=0)
    """Time that a starting replica takes to get what the registry names before it listens, in seconds."""

    log_batch_rows: int = Field(default=2000, ge=1)
    """Rows in one `PredictionsLogged` event, at most."""
    log_batch_seconds: float = Field(default=0.5, gt=0)
    """Age at which buffered rows are sent, in seconds; what `kill -9` of a replica may lose from the log."""
    log_buffer_bytes: int = Field(default=128 * 1024 * 1024, ge=0)
    """Memory that buffered rows may take, in bytes. A model may hold as much as it leaves free, which is half of it
    for one alone; rows beyond it are dropped and counted."""
    log_spill_bytes: int = Field(default=1024 * 1024 * 1024, ge=0)
    """Disk that a replica's rows may take while Kafka is away, in bytes; beyond it rows are dropped and counted."""
    log_send_seconds: float = Field(default=5.0, gt=0)
    """Time that Kafka has to acknowledge a batch before it goes to disk, in seconds."""
    log_retry_seconds: float = Field(default=1.0, gt=0)
    """Time between two attempts to send what is on disk, in seconds."""

    ray_address: str = "127.0.0.1:6379"
    """Ray head that places the replicas, `host:port`."""
    application: str = "inference"
    """Prefix of the Ray Serve application's name."""
    replicas: int = Field(default=1, ge=1, le=256)
    """Replicas that Ray Serve keeps running, those of pools not counted."""
    replicas_max: int = Field(default=0, ge=0, le=256)
    """Replicas up to which Ray Serve may go by what they have to do; as many as `replicas` where it is less."""
    replica_ongoing_requests: float = Field(default=8.0, gt=0)
    """Requests that a replica should be answering on average; with more there come replicas, with fewer some go."""
    scale_up_seconds: float = Field(default=10.0, ge=0)
    """Time for which more replicas must be wanted before they start, in seconds; also those of pools."""
    scale_down_seconds: float = Field(default=300.0, ge=0)
    """Time for which fewer replicas must be wanted before some stop, in seconds; also those of pools."""
    scale_window_seconds: float = Field(default=30.0, gt=0)
    """Time over which requests are averaged for that, in seconds."""
    replica_cpus: float = Field(default=0.5, ge=0)
    """CPUs that a replica reserves with Ray; it limits nothing."""
    replica_health_seconds: float = Field(default=1.0, gt=0)
    """Time between two health checks of a replica by Ray Serve, in seconds."""
    pool_requests: int = Field(default=1024, ge=1)
    """Requests for one pool that a replica passes on at once, or that wait for the pool; beyond it one is refused."""
    pool_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    """Size of these requests, in bytes; beyond it one is refused."""
    pool_seconds: float = Field(default=60.0, gt=0)
    """Time that a pool has to answer, its start included, in seconds; a caller's deadline may be shorter."""
    ray_http_address: str = ""
    """Where Ray Serve's own HTTP proxy listens, `host:port`; none where empty. Serve keeps what it started with."""
    ray_grpc_port: int = Field(default=0, ge=0, le=65535)
    """Port of Ray Serve's own gRPC proxy, which listens on ALL interfaces; none where 0. Needs `ray_http_address`."""
    deploy_seconds: float = Field(default=120.0, gt=0)
    """Time that joining Ray and deploying may take, in seconds; after it the attempt is started over."""
    watch_seconds: float = Field(default=1.0, gt=0)
    """Time between two looks at the data plane by the service process, in seconds."""
    watch_failures: int = Field(default=10, ge=1)
    """Looks in a row without an answer after which the service process deploys again."""

    @property
    def most_replicas(self) -> int:
        """Replicas that there may be."""
        return max(self.replicas, self.replicas_max)

    @field_validator("http_max_received_bytes")
    @classmethod
    def _holds_a_body(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("http_max_body_bytes", 0):
            raise ValueError("is less than EVERLOOP_HTTP_MAX_BODY_BYTES")
        return value

    @field_validator("ray_grpc_port")
    @classmethod
    def _beside_http(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("ray_http_address"):
            raise ValueError("needs EVERLOOP_RAY_HTTP_ADDRESS: Ray starts no proxy without HTTP")
        return value

    @field_validator("ray_http_address", "metrics_push_address")
    @classmethod
    def _address_or_none(cls, value: str) -> str:
        return host_and_port(value) if value else ""

    @field_validator("http_address", "predict_grpc_address", "registry_address", "ray_address")
    @classmethod
    def _more_addresses(cls, value: str) -> str:
        return host_and_port(value)


class PackagedSettings(InferenceSettings):
    """What one model by itself needs to know; settings of registry, Ray and pools mean nothing to it."""

    model_dir: Path
    """Folder that `everloop package` has filled."""
    kafka_bootstrap: str = ""
    """Kafka, for the prediction log; where it is empty, and on AWS Lambda, nothing is logged."""
    metrics_push_seconds: float = Field(default=0.0, ge=0)
    """Time between two pushes of metrics, in seconds; 0 for none: `/metrics` of the HTTP address shows them."""

    @field_validator("kafka_bootstrap")
    @classmethod
    def _addresses(cls, value: str) -> str:
        return InferenceSettings._addresses(value) if value else ""
