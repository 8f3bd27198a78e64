"""The backends: kernels for the CPU (cpu) and for CUDA GPUs (cuda), independent of each other.

Both have the functions that passes/backend.py lists, and expect checked arguments.
"""
