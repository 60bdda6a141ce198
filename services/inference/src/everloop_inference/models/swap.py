"""The models that serve, and their replacement by reference."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType

from everloop_inference.domain import ServedModel, Strategy, Trial, no_model
from everloop_inference.models.trial import OnTrial
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Models", "Served"]


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What serves under one name.

    Attributes:
        model: the version that serves.
        trial: the version on trial beside it, if there is one.
    """

    model: ServedModel
    trial: OnTrial | None = None

    @property
    def answering(self) -> list[ServedModel]:
        """The versions that answer requests."""
        trial = self.trial
        return [self.model] if trial is None or trial.shadow else [self.model, trial.candidate]

    @property
    def versions(self) -> list[str]:
        """Numbers of the versions that answer requests."""
        return [str(model.version) for model in self.answering]

    def named(self, version: str) -> ServedModel:
        """Returns the version that a caller insists on; the one that serves where that is empty.

        Raises:
            EverloopError: kind not_found: it answers nobody here.
        """
        model = self.model
        if not version or version == str(model.version):
            return model
        for other in self.answering:
            if version == str(other.version):
                return other
        raise EverloopError(
            Kind.NOT_FOUND,
            "VERSION_NOT_FOUND",
            f"version {version} of '{model.name}' is not served here, version {model.version} is",
            model=model.name,
            version=version,
        )


class Models:
    """Holds one immutable mapping; a change replaces the mapping, and who holds a model goes on with it.

    A version that is replaced or taken back is freed when the last request that holds it has answered.
    """

    def __init__(self, expected: str = "") -> None:
        """Nothing serves yet; takes the name of the model that others say is here, if they do."""
        self._expected = expected
        self._served: Mapping[str, Served] = MappingProxyType({})
        self._writer = threading.Lock()

    @property
    def serving(self) -> Mapping[str, ServedModel]:
        """The version of every model that serves, by name, as of now."""
        return {name: served.model for name, served in self._served.items()}

    @property
    def all(self) -> Collection[Served]:
        """What serves under every name, as of now."""
        return self._served.values()

    @property
    def trials(self) -> Mapping[str, OnTrial]:
        """Versions on trial, by name of their model, as of now."""
        return {name: served.trial for name, served in self._served.items() if served.trial}

    @property
    def answering(self) -> list[ServedModel]:
        """Every version that answers requests, as of now."""
        return [model for served in self._served.values() for model in served.answering]

    def served(self, name: str) -> Served:
        """Returns what serves under a name.

        Raises:
            EverloopError: kind not_found: nothing does; kind unavailable: it is expected, and not loaded yet.
        """
        served = self._served.get(name)
        if served is None:
            if name and name == self._expected:
                text = f"no version of '{name}' could be loaded yet"
                raise EverloopError(Kind.UNAVAILABLE, "MODEL_NOT_LOADED", text, model=name).after(
                    1.0
                )
            raise no_model(name)
        return served

    def get(self, name: str, version: str = "") -> ServedModel:
        """Returns the version that serves, or the one that a caller insists on.

        Args:
            name: name of the model.
            version: number that the caller insists on; empty for the one that serves.

        Raises:
            EverloopError: kind not_found: the model, or that version of it, answers nobody here.
        """
        return self.served(name).named(version)

    def swap(self, model: ServedModel) -> ServedModel:
        """Lets a loaded version serve from now on; returns it with the version it replaced.

        A trial of the model has ended with that, whether the version was its candidate or not.
        """
        with self._writer:
            before = self._served.get(model.name)
            previous = before.model.version if before else model.previous_version
            model = replace(model, previous_version=previous, since=datetime.now(UTC), shadow=False)
            self._put(model.name, Served(model))
        return model

    def begin(self, trial: Trial, candidate: ServedModel) -> None:
        """Lets a loaded version be tried beside the one that serves from now on."""
        shadow = trial.strategy is Strategy.SHADOW
        with self._writer:
            model = self._served[trial.model].model
            candidate = replace(candidate, since=datetime.now(UTC), shadow=shadow)
            self._put(trial.model, Served(model, OnTrial(trial, model, candidate)))

    def end(self, name: str) -> None:
        """Takes the version on trial back."""
        with self._writer:
            self._put(name, Served(self._served[name].model))

    def _put(self, name: str, served: Served) -> None:
        self._served = MappingProxyType({**self._served, name: served})
