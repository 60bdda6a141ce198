"""The `everloop` command."""

from everloop.cli.app import app

__all__ = ["app"]
