"""How an Everloop service runs: settings, gRPC, Kafka, unit of work, telemetry, errors."""
