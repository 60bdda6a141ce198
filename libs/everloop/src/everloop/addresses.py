"""Where an Everloop is: what the embedded stack wrote down, or what the environment says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from everloop.errors import EverloopError

__all__ = ["Addresses", "find_home", "repository_root"]

_VARIABLES = {
    "ingest": "EVERLOOP_INGEST_ADDRESS",
    "trainer": "EVERLOOP_TRAINER_ADDRESS",
    "registry": "EVERLOOP_REGISTRY_ADDRESS",
    "monitor": "EVERLOOP_MONITOR_ADDRESS",
    "inference_http_url": "EVERLOOP_INFERENCE_HTTP",
    "inference_grpc": "EVERLOOP_INFERENCE_GRPC",
}


@dataclass(frozen=True)
class Addresses:
    """Where the services of one Everloop are; `host:port` for gRPC, a base URL for HTTP.

    Attributes:
        pipelines_dir: Folder of the pipeline files; empty where this machine does not have them.
        home: Home of the embedded stack; None where the addresses are the environment's.
        mlflow_uri: Address of the MLflow server; empty where it is not known.
        token: What every call shows; empty where the services ask nobody who calls.
    """

    ingest: str
    trainer: str
    registry: str
    monitor: str
    inference_http_url: str
    inference_grpc: str
    pipelines_dir: str = ""
    home: Path | None = None
    mlflow_uri: str = ""
    token: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What a request over HTTP says of who calls."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    @classmethod
    def _of(
        cls,
        found: Mapping[str, str],
        pipelines_dir: str,
        home: Path | None,
        mlflow_uri: str,
        token: str,
    ) -> Addresses:
        return cls(
            ingest=found["ingest"],
            trainer=found["trainer"],
            registry=found["registry"],
            monitor=found["monitor"],
            inference_http_url=found["inference_http_url"],
            inference_grpc=found["inference_grpc"],
            pipelines_dir=pipelines_dir,
            home=home,
            mlflow_uri=mlflow_uri,
            token=token,
        )

    @classmethod
    def discover(
        cls, home: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> Addresses:
        """Finds the stack: the environment's addresses where all are set, else `stack.json` of the home.

        The token is what `EVERLOOP_TOKEN` says.

        Args:
            home: Home of an embedded stack; given, it wins over the environment.
            environment: For tests.

        Raises:
            EverloopError: reason STACK_NOT_FOUND: there is no stack, or what describes it cannot be read.
        """
        token = environment.get("EVERLOOP_TOKEN", "")
        if home is None and all(environment.get(name) for name in _VARIABLES.values()):
            found = {key: environment[name] for key, name in _VARIABLES.items()}
            folder = environment.get("EVERLOOP_PIPELINES_DIR", "")
            mlflow_uri = environment.get("EVERLOOP_MLFLOW_URI", "")
            return cls._of(found, folder, None, mlflow_uri, token)
        place = home or find_home(environment)
        file = place / "stack.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            found = {key: str(content[key]) for key in _VARIABLES}
            folder = str(content.get("pipelines_dir", ""))
            return cls._of(found, folder, place, str(content.get("mlflow_uri", "")), token)
        except FileNotFoundError:
            missing = [name for name in _VARIABLES.values() if not environment.get(name)]
            elsewhere = f"for one elsewhere set {', '.join(missing)}"
            raise EverloopError(
                "STACK_NOT_FOUND",
                f"no stack was started in {place}",
                f"start one with `everloop up`, or set EVERLOOP_HOME to where it is; {elsewhere}",
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EverloopError(
                "STACK_NOT_FOUND",
                f"{file} cannot be read: {error!r}",
                "start the stack again: `everloop up`",
            ) from error


def find_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Returns `EVERLOOP_HOME`, else the nearest `.everloop` from the working directory upwards, else the checkout's."""
    if configured := environment.get("EVERLOOP_HOME"):
        return Path(configured).expanduser()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".everloop" / "stack.json").exists():
            return folder / ".everloop"
    return repository_root() / ".everloop"


def repository_root() -> Path:
    """Returns the checkout this package runs from, or the working directory where it is installed."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "buf.yaml").exists() or (folder / "requirements.lock").exists():
            return folder
    return Path.cwd()
