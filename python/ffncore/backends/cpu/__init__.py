"""The backend for the CPU: the kernels of libffncore.so, called through the module _core."""

from .layer import backward, forward
from .routing import route, route_backward

__all__ = ["backward", "forward", "route", "route_backward"]
