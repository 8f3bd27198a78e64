"""The backend for CUDA GPUs: the kernels of libffncore_cuda.so, called through cffi.

The first call with arrays on a GPU imports it.
"""

from .layer import backward, forward
from .routing import route, route_backward

__all__ = ["backward", "forward", "route", "route_backward"]
