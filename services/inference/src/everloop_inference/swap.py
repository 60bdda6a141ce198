"""The models that serve, and their replacement by reference."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from everloop_inference.domain import ServedModel
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Models"]


class Models:
    """Holds one immutable mapping; a swap replaces the mapping, and who holds a model goes on with it.

    The replaced version is freed when the last request that holds it has answered.
    """

    def __init__(self, expected: str = "") -> None:
        """Nothing serves yet; takes the name of the model that others say is here, if they do."""
        self._expected = expected
        self._serving: Mapping[str, ServedModel] = MappingProxyType({})
        self._writer = threading.Lock()

    @property
    def serving(self) -> Mapping[str, ServedModel]:
        """Models by name, as of now."""
        return self._serving

    def get(self, name: str, version: str = "") -> ServedModel:
        """Returns the version that serves.

        Args:
            name: name of the model.
            version: number that the caller insists on; empty for whichever serves.

        Raises:
            EverloopError: kind not_found: the model, or that version of it, is not served here; kind unavailable: it
                is expected, and not loaded yet.
        """
        model = self._serving.get(name)
        if model is None:
            if name and name == self._expected:
                text = f"no version of '{name}' could be loaded yet"
                raise EverloopError(Kind.UNAVAILABLE, "MODEL_NOT_LOADED", text, model=name).after(
                    1.0
                )
            raise EverloopError(
                Kind.NOT_FOUND, "MODEL_NOT_FOUND", f"no model '{name}' is served here", model=name
            )
        if version and version != str(model.version):
            raise EverloopError(
                Kind.NOT_FOUND,
                "VERSION_NOT_FOUND",
                f"version {version} of '{name}' is not served here, version {model.version} is",
                model=name,
                version=version,
            )
        return model

    def swap(self, model: ServedModel) -> ServedModel:
        """Lets a loaded version serve from now on; returns it with the version it replaced."""
        with self._writer:
            before = self._serving.get(model.name)
            previous = before.version if before else model.previous_version
            model = replace(model, previous_version=previous, since=datetime.now(UTC))
            self._serving = MappingProxyType({**self._serving, model.name: model})
        return model
