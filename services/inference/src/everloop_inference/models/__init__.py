"""The models that serve: from the registry to a version that is loaded, verified and swapped in."""
