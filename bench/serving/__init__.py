"""What the benchmarks of the running platform share: its stack, models, callers, and what it says of itself."""
