"""`python -m everloop_ingest`."""

import sys

from everloop_ingest.app import run_service

if __name__ == "__main__":
    sys.exit(run_service())
