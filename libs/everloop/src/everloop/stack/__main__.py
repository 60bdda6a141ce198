"""`python -m everloop.stack up|down|status`."""

from everloop.stack.commands import app

app(prog_name="python -m everloop.stack")
