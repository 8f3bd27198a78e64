"""Checks of array arguments (dtypes, shapes, strides, overlap, CPU or GPU), and memory."""
