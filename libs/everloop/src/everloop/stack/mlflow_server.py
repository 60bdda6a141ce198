"""Runs MLflow's server in this very process.

`mlflow server` imports MLflow twice, once to start uvicorn and once inside it, and keeps both: on a small machine
that is 220 MB and several seconds for nothing, and a child that outlives its parent's `kill -9`. This hands the same
settings to the same application. The names of the settings are MLflow's own and private: `everloop` pins MLflow's
minor version, and a test of the stack stores an artifact through the server.
"""

from __future__ import annotations

import argparse
import os


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description="MLflow tracking and registry server")
    parser.add_argument(
        "--store", required=True, help="SQLAlchemy URI of the tracking and registry store"
    )
    parser.add_argument(
        "--artifacts", required=True, help="URI under which proxied artifacts are stored"
    )
    parser.add_argument("--port", required=True, type=int, help="port on 127.0.0.1")
    wanted = parser.parse_args()

    from mlflow import server

    os.environ[server.BACKEND_STORE_URI_ENV_VAR] = wanted.store
    os.environ[server.REGISTRY_STORE_URI_ENV_VAR] = wanted.store
    os.environ[server.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[server.ARTIFACTS_DESTINATION_ENV_VAR] = wanted.artifacts
    os.environ[server.SERVE_ARTIFACTS_ENV_VAR] = "true"
    os.environ["_MLFLOW_SGI_NAME"] = "uvicorn"

    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(wanted.store, wanted.store, "mlflow-artifacts:/")

    import uvicorn

    uvicorn.run(
        "mlflow.server.fastapi_app:app",
        host="127.0.0.1",
        port=wanted.port,
        access_log=False,
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
