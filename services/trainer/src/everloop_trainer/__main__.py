"""`python -m everloop_trainer`: the service; `train PIPELINE`: files to a model; `reproduce RUN`: one run again."""

import sys

from everloop_trainer import app

COMMANDS = {"train": app.train, "reproduce": app.reproduce}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
    sys.exit(app.main())
