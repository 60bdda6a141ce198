"""HTTP: the listener, and the application behind it."""
