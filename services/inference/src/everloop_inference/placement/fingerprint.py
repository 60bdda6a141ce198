"""What tells one deployment from another: its settings, the pipelines' serving rules, and the code it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

import everloop_contracts
import everloop_features
import everloop_inference
import everloop_runtime
from everloop_inference.domain import ServingPolicy
from everloop_inference.settings import InferenceSettings

__all__ = ["SERVICE_ONLY", "fingerprint"]

_CODE = (everloop_contracts, everloop_features, everloop_runtime, everloop_inference)


SERVICE_ONLY: Final = frozenset(
    {
        "application",
        "consumer_max_attempts",
        "database_url",
        "deploy_seconds",
        "grpc_address",
        "grpc_max_concurrent_calls",
        "grpc_workers",
        "inbox_retention_days",
        "metrics_push_max_bytes",
        "pipelines_dir",
        "ray_address",
        "ray_grpc_port",
        "ray_http_address",
        "watch_failures",
        "watch_seconds",
    }
)
"""Settings that no replica reads, and that say nothing about how many there are and how they are treated."""


def fingerprint(settings: InferenceSettings, policies: Mapping[str, ServingPolicy]) -> str:
    """Returns 12 hexadecimal digits that change when a running replica is no longer what would be deployed.

    The version of the code is its text: an editable installation changes without changing its number.
    """
    plain = settings.model_dump(mode="json", exclude=set(SERVICE_ONLY)) | {
        name: getattr(settings, name).get_secret_value() for name in ("s3_secret_key", "token")
    }
    rules = {name: asdict(policy) for name, policy in policies.items()}
    digest = hashlib.sha256(json.dumps([plain, rules], sort_keys=True).encode())
    for package in _CODE:
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
