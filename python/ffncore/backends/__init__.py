"""What computes: a CPU's kernels (cpu), a GPU's (cuda). Neither knows the other.

Both have the functions of functional/backend.py, over arguments that were checked.
"""
