from __future__ import annotations

from pathlib import Path

import pytest

from everloop.stack.ray_head import last_words, patient


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


def test_a_server_that_died_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "raylet.out").write_text("".join(f"line {n}\n" for n in range(9)) + "\n")
    (tmp_path / "raylet.err").write_bytes(b"agent did not register \xff\n")
    (tmp_path / "gcs_server.out").write_text("another's\n")
    assert last_words(tmp_path, "raylet").splitlines() == [
        "raylet",
        "  raylet.err: agent did not register \ufffd",
        "  raylet.out: line 6",
        "  raylet.out: line 7",
        "  raylet.out: line 8",
    ]
    assert last_words(tmp_path / "gone", "raylet") == "raylet"
