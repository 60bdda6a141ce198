"""Brings into the chart what is decided elsewhere: rules, dashboards, and the settings of the services.

Helm reads files of the chart's own folder only, and its schema knows a setting only if it is told. `--check` changes
nothing and fails where something differs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CHART = ROOT / "deploy/helm/everloop"
SCHEMA = CHART / "values.schema.json"
COPIED = {
    ROOT / "deploy/prometheus": ("*.yaml", CHART / "files/prometheus"),
    ROOT / "deploy/grafana": ("*.json", CHART / "files/grafana"),
}
SERVICES = {
    "ingest": "IngestSettings",
    "trainer": "TrainerSettings",
    "registry_gateway": "RegistrySettings",
    "monitor": "MonitorSettings",
    "inference": "InferenceSettings",
}
# What the chart itself says: addresses, credentials, folders, and what follows from the size of the Ray cluster.
OWNED = {
    "application",
    "callers_file",
    "data_bucket",
    "data_dir",
    "database_url",
    "dvc_bucket",
    "grpc_address",
    "http_address",
    "ingest_address",
    "instance",
    "kafka_bootstrap",
    "metrics_address",
    "metrics_push_address",
    "mlflow_uri",
    "pipelines_dir",
    "predict_grpc_address",
    "ray_address",
    "ray_grpc_port",
    "ray_http_address",
    "registry_address",
    "replica_cpus",
    "replicas",
    "replicas_max",
    "s3_access_key",
    "s3_endpoint",
    "s3_region",
    "s3_secret_key",
    "token",
    "webhook_secret",
}
# Of the process that KubeRay replaces, which nothing reads there.
UNREAD = {"deploy_seconds", "watch_failures", "watch_seconds"}
KEPT = {
    "type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength"
}  # fmt: skip


def settings_of(service: str) -> dict[str, Any]:
    """JSON schema of the settings of a service that an installation may choose."""
    module = importlib.import_module(f"everloop_{service}.settings")
    properties = getattr(module, SERVICES[service]).model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {key: value for key, value in sorted(field.items()) if key in KEPT}
            for name, field in sorted(properties.items())
            if name not in OWNED | UNREAD
        },
    }


def wanted() -> dict[Path, str]:
    """Every file of the chart that follows from others, with its content."""
    schema = json.loads(SCHEMA.read_text())
    settings = {name: settings_of(name) for name in SERVICES}
    schema["$defs"] |= {f"{name}_settings": found for name, found in settings.items()}
    common = set.intersection(*(set(found["properties"]) for found in settings.values()))
    schema["$defs"]["common_settings"] = settings["ingest"] | {
        "properties": {name: settings["ingest"]["properties"][name] for name in sorted(common)}
    }
    files = {SCHEMA: json.dumps(schema, indent=2) + "\n"}
    for source, (pattern, target) in COPIED.items():
        files |= {target / path.name: path.read_text() for path in sorted(source.glob(pattern))}
    return files


def main() -> int:
    """Writes or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the chart differs")
    check = parser.parse_args().check
    files = wanted()
    present = {path for _, target in COPIED.values() for path in target.glob("*")}
    stale = present - set(files)
    changed = [p for p, text in files.items() if not p.exists() or p.read_text() != text]
    if check:
        for path in (*changed, *stale):
            print(f"{path.relative_to(ROOT)}: run `python tools/sync_chart.py`")
        return bool(changed or stale)
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
    for path in stale:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
