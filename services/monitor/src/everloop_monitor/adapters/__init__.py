"""What the monitor talks to."""
