"""The same layer in numpy and in torch, and the arrays that every process makes for itself.

A peer is a function (weights, x, grad_y, spec) that returns a function without arguments, which is
what is timed. In the modes "packed" and "raw" it returns y; in the mode "train" it returns y and
the gradients of x and up. PEERS holds the peers by name, each with the module that it needs;
INSTALL says how to get that module. `table` chooses them for a shape, which process.py asks for.

This file runs with any interpreter that has numpy and the peer, so it imports no other file of
ffncore. Tests: tests/bench/test_peers.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

INSTALL = {"numpy": "pip install numpy", "torch": "pip install torch"}


# ---- arrays


def weights(shape: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """By name, the same in every process, such that preactivations and outputs are near 1."""
    d, f, gated, bias = shape["d"], shape["f"], shape["gated"], shape["bias"]
    return {
        "gate": normal(1, (f, d), dtype, d**-0.5) if gated else None,
        "up": normal(2, (f, d), dtype, d**-0.5),
        "down": normal(3, (d, f), dtype, f**-0.5),
        "b_gate": normal(4, (f,), dtype) if gated and bias else None,
        "b_up": normal(5, (f,), dtype) if bias else None,
        "b_down": normal(6, (d,), dtype) if bias else None,
    }


def inputs(shape: dict[str, Any], dtype: str, tokens: int) -> tuple[Any, Any]:
    """x and grad_y, [tokens, d]."""
    size = (tokens, shape["d"])
    return normal(7, size, dtype), normal(8, size, dtype)


def normal(seed: int, size: tuple[int, ...], dtype: str, scale: float = 1.0) -> Any:
    """Random numbers, the same in every process."""
    kind: Any = dtype
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16 as kind
    numbers = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    numbers *= np.float32(scale)
    return numbers.astype(kind, copy=False)


BLOCK = 1048573  # numbers; a prime, so that each expert starts at another place of the block


def tiled(seed: int, size: tuple[int, ...], dtype: str) -> Any:
    """Random matrices [..., columns]. A block of numbers is repeated, which is fast."""
    block = normal(seed, (BLOCK,), dtype, size[-1] ** -0.5)
    array = np.empty(size, block.dtype)
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        part[:] = block[: part.size]
    return array


def check(result: Any) -> list[float]:
    """A few numbers of each result, to be compared with those of ffncore."""
    results = result if isinstance(result, tuple) else (result,)
    return [float(v) for array in results for v in array[0][:8]]


# ---- numpy


def numpy_ffn(x: Any, w: dict[str, Any], act: Any) -> Any:
    up = linear(x, w["up"], w["b_up"])
    if w["gate"] is None:
        h = act(up)
    else:
        h = act(linear(x, w["gate"], w["b_gate"])) * up
    return linear(h, w["down"], w["b_down"])


def linear(x: Any, matrix: Any, bias: Any) -> Any:
    y = x @ matrix.T
    if bias is not None:
        y += bias
    return y


def numpy_peer(w: dict[str, Any], x: Any, grad_y: Any, spec: dict[str, Any]) -> Any:
    if x.dtype.itemsize == 2:
        raise ValueError("numpy multiplies 16-bit matrices one number at a time")
    activate = _known(ACTIVATIONS, spec, "numpy")
    if spec["mode"] != "train":
        return lambda: numpy_ffn(x, w, lambda v: activate(v)[0])

    def train() -> Any:
        up = linear(x, w["up"], w["b_up"])
        gate = None if w["gate"] is None else linear(x, w["gate"], w["b_gate"])
        a, derivative = activate(up if gate is None else gate)
        h = a if gate is None else a * up
        y = linear(h, w["down"], w["b_down"])
        grad_h = grad_y @ w["down"]
        grads = {"down": grad_y.T @ h}
        if gate is None:
            grad_up = grad_h * derivative()
            grad_x = grad_up @ w["up"]
        else:
            grad_up = grad_h * a
            grad_gate = grad_h * up * derivative()
            grads["gate"] = grad_gate.T @ x
            grad_x = grad_up @ w["up"] + grad_gate @ w["gate"]
            if w["b_gate"] is not None:
                grads["b_gate"] = grad_gate.sum(axis=0)
        grads["up"] = grad_up.T @ x
        if w["b_up"] is not None:
            grads["b_up"] = grad_up.sum(axis=0)
        if w["b_down"] is not None:
            grads["b_down"] = grad_y.sum(axis=0)
        return y, grad_x, grads["up"]

    return train


# Functions of v that return act(v) and a function for act'(v).


def _times(function: Callable[[Any], tuple[Any, Any]]) -> Callable[[Any], Any]:
    """act(v) = v * s(v), where `function` returns s(v) and a function for s'(v)."""

    def activate(v: Any) -> Any:
        s, derivative = function(v)
        return v * s, lambda: s + v * derivative()

    return activate


def _sigmoid(v: Any) -> Any:
    s = 1 / (1 + np.exp(-v))
    return s, lambda: s * (1 - s)


def _quick(v: Any) -> Any:
    s, derivative = _sigmoid(1.702 * v)
    return s, lambda: 1.702 * derivative()


def _hard(v: Any) -> Any:
    return np.clip(v / 6 + 0.5, 0, 1), lambda: (np.abs(v) < 3) * v.dtype.type(1 / 6)


def _gelu(v: Any) -> Any:
    """numpy has no erf: a polynomial with an error of 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    z = np.abs(v)
    z *= 0.5**0.5
    t = 1 / (1 + 0.3275911 * z)
    p = 1.061405429 * t
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p += c
        p *= t
    p *= np.exp(-z * z)
    return (1 + np.copysign(1 - p, v)) / 2, lambda: np.exp(-v * v / 2) * 0.3989422804


def _gelu_tanh(v: Any) -> Any:
    c = 0.7978845608
    t = np.tanh(c * (v + 0.044715 * v * v * v))
    return (1 + t) / 2, lambda: (1 - t * t) * c * (1 + 0.134145 * v * v) / 2


def _mish(v: Any) -> Any:
    t = np.tanh(np.log1p(np.exp(v)))
    return t, lambda: (1 - t * t) / (1 + np.exp(-v))


def _tanh(v: Any) -> Any:
    t = np.tanh(v)
    return t, lambda: 1 - t * t


def _leaky(v: Any, slope: float) -> Any:
    s = np.where(v > 0, v.dtype.type(1), v.dtype.type(slope))
    return v * s, lambda: s


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda v: (v, lambda: 1.0),
    "relu": lambda v: (np.maximum(v, 0), lambda: v > 0),
    "relu2": lambda v: (np.maximum(v, 0) ** 2, lambda: 2 * np.maximum(v, 0)),
    "gelu": _times(_gelu),
    "gelu_tanh": _times(_gelu_tanh),
    "quick_gelu": _times(_quick),
    "silu": _times(_sigmoid),
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "mish": _times(_mish),
    "hardswish": _times(_hard),
    "leaky_relu": lambda v: _leaky(v, 0.01),
}


def _known(table: dict[str, Any], spec: dict[str, Any], peer: str) -> Any:
    name = spec["activation"]
    if name not in table or spec.get("options"):
        what = f"{name} with options" if name in table else name
        raise ValueError(f"the {peer} layer has no {what}; it has {', '.join(table)}")
    return table[name]


# ---- torch


def torch_peer(
    w: dict[str, Any], x: Any, grad_y: Any, spec: dict[str, Any], compiled: Any = None
) -> Any:
    """compiled: what torch.compile takes; None: eager."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(spec["threads"])
    functions = {
        "identity": lambda v: v,
        "relu": F.relu,
        "relu2": lambda v: F.relu(v).square(),
        "gelu": F.gelu,
        "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
        "quick_gelu": lambda v: v * torch.sigmoid(1.702 * v),
        "silu": F.silu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "mish": F.mish,
        "hardswish": F.hardswish,
        "leaky_relu": F.leaky_relu,
    }
    act = _known(functions, spec, "torch")
    train = spec["mode"] == "train"
    narrow = x.dtype.name == "bfloat16"  # numpy's bfloat16 is not torch's, but has the same bits

    def to_torch(array: Any) -> Any:
        if narrow:
            return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
        return torch.from_numpy(array)

    def to_numpy(tensor: Any) -> Any:
        return tensor.view(torch.int16).numpy().view(x.dtype) if narrow else tensor.numpy()

    class Layer(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            for name, array in w.items():
                tensor = None if array is None else torch.nn.Parameter(to_torch(array), train)
                self.register_parameter(name, tensor)

        def forward(self, x: Any) -> Any:
            up = F.linear(x, self.up, self.b_up)
            h = act(up) if self.gate is None else act(F.linear(x, self.gate, self.b_gate)) * up
            return F.linear(h, self.down, self.b_down)

    layer = Layer()
    tx, tg = to_torch(x).requires_grad_(train), to_torch(grad_y)
    run: Any = layer
    if compiled is not None:
        import torch._inductor.config as config

        config.freezing = spec["mode"] == "packed"  # weights are constants then, and may be packed
        torch._dynamo.reset()  # or the second number of tokens would be compiled for any number
        run = torch.compile(layer.train(train), dynamic=False, **compiled)
    if not train:
        layer.eval()

        def infer() -> Any:
            with torch.no_grad():
                return to_numpy(run(tx))

        return infer

    def step() -> Any:
        layer.zero_grad(set_to_none=True)
        tx.grad = None
        y = run(tx)
        y.backward(tg)
        return to_numpy(y.detach()), to_numpy(tx.grad), to_numpy(layer.up.grad)

    return step


PEERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "numpy": ("numpy", numpy_peer),
    "torch": ("torch", torch_peer),
}


def module_of(name: str) -> str:
    """The module that a peer needs."""
    return PEERS[name][0]


def table(shape: dict[str, Any]) -> Any:  # noqa: ARG001 (of bench/peer_dense.py)
    """What has PEERS, weights, inputs and check for a shape: this module."""
    return sys.modules[__name__]
