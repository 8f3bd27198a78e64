"""ffncore: the feed-forward layers of transformers on the CPU, from numpy arrays.

>>> import ffncore as fc
>>> w = fc.FFNWeights(gate=gate, up=up, down=down)  # gate, up [d_ff, d_model], down [d_model, d_ff]
>>> y, saved = fc.ffn_forward(x, w, activation="silu")  # x, y [..., d_model]
>>> grads = fc.ffn_backward(grad_y, saved)  # grads.x, grads.weights.up, ...
>>> y = fc.ffn(x, fc.pack(w), activation="silu")  # pack once, run often: the same bits

These are the names that matter most. help(fc.ffn) explains one of them, and dir(fc) has all names.

Weights and their options
    FFNWeights        matrices and biases of one layer, or of experts
    Activation        an activation with its options, where a name is not enough
    pack              weights in the order in which the kernels read them; PackedWeights

Dense layers
    ffn               y
    ffn_forward       y, and what the backward pass needs
    ffn_backward      the gradients of x, the weights and the biases
    memory            the layer as a key-value memory: what fires, edits, pruning

Mixtures of experts
    route             top_k experts of each token from logits; a Routing
    moe, moe_forward, moe_backward
                      as for a dense layer, with a routing
    route_backward    the gradient of the logits

Layers of real models
    load              one layer of a checkpoint: an FFN or a MoE
    FFN, MoE, Router  layer objects, with forward and backward

Checks and settings
    check_gradients   a backward pass against central differences
    reference         every function in plain numpy
    cost              FLOPs, bytes and memory of a call
    set_num_threads   of all calls; num_threads in a with statement
    show_config       prints the version, the instruction sets and the threads

Arrays may be float32, float64, float16 or bfloat16 (from ml_dtypes); a float32 x also goes with
16-bit weights. For each dtype the result has the same bits with any instruction set, number of
threads and batch, and with packed or raw weights. ffn, moe, route and their backward passes also
accept torch CUDA tensors and CuPy arrays, if the package was built with its CUDA part.
`python -m ffncore --help` lists the commands, which check an installation, inspect a checkpoint,
run its layers, and measure speed.
"""

from typing import TYPE_CHECKING, Any

from ._core import __version__
from .arrays.memory import clear_workspace
from .encodings.tensor import QuantizedTensor
from .functional.block import BlockSaved
from .functional.cost import Cost, cost
from .functional.dense import ffn, ffn_backward, ffn_forward
from .functional.dense_block import BlockGrads
from .functional.elementwise import activation, activation_backward
from .functional.mixtures import moe, moe_backward, moe_forward
from .functional.routing import route, route_backward
from .norms.norm import Norm
from .norms.rows import (
    NormGrads,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from .old_paths import MODULES as _MODULES
from .old_paths import install as _install
from .runtime.config import active_isa, available_isas, cpu_features, show_config, using_isa
from .runtime.threads import get_num_threads, num_threads, set_num_threads
from .values.activation import Activation
from .values.gradients import ActivationGrads, FFNGrads, MoEGrads, XieluGrads
from .values.packed import PackedWeights
from .values.packing.pack import pack
from .values.routing import Routing
from .values.saved import MoESaved, Saved
from .values.weights import FFNWeights

if TYPE_CHECKING:
    from . import memory as memory
    from . import models as models
    from . import reference as reference
    from .encodings.format import FormatInfo
    from .encodings.table import formats
    from .functional.gradcheck import GradientError, GradientReport, check_gradients
    from .functional.losses import (
        load_balancing_loss,
        load_balancing_loss_backward,
        router_z_loss,
        router_z_loss_backward,
    )
    from .functional.model_routers import sparsemixer, switch_capacity
    from .layers import FFN, MoE, MoELayerGrads, MoELayerSaved, Router, RouterGrads
    from .models import load, load_all
    from .models.load_packed import load_packed
    from .quantisation.fake import (
        FakeQuantizeGrads,
        FakeQuantizeSaved,
        fake_quantize,
        fake_quantize_backward,
    )
    from .quantisation.quantize import quantize
    from .relatives.attention import (
        PersistentAttentionGrads,
        PersistentAttentionSaved,
        persistent_attention,
        persistent_attention_backward,
        persistent_attention_forward,
    )
    from .relatives.lambdas import (
        PositionalLambdaGrads,
        positional_lambda,
        positional_lambda_backward,
    )

# Modules that are imported when one of their public names is first used, and these names.
_LAZY = {
    "encodings.format": ("FormatInfo",),
    "encodings.table": ("formats",),
    "functional.gradcheck": ("GradientError", "GradientReport", "check_gradients"),
    "functional.losses": (
        *("load_balancing_loss", "load_balancing_loss_backward"),
        *("router_z_loss", "router_z_loss_backward"),
    ),
    "functional.model_routers": ("sparsemixer", "switch_capacity"),
    "layers": ("FFN", "MoE", "MoELayerGrads", "MoELayerSaved", "Router", "RouterGrads"),
    "models": ("load", "load_all"),
    "models.load_packed": ("load_packed",),
    "quantisation.fake": (
        *("FakeQuantizeGrads", "FakeQuantizeSaved"),
        *("fake_quantize", "fake_quantize_backward"),
    ),
    "quantisation.quantize": ("quantize",),
    "relatives.attention": (
        *("PersistentAttentionGrads", "PersistentAttentionSaved", "persistent_attention"),
        *("persistent_attention_backward", "persistent_attention_forward"),
    ),
    "relatives.lambdas": (
        *("PositionalLambdaGrads", "positional_lambda", "positional_lambda_backward"),
    ),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name == "memory":
        value = import_module(f"{__name__}.memory")
    elif name in _MODULES:
        value = import_module(f"{__name__}.{_MODULES[name]}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "models"])


_install(__name__)

__all__ = [
    "FFN",
    "Activation",
    "ActivationGrads",
    "BlockGrads",
    "BlockSaved",
    "Cost",
    "FFNGrads",
    "FFNWeights",
    "FakeQuantizeGrads",
    "FakeQuantizeSaved",
    "FormatInfo",
    "GradientError",
    "GradientReport",
    "MoE",
    "MoEGrads",
    "MoELayerGrads",
    "MoELayerSaved",
    "MoESaved",
    "Norm",
    "NormGrads",
    "PackedWeights",
    "PersistentAttentionGrads",
    "PersistentAttentionSaved",
    "PositionalLambdaGrads",
    "QuantizedTensor",
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
    "fake_quantize",
    "fake_quantize_backward",
    "ffn",
    "ffn_backward",
    "ffn_forward",
    "formats",
    "get_num_threads",
    "layer_norm",
    "layer_norm_backward",
    "load",
    "load_all",
    "load_balancing_loss",
    "load_balancing_loss_backward",
    "load_packed",
    "memory",
    "moe",
    "moe_backward",
    "moe_forward",
    "num_threads",
    "pack",
    "persistent_attention",
    "persistent_attention_backward",
    "persistent_attention_forward",
    "positional_lambda",
    "positional_lambda_backward",
    "quantize",
    "reference",
    "rms_norm",
    "rms_norm_backward",
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
