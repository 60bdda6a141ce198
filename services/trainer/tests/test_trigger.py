"""What starts a training and what runs next."""

from __future__ import annotations

import dataclasses
import doctest
from collections.abc import Callable
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import Triggers
from everloop_trainer import trigger
from everloop_trainer.domain import Cause, Dataset, State, Training

TRIGGERS = Triggers(min_rows=100, new_rows=50)

LOST = (State.FAILED, State.SUPERSEDED, State.CANCELLED)


def training(
    make_dataset: Callable[..., Dataset], position: int, state: State, version: int, rows: int
) -> Training:
    return Training(
        id=f"t{position}",
        position=position,
        dataset=make_dataset(version, rows),
        state=state,
        cause=Cause.FIRST_DATA,
        cause_id=f"e{position}",
        create_time=datetime(2024, 1, 1, tzinfo=UTC),
    )


def test_the_examples_hold() -> None:
    names = {"Cause": Cause, "Dataset": Dataset, "Triggers": Triggers}
    assert doctest.testmod(trigger, extraglobs=names).failed == 0


HISTORY = st.lists(
    st.tuples(st.sampled_from(State), st.integers(1, 9), st.integers(0, 500)), max_size=6
)


@given(history=HISTORY, version=st.integers(1, 10), rows=st.integers(0, 600))
def test_a_version_trains_first_data_and_enough_new_rows_and_nothing_else(
    make_dataset: Callable[..., Dataset],
    history: list[tuple[State, int, int]],
    version: int,
    rows: int,
) -> None:
    known = [training(make_dataset, i, *item) for i, item in enumerate(history)]
    cause, why = trigger.trigger_of(TRIGGERS, make_dataset(version, rows), known)
    useful = [item for item in known if item.state not in LOST]
    if any(item.dataset.version >= version for item in known):
        assert cause is None
    elif not useful:
        assert cause is (Cause.FIRST_DATA if rows >= 100 else None)
    else:
        enough = all(rows >= item.dataset.labelled_rows + 50 for item in useful)
        assert cause is (Cause.NEW_ROWS if enough else None)
    assert bool(why) is (cause is None)


@given(history=HISTORY)
def test_what_ran_goes_on_then_the_oldest_request(
    make_dataset: Callable[..., Dataset], history: list[tuple[State, int, int]]
) -> None:
    known = [training(make_dataset, i, *item) for i, item in enumerate(history)]
    chosen = trigger.next_to_run(known)
    running = [item for item in known if item.state is State.RUNNING]
    queued = [item for item in known if item.state is State.QUEUED]
    assert chosen == next(iter(running or queued), None)
    assert trigger.superseded_by(make_dataset(), known) == queued


def test_a_pipeline_rests_as_a_whole(make_dataset: Callable[..., Dataset]) -> None:
    first = training(make_dataset, 0, State.RUNNING, 1, 100)
    second = training(make_dataset, 1, State.QUEUED, 2, 100)
    other = training(make_dataset, 2, State.QUEUED, 1, 100)
    other = dataclasses.replace(other, dataset=dataclasses.replace(other.dataset, pipeline="other"))
    assert trigger.next_to_run([first, second, other], {first.id}) == other
    assert trigger.next_to_run([first, second], {first.id}) is None


def test_without_new_rows_only_the_first_data_trains(make_dataset: Callable[..., Dataset]) -> None:
    known = [training(make_dataset, 0, State.SUCCEEDED, 1, 100)]
    assert trigger.trigger_of(Triggers(), make_dataset(2, 10**9), known)[0] is None
