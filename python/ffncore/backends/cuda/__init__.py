"""The kernels of libffncore_cuda.so, through cffi.

It is imported by the first call whose arrays are on a GPU.
"""

from .layer import backward, forward
from .routing import route, route_backward

__all__ = ["backward", "forward", "route", "route_backward"]
