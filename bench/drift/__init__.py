"""How soon, and how often wrongly, drift is told."""
