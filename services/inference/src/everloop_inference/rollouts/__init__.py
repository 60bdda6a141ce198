"""Versions on trial beside those that serve: who gets them, what they do, and what the registry hears of it."""
