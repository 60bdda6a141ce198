"""Trainer: from a dataset version to an evaluated model."""
