"""Ingest: one way in for data; shards, dataset versions, dead letters."""
