"""One peer in a process of its own: builds a case, runs rounds of it, tells the seconds.

Started by peers.py as `python peer_worker.py NAME THREADS`, perhaps with another interpreter: it
needs numpy and the peer, nothing else. It reads JSON lines and answers each with one:

    {"do": "setup", "shape": {...}, "tokens": T, "mode": "infer" | "train", "dtype": name}
                                                                             -> {"check": [...]}
    {"do": "round", "repeats": n}                                            -> {"seconds": of one}
    {"do": "drop"}  forgets the weights                                      -> {}
    {"do": "quit"}

A setup of a mixture also has "ids" and "factors": [T, k] experts and routing weights (peer_moe.py).

A peer is a function (weights, x, grad_y, spec) -> (infer or None, train or None), two functions
without arguments. infer returns y, train returns y and the gradients of x and up; both give
something that is finished, not a promise. PEERS holds them with their install lines.
"""

import gc
import json
import os
import sys
import time

import peer_moe

INSTALL = {
    **peer_moe.INSTALL,
    "ffncore": "pip install .",
    "numpy": "pip install numpy",
    "numpy-skylakex": "pip install numpy",
    "torch": "pip install torch",
    "torch-compile": "pip install torch  (and a C++ compiler)",
    "jax": "pip install jax",
    "zentorch": "pip install torch==2.14.0 zentorch  (in an environment of its own; then "
    "--python zentorch=PATH/bin/python)",
}
# OpenBLAS's wheels may choose kernels of an older kind on a CPU that is newer than they are.
ENVIRONMENT = {"numpy-skylakex": {"OPENBLAS_CORETYPE": "SkylakeX"}}
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FFNCORE_NUM_THREADS"),
    *("NPROC", "NUMEXPR_NUM_THREADS"),
)


def ffncore_peer(w, x, grad_y, spec):
    import ffncore as fc

    act = spec["activation"]
    weights = fc.FFNWeights(**w)
    if spec["mode"] == "infer":
        packed = fc.pack(weights)
        return lambda: fc.ffn(x, packed, activation=act)
    _, saved = fc.ffn_forward(x, weights, activation=act)
    out = fc.ffn_backward(grad_y, saved)

    def train():
        y, saved = fc.ffn_forward(x, weights, activation=act)
        grads = fc.ffn_backward(grad_y, saved, out=out)
        return y, grads.x, grads.weights.up

    return train


def numpy_peer(w, x, grad_y, spec):
    """numpy has no erf: a polynomial good to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    import numpy as np

    if x.dtype.itemsize == 2:
        raise ValueError("numpy multiplies 16-bit matrices one number at a time")
    one = x.dtype.type
    act = spec["activation"]

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    def gelu(v):
        z = np.abs(v)
        z *= one(0.5**0.5)
        t = 1 / (1 + one(0.3275911) * z)
        p = one(1.061405429) * t
        for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
            p += one(c)
            p *= t
        p *= np.exp(-z * z)
        cdf = (1 + np.copysign(1 - p, v)) / 2
        return v * cdf, cdf

    def activate(v):
        """(act(v), act'(v) as a function)"""
        if act == "silu":
            s = sigmoid(v)
            return v * s, lambda: s * (1 + v * (1 - s))
        if act == "gelu":
            a, cdf = gelu(v)
            return a, lambda: cdf + v * np.exp(-v * v / 2) * one(0.3989422804)
        if act == "gelu_tanh":
            c = one(0.7978845608)
            t = np.tanh(c * (v + one(0.044715) * v * v * v))
            return v / 2 * (
                1 + t
            ), lambda: (1 + t) / 2 + v / 2 * (1 - t * t) * c * (1 + one(0.134145) * v * v)
        raise ValueError(f"no numpy formula for {act}")

    def linear(a, matrix, bias):
        y = a @ matrix.T
        if bias is not None:
            y += bias
        return y

    def forward():
        up = linear(x, w["up"], w["b_up"])
        gate = None if w["gate"] is None else linear(x, w["gate"], w["b_gate"])
        a, derivative = activate(up if gate is None else gate)
        h = a if gate is None else a * up
        return linear(h, w["down"], w["b_down"]), a, up, h, derivative

    def train():
        y, a, up, h, derivative = forward()
        dh = grad_y @ w["down"]
        grads = {"down": grad_y.T @ h}
        if w["gate"] is None:
            dup = dh * derivative()
            dx = dup @ w["up"]
        else:
            dup = dh * a
            dgate = dh * up * derivative()
            grads["gate"] = dgate.T @ x
            dx = dup @ w["up"] + dgate @ w["gate"]
            if w["b_gate"] is not None:
                grads["b_gate"] = dgate.sum(axis=0)
        grads["up"] = dup.T @ x
        if w["b_up"] is not None:
            grads["b_up"] = dup.sum(axis=0)
        if w["b_down"] is not None:
            grads["b_down"] = grad_y.sum(axis=0)
        return y, dx, grads["up"]

    return train if spec["mode"] == "train" else lambda: forward()[0]


def torch_peer(w, x, grad_y, spec, compiled=None):
    import torch
    from torch.nn.functional import gelu, linear, silu

    torch.set_num_threads(spec["threads"])
    activation = {
        "silu": silu,
        "gelu": gelu,
        "gelu_tanh": lambda v: gelu(v, approximate="tanh"),
    }[spec["activation"]]
    train = spec["mode"] == "train"

    def to_torch(array):  # numpy's bfloat16 is not torch's, but it has the same bits
        if x.dtype.name != "bfloat16":
            return torch.from_numpy(array)
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)

    def to_numpy(tensor):
        if x.dtype.name != "bfloat16":
            return tensor.numpy()
        return tensor.view(torch.int16).numpy().view(x.dtype)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, array in w.items():
                tensor = None if array is None else to_torch(array)
                parameter = None if tensor is None else torch.nn.Parameter(tensor, train)
                self.register_parameter(name, parameter)

        def forward(self, x):
            up = linear(x, self.up, self.b_up)
            if self.gate is None:
                return linear(activation(up), self.down, self.b_down)
            gate = linear(x, self.gate, self.b_gate)
            return linear(activation(gate) * up, self.down, self.b_down)

    layer = Layer()
    tx, tg = to_torch(x).requires_grad_(train), to_torch(grad_y)
    run = layer
    if compiled is not None:
        import torch._inductor.config as config

        config.freezing = not train  # weights are constants then, and may be packed once
        torch._dynamo.reset()  # or the second number of tokens would be compiled for any number
        run = torch.compile(layer.train(train), dynamic=False, **compiled)
    if not train:
        layer.eval()

        def infer():
            with torch.no_grad():
                return to_numpy(run(tx))

        return infer

    def step():
        layer.zero_grad(set_to_none=True)
        tx.grad = None
        y = run(tx)
        y.backward(tg)
        return to_numpy(y.detach()), to_numpy(tx.grad), to_numpy(layer.up.grad)

    return step


def torch_compile_peer(w, x, grad_y, spec):
    return torch_peer(w, x, grad_y, spec, compiled={})


def zentorch_peer(w, x, grad_y, spec):
    import zentorch  # noqa: F401

    if spec["mode"] == "train":
        raise ValueError("zentorch is for inference")
    return torch_peer(w, x, grad_y, spec, compiled={"backend": "zentorch"})


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

    if spec["mode"] == "infer":
        forward = jax.jit(layer)
        return lambda: forward(params, jx).block_until_ready()
    train = jax.jit(step)

    def run():
        y, dx, grads = jax.block_until_ready(train(params, jx, jg))
        return y, dx, grads["up"]

    return run


PEERS = {
    "ffncore": ("ffncore", ffncore_peer),
    "numpy": ("numpy", numpy_peer),
    "numpy-skylakex": ("numpy", numpy_peer),
    "torch": ("torch", torch_peer),
    "torch-compile": ("torch", torch_compile_peer),
    "jax": ("jax", jax_peer),
    "zentorch": ("zentorch", zentorch_peer),
}


def arrays(shape, dtype="float32"):
    """The same numbers in every worker: weights, x, grad_y."""
    import numpy as np

    if dtype == "bfloat16":
        from ml_dtypes import bfloat16 as dtype

    def make(seed, *size, scale=None):
        a = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
        a *= scale or (size[-1] ** -0.5 if len(size) == 2 else 1)
        return a.astype(dtype, copy=False)

    d, f, gated, bias = shape["d"], shape["f"], shape["gated"], shape["bias"]
    weights = {
        "gate": make(1, f, d) if gated else None,
        "up": make(2, f, d),
        "down": make(3, d, f),
        "b_gate": make(4, f) if gated and bias else None,
        "b_up": make(5, f) if bias else None,
        "b_down": make(6, d) if bias else None,
    }
    return weights, lambda t: make(7, t, d, scale=1), lambda t: make(8, t, d, scale=1)


def check(result):
    """A few numbers of each result, for comparison with the other peers'."""
    results = result if isinstance(result, tuple) else (result,)
    return [float(v) for array in results for v in array[0][:8]]


def routing(message):
    import numpy as np

    return {
        "ids": np.array(message["ids"], np.int32),
        "factors": np.array(message["factors"], np.float32),
    }


def main():
    name, threads = sys.argv[1], int(sys.argv[2])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the peers print is not an answer

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    module = (PEERS.get(name) or peer_moe.PEERS[name])[0]
    try:
        version = getattr(__import__(module), "__version__", "")
    except ImportError:
        answer(absent=INSTALL[name])
        return
    answer(version=str(version))
    kept, data, call = None, None, None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if message["do"] == "setup":
                call = None
                shape, tokens = message["shape"], message["tokens"]
                mixture = "n_experts" in shape
                wanted = shape, message["dtype"]
                if kept != wanted:
                    data = None
                    gc.collect()
                    kept, data = wanted, (peer_moe.arrays if mixture else arrays)(*wanted)
                spec = {**shape, "mode": message["mode"], "threads": threads}
                if mixture:
                    spec.update(routing(message))
                peers = peer_moe.PEERS if mixture else PEERS
                call = peers[name][1](data[0], data[1](tokens), data[2](tokens), spec)
                answer(check=(peer_moe.check if mixture else check)(call()))
            elif message["do"] == "drop":
                kept, data, call = None, None, None
                gc.collect()
                answer()
            elif message["do"] == "round":
                call()  # the others have taken the caches
                start = time.perf_counter()
                for _ in range(message["repeats"]):
                    call()
                answer(seconds=(time.perf_counter() - start) / message["repeats"])
            else:
                return
        except Exception as error:  # whatever a peer raises is the parent's to report
            answer(error=f"{type(error).__name__}: {error}".splitlines()[0])


if __name__ == "__main__":
    main()
