"""The peers of bench/peers.py for dense layers, and for mixtures those of peer_moe.py.

python/ffncore/bench/peers/peer_layers.py says what a peer is, and has numpy's and torch's. This
file runs in the process of each peer (process.py there), perhaps with an interpreter that has no
ffncore. A call returns when its results are finished.
"""

import sys

import peer_moe

try:
    import peer_layers  # where process.py has started the interpreter
except ImportError:
    from ffncore.bench.peers import peer_layers

ENVIRONMENT = {name: {"OPENBLAS_CORETYPE": core} for name, core in peer_moe.OPENBLAS_CORES.items()}
INSTALL = {
    **peer_layers.INSTALL,
    **peer_moe.INSTALL,
    "ffncore": "pip install .",
    **dict.fromkeys(peer_moe.OPENBLAS_CORES, "pip install numpy"),
    "openvino": "pip install openvino",
    "torch-compile": "pip install torch  (and a C++ compiler)",
    "jax": "pip install jax",
    "zentorch": "pip install torch==2.14.0 zentorch  (in an environment of its own; then "
    "--python zentorch=PATH/bin/python)",
}


def ffncore_peer(w, x, grad_y, spec):
    import ffncore as fc

    act = spec["activation"]
    weights = fc.FFNWeights(**w)
    if spec["mode"] != "train":
        used = fc.pack(weights) if spec["mode"] == "packed" else weights
        return lambda: fc.ffn(x, used, activation=act)
    _, saved = fc.ffn_forward(x, weights, activation=act)
    out = fc.ffn_backward(grad_y, saved)

    def train():
        y, saved = fc.ffn_forward(x, weights, activation=act)
        grads = fc.ffn_backward(grad_y, saved, out=out)
        return y, grads.x, grads.weights.up

    return train


def torch_compile_peer(w, x, grad_y, spec):
    return peer_layers.torch_peer(w, x, grad_y, spec, compiled={})


def zentorch_peer(w, x, grad_y, spec):
    import zentorch  # noqa: F401

    if spec["mode"] == "train":
        raise ValueError("zentorch has no backward pass")
    return peer_layers.torch_peer(w, x, grad_y, spec, compiled={"backend": "zentorch"})


def jax_peer(w, x, grad_y, spec):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", "cpu")
    activation = {
        "silu": jax.nn.silu,
        "gelu": lambda v: jax.nn.gelu(v, approximate=False),
        "gelu_tanh": jax.nn.gelu,
    }[spec["activation"]]
    params = {name: jnp.asarray(array) for name, array in w.items() if array is not None}
    jx, jg = jnp.asarray(x), jnp.asarray(grad_y)

    def linear(p, name, a):
        y = a @ p[name].T
        return y + p["b_" + name] if "b_" + name in p else y

    def layer(p, a):
        up = linear(p, "up", a)
        h = activation(linear(p, "gate", a)) * up if "gate" in p else activation(up)
        return linear(p, "down", h)

    def step(p, a, g):
        y, back = jax.vjp(layer, p, a)
        grads, dx = back(g)
        return y, dx, grads

    if spec["mode"] != "train":
        forward = jax.jit(layer)
        return lambda: forward(params, jx).block_until_ready()
    train = jax.jit(step)

    def run():
        y, dx, grads = jax.block_until_ready(train(params, jx, jg))
        return y, dx, grads["up"]

    return run


def openvino_peer(w, x, grad_y, spec):  # noqa: ARG001
    """The layer as a compiled graph for this number of tokens, whose weights are constants.

    The graph is of float32. For bfloat16 the weights and x are widened beforehand, and OpenVINO is
    told to compute in bfloat16, which it does where the CPU has instructions for it.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    if spec["mode"] == "train":
        raise ValueError("OpenVINO has no backward pass")
    activation = {
        "relu": ops.relu,
        "silu": ops.swish,
        "gelu": lambda v: ops.gelu(v, approximation_mode="erf"),
        "gelu_tanh": lambda v: ops.gelu(v, approximation_mode="tanh"),
        "sigmoid": ops.sigmoid,
        "tanh": ops.tanh,
        "mish": ops.mish,
    }[spec["activation"]]

    def linear(name, a):
        y = ops.matmul(a, ops.constant(w[name].astype(np.float32)), False, True)
        bias = w["b_" + name]
        return y if bias is None else ops.add(y, ops.constant(bias.astype(np.float32)))

    tokens = ops.parameter(x.shape, np.float32, name="x")
    up = linear("up", tokens)
    gated = w["gate"] is not None
    h = ops.multiply(activation(linear("gate", tokens)), up) if gated else activation(up)
    options = {
        "INFERENCE_NUM_THREADS": spec["threads"],
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if x.dtype.name == "bfloat16" else "f32",
    }
    model = ov.compile_model(ov.Model([linear("down", h)], [tokens]), "CPU", options)
    request = model.create_infer_request()
    numbers = np.ascontiguousarray(x, np.float32)
    request.set_input_tensor(ov.Tensor(numbers, shared_memory=True))

    def run(_keep=numbers):  # the tensor does not own them
        request.infer()
        return request.get_output_tensor().data

    return run


PEERS = {
    "ffncore": ("ffncore", ffncore_peer),
    "numpy": peer_layers.PEERS["numpy"],
    **dict.fromkeys(peer_moe.OPENBLAS_CORES, peer_layers.PEERS["numpy"]),
    "torch": peer_layers.PEERS["torch"],
    "torch-compile": ("torch", torch_compile_peer),
    "jax": ("jax", jax_peer),
    "openvino": ("openvino", openvino_peer),
    "zentorch": ("zentorch", zentorch_peer),
}
weights, inputs, check = peer_layers.weights, peer_layers.inputs, peer_layers.check


def module_of(name):
    """The module that a peer needs."""
    return (PEERS.get(name) or peer_moe.PEERS[name])[0]


def table(shape):
    """What has PEERS, weights, inputs and check for a shape."""
    return peer_moe if "n_experts" in shape else sys.modules[__name__]
