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

from typing import TYPE_CHECKING, Any

from ._core import __version__
from .arrays.memory import clear_workspace
from .functional.cost import Cost, cost
from .functional.dense import ffn, ffn_backward, ffn_forward
from .functional.elementwise import activation, activation_backward
from .functional.mixtures import moe, moe_backward, moe_forward
from .functional.routing import route, route_backward
from .old_paths import MODULES as _MODULES
from .old_paths import install as _install
from .runtime.config import active_isa, available_isas, cpu_features, show_config, using_isa
from .runtime.threads import get_num_threads, num_threads, set_num_threads
from .values.activation import Activation
from .values.gradients import ActivationGrads, FFNGrads, MoEGrads, XieluGrads
from .values.packed import PackedWeights, pack
from .values.routing import Routing
from .values.saved import MoESaved, Saved
from .values.weights import FFNWeights

if TYPE_CHECKING:
    from . import models as models
    from . import reference as reference
    from .functional.gradcheck import GradientError, GradientReport, check_gradients
    from .functional.losses import (
        load_balancing_loss,
        load_balancing_loss_backward,
        router_z_loss,
        router_z_loss_backward,
    )
    from .functional.model_routers import sparsemixer, switch_capacity
    from .layers import FFN, MoE, MoELayerGrads, MoELayerSaved, Router, RouterGrads
    from .models import load
    from .models.load_packed import load_packed

# Modules that are imported when one of their public names is first used, and these names.
_LAZY = {
    "functional.gradcheck": ("GradientError", "GradientReport", "check_gradients"),
    "functional.losses": (
        *("load_balancing_loss", "load_balancing_loss_backward"),
        *("router_z_loss", "router_z_loss_backward"),
    ),
    "functional.model_routers": ("sparsemixer", "switch_capacity"),
    "layers": ("FFN", "MoE", "MoELayerGrads", "MoELayerSaved", "Router", "RouterGrads"),
    "models": ("load",),
    "models.load_packed": ("load_packed",),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{_MODULES[name]}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_install(__name__)

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
