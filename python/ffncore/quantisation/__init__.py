"""Making quantised weights: quantisers, converters of checkpoints, and training through them."""
