"""Settings of the trainer."""

from __future__ import annotations

import socket
from pathlib import Path

from pydantic import Field

from everloop_contracts.services import Service
from everloop_runtime.settings import ServiceSettings

__all__ = ["TrainerSettings"]


class TrainerSettings(ServiceSettings):
    """What the trainer needs to know, on top of what every service does."""

    service = Service.TRAINER

    data_dir: Path = Path(".everloop/data/trainer")
    """Folder that this service may write to."""
    database_url: str = "sqlite:///.everloop/data/trainer/trainer.db"
    """SQLAlchemy address of this service's database."""
    grpc_address: str = "127.0.0.1:15052"
    """Where the gRPC server listens, `host:port`."""
    metrics_address: str = "127.0.0.1:9402"
    """Where `/metrics` listens, `host:port`."""
    ingest_address: str = "127.0.0.1:15051"
    """Where ingest answers, `host:port`."""
    registry_address: str = "127.0.0.1:15053"
    """Where the registry gateway answers, `host:port`."""
    ray_address: str = "auto"
    """Address of the Ray cluster's head, `host:port`; `auto` finds the one of this machine."""
    trial_cpus: float = Field(default=1.0, gt=0)
    """CPUs of the Ray cluster that one trial books."""
    trial_gpus: float = Field(default=0.0, ge=0)
    """GPUs of the Ray cluster that one trial books."""
    instance: str = Field(default_factory=socket.gethostname, min_length=1)
    """Name of this process among those that share the work, the same after a restart."""
    lease_seconds: float = Field(default=30.0, ge=1)
    """How long after a `kill -9` another trainer waits before it takes a training over, in seconds."""
    training_attempts: int = Field(default=6, ge=1)
    """Times a training may fail or crash before it is given up; outages do not count, they are waited for."""
    retry_seconds: float = Field(default=2.0, gt=0)
    """Pause before a training is tried again, after a failure or an outage, in seconds; it doubles, up to 30."""
    patience_seconds: float = Field(default=60.0, ge=0)
    """How long another service that is unavailable is waited for, in seconds."""
