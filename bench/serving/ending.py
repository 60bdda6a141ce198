"""How a report ends: what is wrong goes to standard error, and the exit status says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from bench.serving.models import NotServed
from everloop import stack
from everloop.errors import EverloopError
from everloop_runtime.errors import EverloopError as ServiceError

__all__ = ["complain", "finish"]


def complain(checks: Mapping[str, int], whose: str = "") -> bool:
    """Names every check that is not 0, and whose it is; returns whether there was one."""
    wrong = {name: count for name, count in checks.items() if count}
    for name, count in wrong.items():
        print(f"{whose}{count} {name}", file=sys.stderr)
    return bool(wrong)


def finish(main: Callable[[], int]) -> NoReturn:
    """Runs a report and exits: with its status, with what kept it from going on, or as interrupted."""
    try:
        sys.exit(main())
    except (NotServed, stack.StackError, EverloopError, ServiceError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
