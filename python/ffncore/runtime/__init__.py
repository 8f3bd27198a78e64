"""Settings of the process: threads and instruction sets."""
