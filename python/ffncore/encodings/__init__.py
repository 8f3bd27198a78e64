"""Quantised weights: the formats, bit by bit, and QuantizedTensor, which holds one matrix."""
