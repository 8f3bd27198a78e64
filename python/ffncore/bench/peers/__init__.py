"""Other libraries that compute the same layer, each in a process of its own."""
