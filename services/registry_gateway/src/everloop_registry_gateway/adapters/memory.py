"""A model registry in memory: the fake of `ModelRegistry`, held to the same contract as MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from everloop_runtime.errors import EverloopError, Kind

__all__ = ["MemoryRegistry"]


@dataclass
class _Model:
    versions: dict[int, dict[str, str]] = field(default_factory=dict)
    trainings: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)


class MemoryRegistry:
    """Keeps models in dictionaries."""

    def __init__(self) -> None:
        """Starts empty and reachable."""
        self.models: dict[str, _Model] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.downloads: list[str] = []
        self.reachable = True

    @property
    def away(self) -> bool:
        """Known at once."""
        return not self.reachable

    def ensure_version(
        self, model: str, training_id: str, run_id: str, source: str, tags: Mapping[str, str]
    ) -> int:
        """Numbers versions from 1."""
        self._reach()
        entry = self.models.setdefault(model, _Model())
        if training_id not in entry.trainings:
            number = len(entry.trainings) + 1  # of deleted ones as well: no number comes twice
            entry.versions[number] = {**tags, "everloop.training_id": training_id}
            entry.trainings[training_id] = number
        return entry.trainings[training_id]

    def aliases(self, model: str) -> Mapping[str, int]:
        """Reads them."""
        self._reach()
        return dict(self.models[model].aliases) if model in self.models else {}

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Writes one."""
        self.check_version(model, version)
        self.models[model].aliases[alias] = version

    def delete_alias(self, model: str, alias: str) -> None:
        """Drops one."""
        self._reach()
        self.models[model].aliases.pop(alias, None)

    def set_tags(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Merges them."""
        self.check_version(model, version)
        self.models[model].versions[version] |= dict(tags)

    def tags(self, model: str, version: int) -> Mapping[str, str]:
        """Tags of a version."""
        return self.models[model].versions[version]

    def download(self, run_id: str, folder: Path, most_bytes: int) -> None:
        """Writes what a run holds, and notes that it was asked to."""
        self._reach()
        if run_id not in self.files:
            raise EverloopError(Kind.NOT_FOUND, "NOT_IN_MLFLOW", f"there is no run {run_id}")
        self.downloads.append(run_id)
        size = sum(map(len, self.files[run_id].values()))
        if size > most_bytes:
            raise EverloopError(
                Kind.PRECONDITION, "ARTIFACT_TOO_LARGE", f"run {run_id} holds {size} bytes"
            )
        for path, content in self.files[run_id].items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def check_version(self, model: str, version: int) -> None:
        """Raises if the version is not there."""
        self._reach()
        if version not in self.models.get(model, _Model()).versions:
            raise EverloopError(
                Kind.NOT_FOUND,
                "NOT_IN_MLFLOW",
                f"the registry holds no version {version} of {model}",
            )

    def _reach(self) -> None:
        if not self.reachable:
            raise EverloopError(
                Kind.UNAVAILABLE, "MLFLOW_UNAVAILABLE", "the registry does not answer"
            )
