"""Settings of the registry gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from everloop_runtime.settings import ServiceSettings

__all__ = ["RegistrySettings"]


class RegistrySettings(ServiceSettings):
    """What the registry gateway needs to know; read from `EVERLOOP_*`."""

    data_dir: Path = Path(".everloop/data/registry_gateway")
    database_url: str = "sqlite:///.everloop/data/registry_gateway/registry_gateway.db"
    grpc_address: str = "127.0.0.1:15053"
    metrics_address: str = "127.0.0.1:9403"
    mlflow_timeout_seconds: int = Field(default=10, ge=1)
    """Time that MLflow gets for one answer, and a call for its turn at a model, in seconds."""
    reconcile_seconds: float = Field(default=30.0, gt=0)
    """Time between two comparisons of MLflow's aliases with what they should be, in seconds."""
    request_retention_hours: float = Field(default=168.0, gt=0)
    """Time for which a repeated `request_id` is recognised, in hours."""
    rollout_judge_seconds: float = Field(default=2.0, gt=0)
    """Time between two looks at the rollouts that run, in seconds; failures and errors are looked at when reported."""
    rollout_fresh_seconds: float = Field(default=10.0, gt=0)
    """Age up to which a replica's report says how it does now, in seconds; without one no trial is promoted."""
    rollout_replicas: int = Field(default=10_000, ge=1)
    """Lives of replicas whose totals one running rollout keeps; reports of more are refused."""
