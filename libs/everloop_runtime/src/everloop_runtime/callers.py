"""Who may call: a file of names, each with the services that it may call and the digest of its token.

    callers:
      - name: shop
        services: [inference]
        sha256: 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b

A caller sends its token as `authorization: Bearer <token>`, over gRPC and over HTTP alike. The file holds no token, so
that who reads it can call nothing. It is read again when it changes: to change a token takes no restart.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from everloop_contracts.services import Service
from everloop_contracts.yaml_file import PipelineError, load
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["HEADER", "Caller", "Callers", "CallersFile"]

log = logging.getLogger(__name__)

HEADER = "authorization"
_SCHEME = "bearer "
_LOOK_SECONDS = 2.0


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Caller(_Strict):
    """Somebody who may call."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\s]+$")]
    """Whom the audit trails name; no service's, which sign what they do by themselves."""
    services: Annotated[list[Annotated[Service, Field(strict=False)]], Field(min_length=1)]
    """What it may call."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its token, in hexadecimal digits."""

    @field_validator("name")
    @classmethod
    def _no_service(cls, value: str) -> str:
        if value in set(Service):
            raise ValueError(f"{value} is a service, give another name")
        return value

    @field_validator("sha256")
    @classmethod
    def _of_something(cls, value: str) -> str:
        if value == hashlib.sha256(b"").hexdigest():
            raise ValueError("is the digest of no token at all")
        return value


class CallersFile(_Strict):
    """The file as a whole."""

    callers: list[Caller]

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        digests = [caller.sha256 for caller in self.callers]
        if len(set(digests)) < len(digests):
            raise ValueError("two callers have the same token")
        return self


class Callers:
    """Those of the file, as one service sees them. Threads may share it."""

    def __init__(self, path: Path, service: Service) -> None:
        """Reads the file.

        Raises:
            PipelineError: it cannot be used; the message says why, line by line.
        """
        self._path = path
        self._service = service
        self._lock = threading.Lock()
        self._seen = self._mark()
        self._looked = time.monotonic()
        self._by_digest = self._read()

    def admit(self, authorization: str | None) -> str:
        """Returns the name of the caller who sent this header.

        Raises:
            EverloopError: kind unauthenticated: there is no token, or nobody has it; kind denied: its owner may not
                call this service.
        """
        scheme, token = (authorization or "")[: len(_SCHEME)], (authorization or "")[len(_SCHEME) :]
        if scheme.lower() != _SCHEME or not (token := token.strip()):
            raise EverloopError(
                Kind.UNAUTHENTICATED, "TOKEN_MISSING", f"send '{HEADER}: Bearer <token>'"
            )
        self._look()
        # The digest is looked up: how long that takes tells nothing of any token.
        caller = self._by_digest.get(hashlib.sha256(token.encode()).hexdigest())
        if caller is None:
            raise EverloopError(Kind.UNAUTHENTICATED, "TOKEN_UNKNOWN", "nobody has this token")
        if self._service not in caller.services:
            message = f"'{caller.name}' may call {', '.join(caller.services)}, not {self._service}"
            raise EverloopError(Kind.DENIED, "CALLER_DENIED", message, caller=caller.name)
        return caller.name

    def _look(self) -> None:
        """Reads the file again if it has changed; a broken one changes nothing, and is said once."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        with self._lock:
            self._looked = now
            mark = self._mark()
            if mark == self._seen:
                return
            self._seen = mark
            try:
                self._by_digest = self._read()
            except PipelineError as error:
                log.error("callers stay as they were: %s", error)
            else:
                log.info("callers were read again: %d", len(self._by_digest))

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> dict[str, Caller]:
        return {caller.sha256: caller for caller in load(self._path, CallersFile).callers}
