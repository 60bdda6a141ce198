"""Migrations of the ingest database."""
