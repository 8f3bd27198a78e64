"""The public functions. Each checks its arguments and calls a backend (passes/backend.py)."""

from .dense import ffn, ffn_backward, ffn_forward
from .mixtures import moe, moe_backward, moe_forward
from .routing import route, route_backward

__all__ = [
    "ffn",
    "ffn_backward",
    "ffn_forward",
    "moe",
    "moe_backward",
    "moe_forward",
    "route",
    "route_backward",
]
