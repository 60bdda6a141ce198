"""`python -m everloop_monitor`."""

import sys

from everloop_monitor.app import main

if __name__ == "__main__":
    sys.exit(main())
