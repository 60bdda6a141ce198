"""What the use cases need from the outside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

__all__ = ["ModelRegistry"]


class ModelRegistry(Protocol):
    """The MLflow Model Registry, as far as the gateway writes to it, and the files that it judges by.

    Every method may be repeated. Each raises EverloopError: kind unavailable if the registry does not answer, kind
    not_found if the model, the version or the run is not there.
    """

    @property
    def away(self) -> bool:
        """Whether it did not answer when it was last asked."""
        ...

    def ensure_version(
        self, model: str, training_id: str, run_id: str, source: str, tags: Mapping[str, str]
    ) -> int:
        """Returns the version that holds the result of a training; makes model and version if they are missing."""
        ...

    def aliases(self, model: str) -> Mapping[str, int]:
        """Returns the model's aliases and the versions they stand for; nothing if there is no such model."""
        ...

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Makes an alias stand for a version."""
        ...

    def delete_alias(self, model: str, alias: str) -> None:
        """Takes an alias away; nothing happens if there is none."""
        ...

    def set_tags(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Sets tags of a version; others stay."""
        ...

    def download(self, run_id: str, folder: Path, most_bytes: int) -> None:
        """Puts the files that replicas load, as they lie with a run now, into an empty folder.

        These are `model.onnx`, `manifest.json`, `golden.json` and the rest of the logged model below `model/`, as far
        as they are there; without descriptions of its environment, and without what Python has compiled.

        Raises:
            EverloopError: as all of them; kind precondition, reason ARTIFACT_TOO_LARGE, if they are more than
                `most_bytes`.
        """
        ...

    def check_version(self, model: str, version: int) -> None:
        """Does nothing but raise what stands against using the version."""
        ...
