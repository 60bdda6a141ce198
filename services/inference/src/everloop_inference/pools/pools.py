"""Models that live in pools of their own: which they are, and their requests' way there and back."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from everloop_inference.domain import Production, Strategy, Trial, Wanted, no_model
from everloop_inference.metrics import PASSED, PASSED_SECONDS, POOL_VERSION
from everloop_inference.ports import Elsewhere, HttpReply, HttpRequest, Lost, RpcReply, RpcRequest
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Pools"]

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 3
RETRY_SECONDS = 1.0


class Pools:
    """Passes requests on, and tells about the models that live elsewhere without asking there.

    What is passed on is bounded by number, size and time. A request whose replica dies is passed on again: a
    prediction may run twice. `note` is called by the reconciling thread, the rest by the event loop of the listeners.
    """

    def __init__(
        self, reach: Mapping[str, Elsewhere], state: Path, requests: int, size: int, seconds: float
    ) -> None:
        """Takes the way to each pool by the name of its model.

        Args:
            reach: pools by the name of their model.
            state: file that remembers which versions the registry named.
            requests: requests for one pool at once.
            size: bytes that they may have.
            seconds: time that a pool has to answer.
        """
        self._reach = reach
        self._state = state
        self._limit = requests
        self._limit_bytes = size
        self._seconds = seconds
        self._held = {name: [0, 0] for name in reach}
        self._known: Mapping[str, Wanted] = MappingProxyType(self._remembered())
        self._trials: Mapping[str, Trial] = MappingProxyType({})
        self._mention()

    def __contains__(self, name: str) -> bool:
        """Whether a model lives in a pool."""
        return name in self._reach

    @property
    def known(self) -> Mapping[str, Wanted]:
        """The versions that pools serve, or will when they have loaded them, by the name of their model."""
        return self._known

    @property
    def answering(self) -> list[Wanted]:
        """Every version that answers requests in a pool, those on trial included; as `known`."""
        return [version for name in self._known for version in self._versions(name)]

    def note(self, production: Production) -> Production:
        """Keeps what the registry says about models of pools; returns what it says about the others.

        A model that the registry no longer names stays known: its pool serves it on. Trials are not remembered.
        """
        pooled = {one.model: one for one in production.versions if one.model in self}
        known = {**self._known, **pooled}
        if known != self._known:
            self._known = MappingProxyType(known)
            self._remember()
            self._mention()
        trials = {trial.model: trial for trial in production.trials if trial.model in self}
        self._trials = MappingProxyType(trials)
        return Production(
            [wanted for wanted in production.versions if wanted.model not in self],
            [trial for trial in production.trials if trial.model not in self],
        )

    def version(self, name: str, version: str = "") -> Wanted:
        """Returns the version that a pool serves, or the one that a caller insists on, without waking it.

        Raises:
            EverloopError: kind not_found: there is none, or the version asked for answers nobody.
        """
        wanted = self._known.get(name)
        if wanted is None:
            raise no_model(name)
        for answering in self._versions(name):
            if version in ("", str(answering.version)):
                return answering
        raise EverloopError(
            Kind.NOT_FOUND,
            "VERSION_NOT_FOUND",
            f"version {version} of '{name}' is not served here, version {wanted.version} is",
            model=name,
            version=version,
        )

    def _versions(self, name: str) -> list[Wanted]:
        """The version in Production first; a shadow answers nobody."""
        wanted, trial = self._known[name], self._trials.get(name)
        is_beside = (
            trial is not None
            and trial.strategy is not Strategy.SHADOW
            and trial.baseline == wanted.version
        )
        return [wanted, trial.candidate] if trial is not None and is_beside else [wanted]

    async def http(
        self, model: str, request: HttpRequest, seconds: float | None = None
    ) -> HttpReply:
        """Lets a pool answer a request over HTTP.

        Raises:
            EverloopError: kind exhausted: too much is on its way already; kind deadline: so many seconds have passed;
                kind unavailable: the pool does not answer in its time.
        """
        to = self._reach[model]
        return await self._passed(model, len(request.body), seconds, lambda: to.http(request))

    async def rpc(self, model: str, request: RpcRequest) -> RpcReply:
        """Lets a pool answer a unary call; raises as `http`."""
        to = self._reach[model]
        return await self._passed(
            model, len(request.message), request.seconds, lambda: to.rpc(request)
        )

    async def _passed(
        self, model: str, size: int, seconds: float | None, send: Callable[[], Awaitable[T]]
    ) -> T:
        if model not in self._known:
            raise no_model(model)
        held = self._held[model]
        if held[0] and (held[0] >= self._limit or held[1] + size > self._limit_bytes):
            PASSED.labels(model, "refused").inc()
            raise EverloopError(
                Kind.EXHAUSTED,
                "OVERLOADED",
                f"{held[0]} requests wait for the model's pool already",
                model=model,
            ).after(RETRY_SECONDS)
        held[0] += 1
        held[1] += size
        began = time.perf_counter()
        outcome = "failed"
        try:
            answer = await self._within(model, seconds, send)
            outcome = "answered"
            return answer
        finally:
            held[0] -= 1
            held[1] -= size
            PASSED.labels(model, outcome).inc()
            PASSED_SECONDS.labels(model).observe(time.perf_counter() - began)

    async def _within(
        self, model: str, seconds: float | None, send: Callable[[], Awaitable[T]]
    ) -> T:
        late = seconds is not None and seconds <= self._seconds
        try:
            async with asyncio.timeout(seconds if late else self._seconds):
                for _ in range(TRIES):
                    try:
                        return await send()
                    except Lost as error:
                        log.warning("a request to the pool of %s was lost: %s", model, error)
        except TimeoutError:
            if late:
                text = "the deadline passed before the model's pool answered"
                raise EverloopError(Kind.DEADLINE, "DEADLINE_EXCEEDED", text, model=model) from None
            text = f"the model's pool did not answer in {self._seconds:g} s"
            raise _away(model, text) from None
        raise _away(model, f"the request was lost {TRIES} times on its way to the model's pool")

    def _mention(self) -> None:
        for name, wanted in self._known.items():
            POOL_VERSION.labels(name).set(wanted.version)

    def _remember(self) -> None:
        part = self._state.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        try:
            self._state.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps([asdict(wanted) for wanted in self._known.values()]))
            part.rename(self._state)
        except OSError as error:
            log.error("what pools serve cannot be remembered: %s", error)

    def _remembered(self) -> dict[str, Wanted]:
        try:
            found = [Wanted(**entry) for entry in json.loads(self._state.read_text())]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            log.error("%s cannot be read, it is made anew: %s", self._state, error)
            return {}
        return {wanted.model: wanted for wanted in found if wanted.model in self}


def _away(model: str, text: str) -> EverloopError:
    return EverloopError(Kind.UNAVAILABLE, "POOL_UNAVAILABLE", text, model=model).after(
        RETRY_SECONDS
    )
