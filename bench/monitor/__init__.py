"""What the monitor costs, from topic to verdict."""
