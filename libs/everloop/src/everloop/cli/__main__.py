"""`python -m everloop.cli` is the `everloop` command."""

from everloop.cli.app import app

app(prog_name="everloop")
