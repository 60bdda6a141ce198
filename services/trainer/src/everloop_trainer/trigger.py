"""What starts a training, and what happens to those that wait: pure decisions.

At most one training per pipeline runs and at most one waits: a newer request knows newer data and replaces the one
that waits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from everloop_contracts.pipeline import Triggers
from everloop_trainer.domain import Cause, Dataset, State, Training

__all__ = ["next_to_run", "superseded_by", "trigger_of"]


def trigger_of(
    triggers: Triggers, dataset: Dataset, history: Sequence[Training]
) -> tuple[Cause | None, str]:
    """Why a new dataset version starts a training by itself, or None and, for a person, why it does not.

    Args:
        triggers: the pipeline's rules.
        dataset: the new version.
        history: all trainings of the pipeline.

    Example:
        >>> version = Dataset("p", 1, "p/v1", "", rows=900, labelled_rows=800, files=())
        >>> trigger_of(Triggers(min_rows=800), version, [])[0]
        <Cause.FIRST_DATA: 'first_data'>
        >>> trigger_of(Triggers(min_rows=801), version, [])
        (None, '800 labelled rows, the first training takes 801 (min_rows)')
    """
    without_model = (State.FAILED, State.SUPERSEDED, State.CANCELLED)
    known = [item for item in history if item.state not in without_model]
    if any(item.dataset.version >= dataset.version for item in history):
        return None, "a training was asked for with this version, or a newer one"
    rows, least = dataset.labelled_rows, triggers.min_rows
    if not known:
        if rows >= least:
            return Cause.FIRST_DATA, ""
        return None, f"{rows} labelled rows, the first training takes {least} (min_rows)"
    if triggers.new_rows is None:
        return None, "there was a training already, and the pipeline's triggers name no new_rows"
    new = rows - max(item.dataset.labelled_rows for item in known)
    if new >= triggers.new_rows:
        return Cause.NEW_ROWS, ""
    return None, f"{new} new labelled rows, another training takes {triggers.new_rows} (new_rows)"


def superseded_by(dataset: Dataset, history: Sequence[Training]) -> list[Training]:
    """Trainings of the pipeline that a new request replaces: those that still wait."""
    return [
        item
        for item in history
        if item.state is State.QUEUED and item.dataset.pipeline == dataset.pipeline
    ]


def next_to_run(waiting: Sequence[Training], resting: Collection[str] = ()) -> Training | None:
    """What to work on: what was running when the process ended comes first, then the oldest request.

    Args:
        waiting: trainings that have not ended.
        resting: ids of those that are not tried now; their pipelines rest with them.
    """
    held = {item.pipeline for item in waiting if item.id in resting}
    free = [item for item in waiting if item.pipeline not in held]
    running = [item for item in free if item.state is State.RUNNING]
    queued = [item for item in free if item.state is State.QUEUED]
    return min(running or queued, key=lambda item: item.position, default=None)
