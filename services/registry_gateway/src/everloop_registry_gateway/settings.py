"""Settings of the registry gateway."""

from __future__ import annotations

import base64
from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from everloop_contracts.services import Service
from everloop_runtime.settings import ServiceSettings

__all__ = ["RegistrySettings"]


class RegistrySettings(ServiceSettings):
    """What the registry gateway needs to know; read from `EVERLOOP_*`."""

    service = Service.REGISTRY_GATEWAY

    data_dir: Path = Path(".everloop/data/registry_gateway")
    database_url: str = "sqlite:///.everloop/data/registry_gateway/registry_gateway.db"
    grpc_address: str = "127.0.0.1:15053"
    metrics_address: str = "127.0.0.1:9403"
    mlflow_timeout_seconds: int = Field(default=10, ge=1)
    """Time that MLflow gets for one answer, and a call for its turn at a model, in seconds."""
    artifact_cache_bytes: int = Field(default=1024**3, ge=1)
    """Disk for files of versions that replicas ask for, in bytes; a version with more is refused. Downloads that run
    come on top."""
    artifact_seconds: float = Field(default=120.0, gt=0)
    """Time that MLflow gets for the files of one version, and a replica to take them, in seconds."""
    reconcile_seconds: float = Field(default=30.0, gt=0)
    """Time between two comparisons of MLflow's aliases with what they should be, in seconds."""
    request_retention_hours: float = Field(default=168.0, gt=0)
    """Time for which a repeated `request_id` is recognised, in hours."""
    watch_seconds: float = Field(default=0.1, gt=0)
    """Time between two looks at what should serve, for those who watch it, in seconds."""
    watchers: int = Field(default=256, ge=1)
    """Replicas and people that may watch at once, each with a thread that waits; more are refused."""
    rollout_judge_seconds: float = Field(default=2.0, gt=0)
    """Time between two looks at the rollouts that run, in seconds; failures and errors are looked at when reported."""
    rollout_fresh_seconds: float = Field(default=10.0, gt=0)
    """Age up to which a replica's report says how it does now, in seconds; without one no trial is promoted."""
    webhook_url: str = ""
    """Who is told what was done to models whose pipelines name no `promotion.webhook.url`; empty for nobody."""
    webhook_secret: SecretStr = SecretStr("")
    """What webhooks are signed with: `whsec_` and 24 to 64 bytes in base64, shared with who receives them."""
    webhook_timeout_seconds: float = Field(default=5.0, gt=0)
    """Time that a receiver of webhooks gets to connect, and to answer, in seconds."""
    webhook_max_attempts: int = Field(default=15, ge=1)
    """Times that a webhook is tried; the pauses double from one second to an hour, and 15 take some four hours."""
    rollout_replicas: int = Field(default=10_000, ge=1)
    """Lives of replicas whose totals one running rollout keeps; reports of more are refused."""

    @field_validator("webhook_secret")
    @classmethod
    def _secret(cls, value: SecretStr) -> SecretStr:
        secret = value.get_secret_value()
        if secret and not 24 <= len(_decoded(secret)) <= 64:
            raise ValueError("must be whsec_ and 24 to 64 bytes in base64")
        return value

    @property
    def webhook_key(self) -> bytes:
        """The secret's bytes; empty if there is none."""
        return _decoded(self.webhook_secret.get_secret_value())


def _decoded(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        return b""
