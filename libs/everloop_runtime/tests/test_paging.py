"""Page tokens: positions that were given out, and nothing else."""

from __future__ import annotations

import pytest

from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.paging import page


@pytest.mark.parametrize(
    ("token", "size", "expected"),
    [("", 0, (None, 50)), ("7", 3, (7, 3)), ("9" * 18, 9999, (10**18 - 1, 500))],
)
def test_a_page_has_a_start_and_a_bounded_size(token, size, expected):
    assert page(token, size) == expected


@pytest.mark.parametrize("token", ["x", "-1", "1.0", "\u0663", "9" * 19, " 7"])
def test_any_other_token_is_invalid(token):
    with pytest.raises(EverloopError) as caught:
        page(token, 10)
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "INVALID_PAGE")


def test_a_negative_size_is_invalid():
    with pytest.raises(EverloopError) as caught:
        page("", -1)
    assert caught.value.metadata == {"field": "page_size"}
