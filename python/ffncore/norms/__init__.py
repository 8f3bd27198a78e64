"""Norms of rows: fc.Norm, and fc.rms_norm and fc.layer_norm with their backward passes.

norm.py   the value fc.Norm: kind, gain, bias and eps, checked
rows.py   the functions, which call the kernels
"""
