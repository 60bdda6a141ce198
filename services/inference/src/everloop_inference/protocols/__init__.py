"""The protocols that doors speak, as JSON and as Protobuf: requests to rows or tensors, and answers back."""
