"""Starts the inference service: `python -m everloop_inference`."""

import sys

from everloop_inference.app import main

sys.exit(main())
