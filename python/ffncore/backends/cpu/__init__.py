"""The kernels of libffncore.so, through the compiled module _core."""

from .layer import backward, forward
from .routing import route, route_backward

__all__ = ["backward", "forward", "route", "route_backward"]
