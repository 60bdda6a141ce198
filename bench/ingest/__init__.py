"""What ingest makes of records in a second, beside what the same machine does without it."""
