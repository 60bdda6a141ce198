"""Migrations of the monitor's database."""
