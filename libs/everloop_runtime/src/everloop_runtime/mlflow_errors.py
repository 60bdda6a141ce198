"""MLflow's errors as ours. Imports MLflow only when something failed; whoever talks to MLflow depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from everloop_runtime.errors import EverloopError, Kind

__all__ = ["translated"]

# MLflow's client turns every request that came to nothing into INTERNAL_ERROR and keeps the difference in the text;
# where it fetches files it keeps nothing else. Its minor version is pinned, and the tests hold the texts.
_NO_ANSWER = "API request to "
_SERVER_ERROR = "too many 500 error responses"


@contextmanager
def translated(*, files: bool = False) -> Iterator[None]:
    """Turns what MLflow's client raises in the block into errors of a kind.

    Args:
        files: the block does nothing but transfer files: a 500 is an outage then, since that is how MLflow's server
            says that the object store behind it is away. Otherwise it may be the request's own fault.

    Raises:
        EverloopError: kind unavailable if MLflow does not answer; kind not_found if it has no such thing; kind internal
            otherwise.
    """
    try:
        yield
    except Exception as error:
        from mlflow.exceptions import MlflowException

        if not isinstance(error, MlflowException):
            raise
        text = str(error)
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise EverloopError(Kind.NOT_FOUND, "NOT_IN_MLFLOW", text) from error
        if _NO_ANSWER in text and (files or _SERVER_ERROR not in text):
            behind = ", or not the object store behind it" if files else ""
            raise EverloopError(
                Kind.UNAVAILABLE, "MLFLOW_UNAVAILABLE", f"MLflow does not answer{behind}: try again"
            ) from error
        raise EverloopError(Kind.INTERNAL, "MLFLOW_FAILED", f"MLflow: {text}") from error
