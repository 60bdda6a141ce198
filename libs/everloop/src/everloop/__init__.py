"""Everloop for its users: client, command line, embedded stack and demo."""
