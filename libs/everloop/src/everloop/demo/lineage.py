"""From one prediction back to the rows in git, and from a promotion back to its first cause."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Any

import yaml

from everloop.cli.output import enum_name
from everloop.client import Trace
from everloop.demo.events import EventLog, Seen

__all__ = ["GitTag", "causes", "lineage_of", "look_up_tag"]


@dataclass(frozen=True)
class GitTag:
    """A dataset version as git and DVC have it.

    Attributes:
        tag: Name of the tag.
        commit: Commit that it points to.
        subject: First line of the commit's message.
        md5: MD5 of each file or directory that DVC tracks, by path, as its pointer files say.
    """

    tag: str
    commit: str
    subject: str
    md5: dict[str, str]


def look_up_tag(url: str, tag: str) -> GitTag:
    """Reads a tag from a data repository on this machine.

    Raises:
        LookupError: The repository or the tag is not there.
    """
    repository = url.removeprefix("file://")
    commit, _, subject = _git(repository, "log", "-1", "--format=%H %s", tag, "--").partition(" ")
    files = _git(repository, "ls-tree", "-r", "--name-only", tag).splitlines()
    md5: dict[str, str] = {}
    for pointer in (name for name in files if name.endswith(".dvc")):
        folder, _, _ = pointer.rpartition("/")
        for out in yaml.safe_load(_git(repository, "show", f"{tag}:{pointer}"))["outs"]:
            md5["/".join(filter(None, (folder, out["path"])))] = out["md5"]
    return GitTag(tag, commit, subject, md5)


def _git(repository: str, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", repository, *arguments], capture_output=True, text=True, timeout=30
    )
    if done.returncode:
        raise LookupError(f"git -C {repository} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def causes(log: EventLog, event: Seen) -> list[Seen]:
    """Follows the causation ids from an event back, the event first, as far as events are known."""
    known = {other.id: other for other in log.seen}
    chain = [event]
    while (cause := known.get(chain[-1].cause)) is not None and cause not in chain:
        chain.append(cause)
    return chain


def lineage_of(found: Trace, tag: GitTag, chain: list[Seen]) -> dict[str, Any]:
    """Returns the way of one prediction for `summary.json`."""
    version = found.lineage.version
    tracked = found.dataset.data
    return {
        "prediction_id": found.prediction.prediction_id,
        "record_id": found.prediction.record_id,
        "label": found.prediction.label,
        "score": found.prediction.score,
        "actual": found.prediction.actual or None,
        "logged_by_event": found.prediction.event_id,
        "model": version.model,
        "model_version": version.version,
        "family": version.family,
        "cause": enum_name(version.DESCRIPTOR.fields_by_name["cause"], version.cause),
        "mlflow_run_id": version.run_id,
        "training_id": version.training_id,
        "trained_event": found.lineage.trained_event_id,
        "training_cause": found.lineage.training_cause_id,
        "dataset_version": found.dataset.version,
        "dataset_rows": found.dataset.rows,
        "git_url": found.dataset.git_url,
        "git_tag": tag.tag,
        "git_commit": tag.commit,
        "git_subject": tag.subject,
        "files": [{"path": tracked.path, "uri": tracked.uri, "md5": tracked.md5}],
        "causes": [
            {
                "event": event.name,
                "id": event.id,
                "source": event.source,
                "time": event.time.isoformat(),
                "cause": event.cause,
            }
            for event in chain
        ],
    }
