"""What an argument may be (dtypes, shapes, strides, overlap, where it lies), and memory."""
