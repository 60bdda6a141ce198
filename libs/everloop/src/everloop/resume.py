"""How far the push of a file is, kept in a small file, so that it can go on after an interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from everloop.errors import EverloopError

__all__ = ["PushState", "begin", "finish", "resume", "save"]


@dataclass
class PushState:
    """Where the push of a file is.

    Attributes:
        file: Absolute path.
        size: Bytes of the file when the push began.
        modified: When the file was changed last before that, nanoseconds since 1970-01-01 UTC.
        pipeline: Where the records belong.
        ingest: Address of the service that they go to.
        id: Names the push: records that are sent again under it add nothing.
        position: Records that have their answer.
        accepted: How many of them were accepted.
        rejected: How many were not.
    """

    file: str
    size: int
    modified: int
    pipeline: str
    ingest: str
    id: str
    position: int = 0
    accepted: int = 0
    rejected: int = 0


def begin(file: Path, pipeline: str, ingest: str) -> PushState:
    """Returns the state of a push that is about to begin; nothing is kept yet.

    Raises:
        EverloopError: Reason FILE_NOT_READABLE.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise EverloopError(
            "FILE_NOT_READABLE",
            f"{file} cannot be read: {error.strerror or error}",
            "check the path",
        ) from error
    return PushState(
        str(file.resolve()), status.st_size, status.st_mtime_ns, pipeline, ingest, str(uuid.uuid4())
    )


def resume(file: Path, pipeline: str, ingest: str) -> PushState:
    """Returns the state that an interrupted push has left.

    Raises:
        EverloopError: Reason NOTHING_TO_RESUME, FILE_CHANGED, FILE_NOT_READABLE.
    """
    fresh = begin(file, pipeline, ingest)
    start_anew = "push it from its beginning, without --resume: records that come twice change no dataset version"
    try:
        kept = PushState(**json.loads(_path(fresh).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise EverloopError(
            "NOTHING_TO_RESUME", f"no push of {file} to {pipeline} was interrupted", start_anew
        ) from error
    if (kept.size, kept.modified) != (fresh.size, fresh.modified):
        raise EverloopError(
            "FILE_CHANGED", f"{file} has changed since its push was interrupted", start_anew
        )
    return kept


def save(state: PushState) -> None:
    """Keeps a state in the place of the one before.

    Raises:
        OSError: It cannot be written.
    """
    path = _path(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(dataclasses.asdict(state)), encoding="utf-8")
    draft.replace(path)


def finish(state: PushState) -> None:
    """Forgets a push that is done."""
    with suppress(OSError):  # where nothing could be kept, nothing is there
        _path(state).unlink()


def _path(state: PushState, environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_STATE_HOME/everloop/pushes`, by default below `~/.local/state`; one file for each file and target."""
    configured = environment.get("XDG_STATE_HOME")
    folder = Path(configured) if configured else Path.home() / ".local" / "state"
    name = "\0".join((state.file, state.pipeline, state.ingest))
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
    return folder / "everloop" / "pushes" / f"{digest}.json"
