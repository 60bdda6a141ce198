"""The prediction log: from an answer to the broker, with books, over the disk while the broker is away."""
