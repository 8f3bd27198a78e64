"""ffncore: the feed-forward half of a transformer, as kernels called from numpy.

    import ffncore as fc

    w = fc.FFNWeights(gate=gate, up=up, down=down)              # gate, up [f, d], down [d, f]
    y = fc.ffn(x, w, activation="silu")                         # x, y [..., d]
    y, saved = fc.ffn_forward(x, w, activation="silu")
    grads = fc.ffn_backward(grad_y, saved)                      # grads.x, grads.weights.up, ...

    p = fc.pack(w)                                              # pack once, run often
    y = fc.ffn(x, p, activation="silu")                         # the same bits

    routing = fc.route(logits, 8)                               # experts, weights [..., 8]

float32, float64, float16 and bfloat16 (of ml_dtypes); float32 x goes with 16-bit weights, too. For
each dtype the result has the same bits for any instruction set, number of threads, batch, plan, and
for packed or raw weights. `ffncore.reference` says in plain numpy what every function computes;
`python -m ffncore` checks and measures an installation. fc.ffn, fc.moe, fc.route and their backward
passes also take torch CUDA tensors and CuPy arrays, where the package was built with its CUDA part.
"""

from . import reference
from ._core import __version__
from ._grads import FFNGrads
from ._memory import clear_workspace
from ._saved import MoESaved, Saved
from .activations import Activation
from .config import active_isa, available_isas, cpu_features, show_config, using_isa
from .cost import Cost, cost
from .elementwise import ActivationGrads, XieluGrads, activation, activation_backward
from .functional import ffn, ffn_backward, ffn_forward
from .gradcheck import GradientError, GradientReport, check_gradients
from .losses import (
    load_balancing_loss,
    load_balancing_loss_backward,
    router_z_loss,
    router_z_loss_backward,
)
from .moe import MoEGrads, moe, moe_backward, moe_forward
from .packed import PackedWeights, pack
from .routers import sparsemixer, switch_capacity
from .routing import Routing, route, route_backward
from .threads import get_num_threads, num_threads, set_num_threads
from .weights import FFNWeights

# The layer objects stand on the names above.
from .layers import FFN  # isort: skip
from .router_layer import Router, RouterGrads  # isort: skip
from ._moe_layer import MoELayerGrads, MoELayerSaved  # isort: skip
from .moe_layer import MoE  # isort: skip
from .models import load  # isort: skip
from .load_packed import load_packed  # isort: skip

__all__ = [
    "FFN",
    "Activation",
    "ActivationGrads",
    "Cost",
    "FFNGrads",
    "FFNWeights",
    "GradientError",
    "GradientReport",
    "MoE",
    "MoEGrads",
    "MoELayerGrads",
    "MoELayerSaved",
    "MoESaved",
    "PackedWeights",
    "Router",
    "RouterGrads",
    "Routing",
    "Saved",
    "XieluGrads",
    "__version__",
    "activation",
    "activation_backward",
    "active_isa",
    "available_isas",
    "check_gradients",
    "clear_workspace",
    "cost",
    "cpu_features",
    "ffn",
    "ffn_backward",
    "ffn_forward",
    "get_num_threads",
    "load",
    "load_balancing_loss",
    "load_balancing_loss_backward",
    "load_packed",
    "moe",
    "moe_backward",
    "moe_forward",
    "num_threads",
    "pack",
    "reference",
    "route",
    "route_backward",
    "router_z_loss",
    "router_z_loss_backward",
    "set_num_threads",
    "show_config",
    "sparsemixer",
    "switch_capacity",
    "using_isa",
]
