"""From the wire to `EverloopError`: gRPC statuses and HTTP answers in the same words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import grpc
import httpx

from everloop.errors import EverloopError
from everloop_contracts.grpc_client import error_info

__all__ = ["call", "check_http", "http_failure", "stream"]

Answer = TypeVar("Answer")

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 2.0
_UNREACHABLE = "see `everloop status` for what is up, `everloop up` to start it"
_ADVICE = {
    "UNAVAILABLE": _UNREACHABLE,
    "DEADLINE_EXCEEDED": "try again; `everloop status` shows whether the part is busy or down",
    "INTERNAL": "the part's log in <home>/logs has the details",
    "TOKEN_MISSING": "the services ask who calls: set EVERLOOP_TOKEN to your token",
    "TOKEN_UNKNOWN": "check EVERLOOP_TOKEN; whoever keeps the file of callers can add you: `everloop token --help`",
    "SERVICE_REFUSED": "its EVERLOOP_TOKEN, or its entry in the file of callers, is to be mended",
    "CALLER_DENIED": "whoever keeps the file of callers can add the service to your entry",
    "MODEL_NOT_FOUND": "`everloop models` lists what is served",
    "PREDICTION_NOT_FOUND": "the log arrives a moment after the answer: try again",
    "ROLLOUT_NOT_FOUND": "`everloop rollouts` lists them",
    "TRAINING_NOT_FOUND": "`everloop trainings` lists them",
    "TRAINING_ENDED": "`everloop trainings` shows how it ended",
    "PIPELINE_NOT_FOUND": "`everloop status` lists the pipelines",
}


def call(
    method: Callable[..., Answer], request: Any, timeout: float, patience: float = 0.0
) -> Answer:
    """Calls a unary method.

    Args:
        method: The method.
        request: What is asked.
        timeout: Deadline in seconds, of each try.
        patience: For so many seconds a service that is unavailable is asked again; give it only where a repeat is safe.

    Raises:
        EverloopError: What the service answered, or that it did not.
    """
    give_up = time.monotonic() + patience
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            failure: Any = error  # every RpcError of a call is a grpc.Call
        away = failure.code() is grpc.StatusCode.UNAVAILABLE
        if not away or time.monotonic() + pause > give_up:
            raise _from_grpc(failure)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def stream(method: Callable[..., Any], request: Any, patience: float = 0.0) -> Generator[Any]:
    """Reads a server stream to its end, however long that takes.

    Args:
        method: The method; a repeat must begin with how things stand.
        request: What is asked.
        patience: For so many seconds in a row a service that is unavailable is asked again.

    Raises:
        EverloopError: What the service answered, or that it did not.
    """
    give_up = time.monotonic() + patience
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            for answer in method(request):
                yield answer
                give_up, pause = time.monotonic() + patience, _FIRST_PAUSE_SECONDS
            return
        except grpc.RpcError as error:
            failure: Any = error
        away = failure.code() is grpc.StatusCode.UNAVAILABLE
        if not away or time.monotonic() + pause > give_up:
            raise _from_grpc(failure)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _from_grpc(error: Any) -> EverloopError:
    reason, metadata = error_info(error)
    message = (error.details() or reason).splitlines()[0]
    if reason == "UNAVAILABLE":
        # gRPC's own text repeats itself at length; the address is what helps.
        tried = re.search(r"ipv[46]:(\S+:\d+)", message)
        message = (
            f"the service at {tried[1]} does not answer"
            if tried
            else f"the service does not answer ({message})"
        )
    return EverloopError(reason, message, _ADVICE.get(reason, ""), metadata)


def check_http(answer: httpx.Response) -> None:
    """Returns for a good answer.

    Raises:
        EverloopError: With the reason and message of the answer's body where it has them.
    """
    if answer.is_success:
        return
    try:
        body = answer.json()
        error = body.get("error", body)
        message = error if isinstance(error, str) else str(error.get("message") or body)
        reason = str(
            (error if isinstance(error, dict) else body).get("reason")
            or f"HTTP_{answer.status_code}"
        )
    except (ValueError, AttributeError):
        reason, message = f"HTTP_{answer.status_code}", answer.text[:200] or answer.reason_phrase
    raise EverloopError(reason, message, _ADVICE.get(reason, ""))


def http_failure(error: httpx.HTTPError) -> EverloopError:
    """Puts a connection that failed in the words of gRPC's UNAVAILABLE and DEADLINE_EXCEEDED."""
    reason = "DEADLINE_EXCEEDED" if isinstance(error, httpx.TimeoutException) else "UNAVAILABLE"
    return EverloopError(
        reason, f"the service does not answer ({error or type(error).__name__})", _ADVICE[reason]
    )
