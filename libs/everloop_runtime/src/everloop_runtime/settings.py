"""Settings: the only way from the environment into a service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from everloop_contracts.services import Service
from everloop_runtime.callers import Callers

__all__ = ["PREFIX", "ServiceSettings", "host_and_port"]

PREFIX = "EVERLOOP_"


def host_and_port(value: str) -> str:
    """Checks an address; for the validators of settings.

    Raises:
        ValueError: it is not `host:port`.
    """
    host, _, port = value.strip().rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"must be host:port, not {value!r}")
    return value


class ServiceSettings(BaseSettings):
    """What every service needs to know; read from `EVERLOOP_*`, immutable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    service: ClassVar[Service]
    """Its name among those that a caller may call."""

    kafka_bootstrap: str = "127.0.0.1:9092"
    """Kafka bootstrap servers, `host:port[,host:port…]`."""
    pipelines_dir: Path = Path("pipelines")
    """Folder of pipeline specifications."""
    data_dir: Path
    """Folder that this service may write to."""
    database_url: str
    """SQLAlchemy address of this service's database."""
    grpc_address: str
    """Where the gRPC server listens, `host:port` or `unix:<path>`."""
    metrics_address: str
    """Where `/metrics` listens, `host:port`."""
    callers_file: Path | None = None
    """File of those who may call (`everloop_runtime.callers`); where it is empty, whoever reaches an address may."""
    token: SecretStr = SecretStr("")
    """What this service shows to the others, where they ask who calls."""
    log_level: str = "INFO"
    """Lowest level that is logged."""
    grpc_workers: int = Field(default=8, ge=1)
    """Threads that answer gRPC calls at once; streams take at most half of them."""
    grpc_max_message_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Largest gRPC message, in bytes, either way."""
    grpc_max_concurrent_calls: int = Field(default=64, ge=1)
    """Calls beyond this many are refused with RESOURCE_EXHAUSTED."""
    consumer_max_attempts: int = Field(default=12, ge=1)
    """Times an event is tried before it goes to the dead-letter topic; 12 take over a minute. Outages do not count."""
    inbox_retention_days: float = Field(default=21.0, gt=0)
    """Age at which the id of a handled event is forgotten, in days. Must exceed the time for which Kafka keeps an
    event (its topic's `retention.ms` plus `segment.ms`, by default a week each): an event that comes again later than
    that is handled again."""
    drain_seconds: float = Field(default=10.0, ge=0)
    """Time that running calls get at shutdown, in seconds."""

    s3_endpoint: str = "http://127.0.0.1:8333"
    """Address of the S3 endpoint."""
    s3_access_key: str = ""
    """S3 access key; empty to use the ambient credentials (IRSA)."""
    s3_secret_key: SecretStr = SecretStr("")
    """S3 secret key."""
    s3_region: str = "us-east-1"
    """S3 region."""
    mlflow_uri: str = "http://127.0.0.1:5000"
    """Address of the MLflow server."""

    @field_validator("grpc_address", "metrics_address")
    @classmethod
    def _address(cls, value: str, field: ValidationInfo) -> str:
        socket = field.field_name == "grpc_address" and value.startswith("unix:")
        return value if socket else host_and_port(value)

    @field_validator("callers_file", mode="before")
    @classmethod
    def _file_or_none(cls, value: object) -> object:
        return value or None

    @field_validator("callers_file")
    @classmethod
    def _callers(cls, value: Path | None) -> Path | None:
        if value:
            Callers(value, cls.service)
        return value

    @field_validator("kafka_bootstrap")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for server in value.split(","):
            host_and_port(server)
        return value

    def callers(self) -> Callers | None:
        """Opens the file of those who may call; None where whoever reaches an address may."""
        return Callers(self.callers_file, self.service) if self.callers_file else None

    @classmethod
    def load(cls) -> Self:
        """Reads the environment; ends the process with status 2 and each broken variable's name."""
        try:
            return cls()
        except ValidationError as error:
            for item in error.errors():
                name = PREFIX + "_".join(str(part) for part in item["loc"]).upper()
                print(f"{name}: {item['msg']}", file=sys.stderr)
            sys.exit(2)
