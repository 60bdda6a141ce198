"""Webhooks out, against a real HTTP server that fails, is slow, is away and comes back."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from everloop_contracts.pipeline import Promotion
from everloop_registry_gateway.domain import Act
from everloop_registry_gateway.settings import RegistrySettings
from everloop_registry_gateway.webhooks import Webhooks, hooks_of
from everloop_runtime.service import Stopper

KEY = b"k" * 24
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver:
    """A receiver of webhooks: does with each what it is told to, and keeps all of them."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int | threading.Event] = []
        """Statuses of the next answers, or what to wait for before one; 204 when there are none left."""
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    def open(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
                answer = receiver.answers.pop(0) if receiver.answers else 204
                if isinstance(answer, threading.Event):
                    answer.wait(30)
                    return
                self.send_response(answer)
                self.send_header("location", self.path)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.heard]


@pytest.fixture
def receivers() -> Iterator[Callable[[], Receiver]]:
    made: list[Receiver] = []

    def make() -> Receiver:
        made.append(Receiver())
        made[-1].open()
        return made[-1]

    yield make
    for receiver in made:
        for answer in receiver.answers:
            if isinstance(answer, threading.Event):
                answer.set()
        receiver.close()


@pytest.fixture
def receiver(receivers) -> Receiver:
    made: Receiver = receivers()
    return made


def sender(world, attempts: int = 3, **hook) -> Webhooks:
    """What sends the webhooks of a world, by its clock."""
    rules = {"approval": "manual", "webhook": hook}
    pipeline = world.pipeline.model_copy(update={"promotion": Promotion.model_validate(rules)})
    return Webhooks(
        world.database,
        hooks_of({"late": pipeline}, ""),
        KEY,
        timeout_seconds=0.3,
        max_attempts=attempts,
        every_seconds=0.01,
        now=world.now,
    )


def waiting(world) -> dict[int, int]:
    """Attempts by entry, of what is still to be sent."""
    with world.database.read() as connection:
        rows = connection.execute(sa.text("SELECT entry, attempts FROM webhooks ORDER BY entry"))
        return {entry: attempts for entry, attempts in rows}


def test_a_version_that_waits_is_told_of_signed_and_whole(world, receiver):
    world.use(approval="manual")
    world.register(1)
    sender(world, url=receiver.url).deliver()

    assert waiting(world) == {}
    ((headers, body),) = receiver.heard
    told = json.loads(body)
    assert (told["type"], told["data"]["approval"]) == ("model.staged", "manual")
    assert told["data"]["version"]["stage"] == "STAGE_STAGING"
    assert told["data"]["version"]["metrics"] == {"roc_auc": 0.701}
    entry = world.entries()[-1]
    assert told["data"]["entry"]["id"] == str(entry.id)
    assert told["timestamp"] == entry.time.isoformat()

    assert headers["webhook-id"] == entry.link
    sent = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    assert abs(sent - world.now()) < timedelta(minutes=1)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_each_action_that_is_asked_for_is_told_once_in_order(world, receiver):
    world.use(approval="manual")
    hooks = sender(world, url=receiver.url, actions=["staged", "approved", "promoted", "rejected"])
    world.register(1)
    world.rule(Act.APPROVE, 1)
    world.register(2)
    world.rule(Act.REJECT, 2)
    hooks.deliver()
    hooks.deliver()
    assert receiver.types() == [
        f"model.{action}" for action in ("staged", "approved", "promoted", "staged", "rejected")
    ]
    assert waiting(world) == {}


def test_without_a_hook_nothing_waits(world):
    world.register(1)
    assert len(waiting(world)) == 3
    sender(world).deliver()
    assert waiting(world) == {}


def test_where_nothing_waits_no_client_is_made(world, receiver, monkeypatch):
    """It reads the certificates of all authorities: once a second that is a twentieth of a core."""
    monkeypatch.setattr("httpx.Client", None)
    sender(world, url=receiver.url).deliver()


@pytest.mark.parametrize("status", [500, 503, 429, 404, 302])
def test_a_refusal_is_tried_again_later_under_the_same_id(world, receiver, status):
    world.register(1, metrics={"roc_auc": 0.1})
    receiver.answers = [status]
    hooks = sender(world, url=receiver.url)
    hooks.deliver()
    assert list(waiting(world).values()) == [1]
    hooks.deliver()
    assert len(receiver.heard) == 1, "it is too early for the next attempt"
    world.later += timedelta(seconds=2)
    hooks.deliver()
    assert waiting(world) == {}
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    assert len(receiver.heard) == 2


def test_a_receiver_that_does_not_answer_in_time_is_tried_again(world, receiver):
    world.register(1, metrics={"roc_auc": 0.1})
    slow = threading.Event()
    receiver.answers = [slow]
    hooks = sender(world, url=receiver.url)
    hooks.deliver()
    slow.set()
    assert list(waiting(world).values()) == [1]
    world.later += timedelta(seconds=2)
    hooks.deliver()
    assert waiting(world) == {}


def test_a_receiver_that_was_away_hears_all_when_it_is_back(world, receiver):
    world.use(approval="manual")
    receiver.close()
    hooks = sender(world, attempts=9, url=receiver.url)
    for number in (1, 2, 3):
        world.register(number)
        world.later += timedelta(minutes=1)
        hooks.deliver()
    assert list(waiting(world).values()) == [3, 2, 1]
    receiver.open()
    world.later += timedelta(minutes=1)
    hooks.deliver()
    assert receiver.types() == ["model.staged"] * 3
    assert waiting(world) == {}


def test_one_that_never_answers_is_given_up_after_so_many_attempts(world, receiver):
    from prometheus_client import REGISTRY

    def count(outcome: str) -> float:
        labels = {"model": "late", "outcome": outcome}
        return REGISTRY.get_sample_value("everloop_registry_webhooks_total", labels) or 0.0

    before = count("failed"), count("given_up")
    world.register(1, metrics={"roc_auc": 0.1})
    receiver.answers = [500] * 9
    hooks = sender(world, attempts=3, url=receiver.url)
    for _ in range(6):
        hooks.deliver()
        world.later += timedelta(hours=2)
    assert len(receiver.heard) == 3
    assert waiting(world) == {}
    assert (count("failed"), count("given_up")) == (before[0] + 2, before[1] + 1)


def test_one_attempt_finds_a_receiver_away_for_all_that_wait_for_it(world, receiver):
    world.use(approval="manual")
    for number in (1, 2, 3):
        world.register(number)
    receiver.answers = [503] * 9
    sender(world, url=receiver.url).deliver()
    assert len(receiver.heard) == 1
    assert list(waiting(world).values()) == [1, 1, 1]


def test_two_gateways_send_a_message_once(world, receiver):
    world.register(1, metrics={"roc_auc": 0.1})
    both = [sender(world, url=receiver.url) for _ in "ab"]
    gate = threading.Barrier(2)

    def deliver(hooks: Webhooks) -> None:
        gate.wait()
        hooks.deliver()

    threads = [threading.Thread(target=deliver, args=[hooks]) for hooks in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receiver.heard) == 1


def test_what_a_crash_leaves_unsent_is_sent_by_the_next_process(world, receiver, monkeypatch):
    world.register(1, metrics={"roc_auc": 0.1})

    def die(*arguments: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Webhooks, "_post", die)
        sender(world, url=receiver.url).deliver()
    world.later += timedelta(seconds=2)
    sender(world, url=receiver.url).deliver()
    assert receiver.types() == ["model.rejected"]


def test_the_component_sends_until_it_is_stopped(world, receiver):
    hooks, stopper = sender(world, url=receiver.url), Stopper()
    hooks.start(stopper)
    world.register(1, metrics={"roc_auc": 0.1})
    deadline = datetime.now(UTC) + timedelta(seconds=20)
    while not receiver.heard:
        assert datetime.now(UTC) < deadline
        threading.Event().wait(0.01)
    stopper.stop()
    hooks.stop()
    assert not stopper.failed


@pytest.mark.parametrize("secret", ["short", "whsec_c2hvcnQ=", "whsec_" + "é" * 40])
def test_a_secret_that_is_none_is_refused_at_start(secret):
    with pytest.raises(ValidationError, match="24 to 64 bytes"):
        RegistrySettings(webhook_secret=secret)
    assert RegistrySettings(webhook_secret=SECRET).webhook_key == KEY
