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

INSTALL = {
    **peer_layers.INSTALL,
    **peer_moe.INSTALL,
    "ffncore": "pip install .",
    "numpy-skylakex": "pip install numpy",
    "torch-compile": "pip install torch  (and a C++ compiler)",
    "jax": "pip install jax",
    "zentorch": "pip install torch==2.14.0 zentorch  (in an environment of its own; then "
    "--python zentorch=PATH/bin/python)",
}
# OpenBLAS's wheels may choose kernels of an older kind on a CPU that is newer than they are.
ENVIRONMENT = {"numpy-skylakex": {"OPENBLAS_CORETYPE": "SkylakeX"}}


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


PEERS = {
    "ffncore": ("ffncore", ffncore_peer),
    "numpy": peer_layers.PEERS["numpy"],
    "numpy-skylakex": peer_layers.PEERS["numpy"],
    "torch": peer_layers.PEERS["torch"],
    "torch-compile": ("torch", torch_compile_peer),
    "jax": ("jax", jax_peer),
    "zentorch": ("zentorch", zentorch_peer),
}
weights, inputs, check = peer_layers.weights, peer_layers.inputs, peer_layers.check


def module_of(name):
    """The module that a peer needs."""
    return (PEERS.get(name) or peer_moe.PEERS[name])[0]


def table(shape):
    """What has PEERS, weights, inputs and check for a shape."""
    return peer_moe if "n_experts" in shape else sys.modules[__name__]
