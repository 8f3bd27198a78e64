"""The specification: every function of this package in plain, readable numpy.

    activations.py  activations, derivatives     dense.py   a layer and its backward pass
    routing.py      routers and their losses     experts.py mixtures of experts
    sums.py         the order of additions         quantised.py  products of integers
    norms.py        norms of rows

Each function computes in `dtype`. float64 is the specification. float32 is the same formula with
the rounding of numpy, with which the error of the kernels is compared. complex128 lets tests
compute derivatives by the complex step, where the formula is analytic; comparisons use real parts,
so that piecewise formulas accept complex numbers, too. Nothing here is written for speed.
"""

from .activations import (
    FORMULAS,
    Gradients,
    XieluParameters,
    activation,
    activation_backward,
    erfc,
    finite,
    minimum,
    sigmoid,
    sigmoid_derivative,
    slope_of,
    softplus,
    tanh_derivative,
    xielu_parameters,
)
from .dense import Weights, arrays, ffn, ffn_backward, preactivations
from .experts import moe, moe_backward
from .norms import norm, norm_backward
from .quantised import ffn_int8, round_to_int8
from .routing import (
    Routed,
    load_balancing_loss,
    route,
    route_backward,
    router_z_loss,
    sparsemixer,
    switch_capacity,
)
from .sums import error_bound, product_in_order, sum_in_order

__all__ = [
    "FORMULAS",
    "Gradients",
    "Routed",
    "Weights",
    "XieluParameters",
    "activation",
    "activation_backward",
    "arrays",
    "erfc",
    "error_bound",
    "ffn",
    "ffn_backward",
    "ffn_int8",
    "finite",
    "load_balancing_loss",
    "minimum",
    "moe",
    "moe_backward",
    "norm",
    "norm_backward",
    "preactivations",
    "product_in_order",
    "round_to_int8",
    "route",
    "route_backward",
    "router_z_loss",
    "sigmoid",
    "sigmoid_derivative",
    "slope_of",
    "softplus",
    "sparsemixer",
    "sum_in_order",
    "switch_capacity",
    "tanh_derivative",
    "xielu_parameters",
]
