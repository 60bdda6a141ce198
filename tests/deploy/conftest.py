from __future__ import annotations

import pytest
from tests.deploy.chart import Helm, find_helm


@pytest.fixture(scope="session")
def helm() -> Helm:
    program = find_helm()
    if program is None:
        pytest.skip("no helm: install it, or run `make check-deploy`, which fetches one")
    return Helm(program)
