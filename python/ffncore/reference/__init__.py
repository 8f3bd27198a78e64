"""The specification: every function of this package in plain numpy, float64, readable.

    dense.py      activations, a layer, its backward pass      experts.py   mixtures
    routing.py    routers and their losses                     sums.py      the order of additions

Everything computes in `dtype`: float64 is the specification, float32 the same formula with the
rounding that numpy gives it (the yardstick for the kernels' error), and complex128 lets a test take
derivatives by the complex step where the formula is analytic. Comparisons look at real parts, so
that piecewise formulas take complex numbers, too. Speed is no aim here.
"""

from .dense import (
    FORMULAS,
    Gradients,
    Weights,
    XieluParameters,
    activation,
    activation_backward,
    arrays,
    erfc,
    ffn,
    ffn_backward,
    finite,
    minimum,
    preactivations,
    sigmoid,
    sigmoid_derivative,
    slope_of,
    softplus,
    tanh_derivative,
    xielu_parameters,
)
from .experts import moe, moe_backward
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
    "finite",
    "load_balancing_loss",
    "minimum",
    "moe",
    "moe_backward",
    "preactivations",
    "product_in_order",
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
