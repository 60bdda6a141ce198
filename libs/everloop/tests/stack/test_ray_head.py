from __future__ import annotations

import pytest

from everloop.stack.ray_head import patient


def test_a_node_that_registers_late_is_waited_for():
    answers = iter(
        [RuntimeError("not there"), RuntimeError("RPC error: Deadline Exceeded"), {"node": 1}]
    )

    def ask(*arguments: str) -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer, arguments

    assert patient(ask, died=list)("gcs", "id") == ({"node": 1}, ("gcs", "id"))


def test_a_head_whose_server_died_while_it_started_is_not_waited_for():
    asked = []

    def ask(*arguments: str) -> object:
        asked.append(arguments)
        raise RuntimeError("no node")

    # No RuntimeError: Ray catches that and asks again.
    with pytest.raises(ChildProcessError, match="raylet"):
        patient(ask, died=lambda: ["raylet"])("gcs", "id")
    assert len(asked) == 1
