"""Webhooks out: what was done to a model is told to a URL, signed, until it is taken or too often refused.

The form is that of Standard Webhooks 1.0 (https://www.standardwebhooks.com): a JSON body, and in the headers an id, the
time of the attempt and an HMAC-SHA256 of the three. An entry of the audit trail and its place in the outbox commit
together, so that none is lost; one that was taken just before a crash comes again, under the same id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import httpx
from google.protobuf.json_format import MessageToDict

from everloop_contracts.pipeline import Pipeline
from everloop_registry_gateway.adapters.outgoing import Outgoing
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.adapters.trail import Trail
from everloop_registry_gateway.convert import audit_message, version_message
from everloop_registry_gateway.domain import AuditEntry, Delivery, ModelVersion
from everloop_registry_gateway.metrics import WEBHOOKS
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError
from everloop_runtime.service import Component, Stopper, backoff

__all__ = ["Hook", "Webhooks", "hooks_of", "signature"]

log = logging.getLogger(__name__)

AT_A_TIME = 100
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Hook:
    """Who is told of a model.

    Attributes:
        actions: those of the audit trail that are told.
        approval: who lets versions serve, as the pipeline says: a receiver of `staged` knows by it whether to act.
    """

    url: str
    actions: frozenset[str]
    approval: str


def hooks_of(pipelines: Mapping[str, Pipeline], default_url: str) -> dict[str, Hook]:
    """The hooks that pipelines declare, by model; `default_url` is for those that name no URL."""
    found = {}
    for name, pipeline in pipelines.items():
        declared = pipeline.promotion.webhook
        url = str(declared.url) if declared.url else default_url
        if url:
            actions = frozenset(declared.actions)
            found[name] = Hook(url, actions, pipeline.promotion.approval)
    return found


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """What the header `webhook-signature` holds.

    Args:
        key: the shared secret, decoded.
        message_id: the header `webhook-id`.
        timestamp: the header `webhook-timestamp`, in seconds since 1970.
        body: as it is sent.
    """
    signed = b".".join([message_id.encode(), str(timestamp).encode(), body])
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


class Webhooks(Component):
    """Sends what is due, at start and then every so often."""

    name = "webhooks"

    def __init__(
        self,
        database: Database,
        hooks: Mapping[str, Hook],
        key: bytes,
        *,
        timeout_seconds: float,
        max_attempts: int,
        every_seconds: float = 1.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Takes what it works with.

        Args:
            database: the gateway's.
            hooks: who is told, by model.
            key: what messages are signed with.
            timeout_seconds: time that a receiver gets to connect, and to answer.
            max_attempts: times that one message is tried.
            every_seconds: time between two looks into the outbox.
            now: the clock.
        """
        self._database = database
        self._hooks = hooks
        self._key = key
        self._timeout = timeout_seconds
        self._max_attempts = max_attempts
        self._every = every_seconds
        self._now = now
        self._thread: threading.Thread | None = None

    def start(self, stopper: Stopper) -> None:
        """Starts the thread."""

        def loop() -> None:
            while not stopper.stopping:
                try:
                    self.deliver()
                except EverloopError as error:
                    log.warning("webhooks are sent later: %s", error)
                stopper.wait(self._every)

        self._thread = stopper.thread(self.name, loop)

    def stop(self) -> None:
        """Ends the thread after the message in hand."""
        if self._thread:
            self._thread.join(timeout=15)

    def deliver(self) -> None:
        """Tries everything that is due, once."""
        away: set[str] = set()
        with self._database.read() as connection:
            due = Outgoing(connection).due(self._now(), AT_A_TIME)
        if not due:
            return
        with httpx.Client(timeout=self._timeout, verify=_authorities()) as client:
            for delivery in due:
                self._deliver(client, delivery, away)

    def _deliver(self, client: httpx.Client, delivery: Delivery, away: set[str]) -> None:
        with self._database.read() as connection:
            entry = Trail(connection).entry(delivery.entry)
            version = entry and Store(connection).version(entry.model, entry.version)
        hook = self._hooks.get(entry.model) if entry else None
        if not (entry and version and hook and entry.action in hook.actions):
            self._done(delivery)
            return
        pause = backoff(delivery.attempts + 1, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        # Not before the attempt that is begun now must have ended.
        again = self._now() + timedelta(seconds=pause + self._timeout)
        with self._database.unit_of_work() as work:
            if not Outgoing(work.connection).attempt(delivery, again):
                return
        problem = self._post(client, hook, entry, version, away)
        if not problem:
            self._done(delivery)
            WEBHOOKS.labels(entry.model, "delivered").inc()
        elif delivery.attempts + 1 >= self._max_attempts:
            self._done(delivery)
            WEBHOOKS.labels(entry.model, "given_up").inc()
            log.error("%s is not told of entry %d any more: %s", hook.url, entry.id, problem)
        else:
            WEBHOOKS.labels(entry.model, "failed").inc()
            log.warning("%s is told of entry %d later: %s", hook.url, entry.id, problem)

    def _post(
        self,
        client: httpx.Client,
        hook: Hook,
        entry: AuditEntry,
        version: ModelVersion,
        away: set[str],
    ) -> str:
        """Sends a message; returns what went wrong. A receiver in `away` has just failed and is not asked again."""
        if hook.url in away:
            return "it did not answer just now"
        body = _body(hook, entry, version)
        message_id, timestamp = entry.link or f"entry-{entry.id}", int(self._now().timestamp())
        headers = {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, message_id, timestamp, body),
        }
        try:
            # Its status is all that counts: a body could be of any length.
            with client.stream("POST", hook.url, content=body, headers=headers) as answer:
                status = answer.status_code
        except httpx.HTTPError as error:
            away.add(hook.url)
            return f"{type(error).__name__}: {error}"
        if 200 <= status < 300:
            return ""
        if status >= 500 or status == 429:
            away.add(hook.url)
        return f"it answered {status}"

    def _done(self, delivery: Delivery) -> None:
        with self._database.unit_of_work() as work:
            Outgoing(work.connection).done(delivery.entry)


@cache
def _authorities() -> ssl.SSLContext:
    """Who vouches for receivers; once, for a client that reads them itself takes 50 ms of a core."""
    return httpx.create_ssl_context()


def _body(hook: Hook, entry: AuditEntry, version: ModelVersion) -> bytes:
    told = {
        "type": f"model.{entry.action}",
        "timestamp": entry.time.isoformat(),
        "data": {
            "approval": hook.approval,
            "entry": MessageToDict(audit_message(entry), preserving_proto_field_name=True),
            "version": MessageToDict(version_message(version), preserving_proto_field_name=True),
        },
    }
    return json.dumps(told).encode()
