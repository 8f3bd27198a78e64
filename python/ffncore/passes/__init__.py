"""The steps that all layers share: the choice of the backend, and one call of it.

backend.py  the kernels for the CPU, or those for CUDA GPUs
passes.py   forward, forward_saved, backward
"""
