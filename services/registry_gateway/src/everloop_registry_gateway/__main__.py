"""`python -m everloop_registry_gateway`."""

import sys

from everloop_registry_gateway.app import main

if __name__ == "__main__":
    sys.exit(main())
