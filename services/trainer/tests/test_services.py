"""Patience with the other services."""

from __future__ import annotations

import pytest

from everloop_runtime.errors import EverloopError, Kind, waiting_mends
from everloop_trainer.adapters import services


@pytest.mark.parametrize("kind", list(Kind))
def test_only_what_waiting_can_mend_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    errors = iter([EverloopError(kind, "REASON", "not now")])

    def ask() -> str:
        for error in errors:
            raise error
        return "answer"

    if waiting_mends(EverloopError(kind, "REASON", "not now")):
        assert services._patiently(ask, 60.0) == "answer"
    else:
        with pytest.raises(EverloopError):
            services._patiently(ask, 60.0)
