"""`python -m everloop_trainer`."""

import sys

from everloop_trainer.app import main

if __name__ == "__main__":
    sys.exit(main())
