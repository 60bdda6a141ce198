"""What counts as a run that showed what the demo promises."""

from __future__ import annotations

import pytest

from everloop.demo import summary as rules


def test_a_good_run_has_no_problems(summary):
    assert rules.problems(summary) == []


def change(summary, path: str, value) -> None:
    *folders, last = path.split("/")
    for folder in folders:
        summary = summary[int(folder) if folder.isdigit() else folder]
    summary[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("predictions/failed", 3, "3 predictions failed"),
        ("predictions/sent", 0, "no prediction was asked for"),
        ("records/sent", 111, "records sent (111) are not accepted (108) + rejected (2)"),
        ("records/rejected_by_reason", {"WRONG_TYPE": 1}, "a rejected record has no reason"),
        ("records/broken_on_purpose", {"wrong_type": 1}, "1 were broken on purpose"),
        ("versions/1/cause", "request", "not made because of drift"),
        ("causation_gaps", ["no ModelTrained"], "no ModelTrained"),
    ],
)
def test_each_promise_that_is_broken_is_named(summary, path, value, said):
    change(summary, path, value)
    assert any(said in problem for problem in rules.problems(summary))


def test_one_version_is_not_enough(summary):
    del summary["versions"][1]
    assert any("not two" in problem for problem in rules.problems(summary))
