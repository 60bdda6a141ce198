"""`python -m everloop_trainer`: the service; `python -m everloop_trainer reproduce RUN`: one run again."""

import sys

from everloop_trainer import app

if __name__ == "__main__":
    if sys.argv[1:2] == ["reproduce"]:
        sys.exit(app.reproduce(sys.argv[2:]))
    sys.exit(app.main())
