"""The registry gateway: gates, promotion and lineage in front of the MLflow Model Registry."""
