"""The outside systems: the database and MLflow."""
