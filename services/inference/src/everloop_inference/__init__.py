"""Inference: predictions over HTTP and gRPC from replicas that Ray Serve supervises."""
