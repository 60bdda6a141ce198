"""The way onto Ray Serve: deploying, scaling and watching the replicas."""
