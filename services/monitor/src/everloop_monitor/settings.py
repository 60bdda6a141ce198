"""Settings of the monitor."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from everloop_contracts.services import Service
from everloop_runtime.settings import ServiceSettings

__all__ = ["MonitorSettings"]


class MonitorSettings(ServiceSettings):
    """What the monitor needs to know, on top of what every service does."""

    service = Service.MONITOR

    data_dir: Path = Path(".everloop/data/monitor")
    """Folder that this service may write to."""
    database_url: str = "sqlite:///.everloop/data/monitor/monitor.db"
    """SQLAlchemy address of this service's database."""
    grpc_address: str = "127.0.0.1:15054"
    """Where the gRPC server listens, `host:port`."""
    metrics_address: str = "127.0.0.1:9404"
    """Where `/metrics` listens, `host:port`."""
    watchers: int = Field(default=64, ge=1)
    """Callers that may watch at once, each with a thread that looks once a second; more are refused."""
    retained_rows: int = Field(default=2_000_000, ge=1)
    """Predictions that are kept per pipeline; the oldest go first, and chunks that lose rows are closed."""
    retained_labels: int = Field(default=5_000_000, ge=1)
    """Labels that are kept per pipeline, whether their predictions ever came or not; the oldest go first."""
    retained_label_days: int = Field(default=90, ge=1)
    """Days that a label is kept after it came."""
    waiting_chunks: int = Field(default=50, ge=1)
    """Chunks per pipeline, the newest, that wait for labels; older ones are closed without."""
    retained_chunks: int = Field(default=10_000, ge=100)
    """Settled chunks that are kept per pipeline, with what they showed."""
    retained_decisions: int = Field(default=20_000, ge=100)
    """Decisions that are kept per pipeline, and as many requests for a retrain."""
    retained_versions: int = Field(default=1_000, ge=1)
    """Model versions per pipeline, the newest, that stay known when nothing else of them is left."""
    fitted_models: int = Field(default=8, ge=1)
    """Model versions whose fitted calculators are kept in memory."""
    retry_seconds: float = Field(default=5.0, gt=0)
    """Time until a chunk that could not be evaluated is tried again, in seconds."""
    evaluation_attempts: int = Field(default=5, ge=1)
    """Times a chunk is tried that no outage keeps from its evaluation; then it is closed without."""
    maintenance_seconds: float = Field(default=60.0, gt=0)
    """Time between two rounds that keep the database within these bounds, in seconds."""
    early_warning_seconds: float = Field(default=60.0, gt=0)
    """Time between two looks at the chunks that are not yet full, in seconds."""
    mlflow_timeout_seconds: int = Field(default=10, ge=1)
    """Time that MLflow gets to answer, in seconds."""
