"""fc.pack and the packed form of quantised weights."""
