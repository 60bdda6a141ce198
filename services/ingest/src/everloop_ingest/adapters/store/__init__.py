"""Ingest's tables, and the statements on them: a file for each purpose, whose class its use cases are given."""
