"""One hash for each function and dtype: the bits of its results on small fixed arguments.

`PYTHONPATH=tests python tests/package/digest.py` writes digest.json beside this file. A result has
the same bits on every machine, so it is written once, and again only where the arithmetic itself is
to change or there is a new activation.
What plain numpy computes (routers, latent projections of fc.MoE) is left out: its bits are BLAS's.
Tests: test_digest.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from support import DTYPES, GATED_CASES, NARROW, PLAIN_CASES

import ffncore as fc

FILE = Path(__file__).with_suffix(".json")

# Tokens beside a whole panel; sums that are longer than a block of 512; few experts, so that each
# has several tokens and one has none.
T, D, F, E, K = 67, 24, 520, 5, 2


def numbers(seed: int, *shape: int, dtype: object = np.float32, width: float = 1.0) -> np.ndarray:
    """Whole multiples of a power of two: the same on every machine."""
    whole = np.random.default_rng(seed).integers(-512, 513, shape)
    return (whole * (width / 512)).astype(dtype)


def weights(dtype: object, gated: bool = True, lead: tuple[int, ...] = ()) -> fc.FFNWeights:
    shapes = {"up": (F, D), "down": (D, F), "b_up": (F,), "b_down": (D,)}
    shapes |= {"gate": (F, D), "b_gate": (F,)} if gated else {}
    return fc.FFNWeights(
        **{
            n: numbers(i, *lead, *s, dtype=dtype, width=0.4)
            for i, (n, s) in enumerate(shapes.items())
        }
    )


def dense(x_dtype: object, dtype: object, gated: bool) -> Iterator[np.ndarray]:
    x, w = numbers(11, T, D, dtype=x_dtype), weights(dtype, gated)
    for activation in GATED_CASES[-7:] if gated else ("silu", "gelu", "xielu"):
        yield fc.ffn(x, w, activation=activation)
    yield fc.ffn(x, fc.pack(w), activation="gelu_tanh")
    for save in ("preactivations", "input"):
        y, saved = fc.ffn_forward(x[None], w, activation="xielu", save=save)
        grads = fc.ffn_backward(y, saved)
        yield from (y, *grads.arrays().values(), np.array(grads.activation))


def mixture(x_dtype: object, dtype: object, gated: bool) -> Iterator[np.ndarray]:
    x, w = numbers(12, T, D, dtype=x_dtype), weights(dtype, gated, (E,))
    wide = np.float64 if dtype == np.float64 else np.float32
    routing = fc.route(numbers(13, T, E, dtype=wide) - np.array([0, 0, 0, 0, 9], wide), K)
    for packed in (w, fc.pack(w)):
        yield fc.moe(x, routing, packed, activation="silu")
    for on_input in (False, True):
        options = {"activation": "xielu", "apply_router_weight_on_input": on_input}
        y, saved = fc.moe_forward(x, routing, w, **options)
        grads = fc.moe_backward(y, saved)
        yield from (y, *grads.arrays().values(), np.array(grads.activation))


def elementwise(dtype: object) -> Iterator[np.ndarray]:
    x, up = numbers(14, 50, 9, dtype=dtype, width=6), numbers(15, 50, 9, dtype=dtype)
    for case in PLAIN_CASES:
        yield fc.activation(x, activation=case)
        yield fc.activation_backward(up, x, activation=case).x
    for case in GATED_CASES:
        yield fc.activation(x, up, activation=case)
        yield from fc.activation_backward(up, x, up, activation=case)[:2]


def routers(dtype: object) -> Iterator[np.ndarray]:
    z, grad = numbers(16, 3, T, 8, dtype=dtype, width=4), numbers(17, 3, T, K, dtype=dtype)
    bias = numbers(18, 8, dtype=dtype)
    groups = {"n_group": 4, "topk_group": 2, "e_score_correction_bias": bias}
    for routing in (
        *(fc.route(z, K, score_fn=s) for s in ("softmax", "sigmoid", "sqrtsoftplus")),
        fc.route(z, K, score_fn="softmax_topk"),
        fc.route(z, K, norm_topk_prob=False),
        fc.route(z, K, score_fn="sigmoid", norm_eps=1e-6, routed_scaling_factor=2.5, **groups),
        fc.sparsemixer(z, jitter_eps=0.01),
        fc.switch_capacity(z, capacity=9, top_k=2),
    ):
        yield from (routing.experts, routing.weights, routing.counts)
        yield fc.route_backward(grad, routing)
    for convention in ("hf", "megatron", "switch"):
        yield fc.load_balancing_loss_backward(0.5, z, routing, convention=convention)
    yield fc.router_z_loss_backward(0.5, z)


def results() -> Iterator[tuple[str, Callable[[], Iterator[np.ndarray]]]]:
    pairs = [(dtype, dtype) for dtype in DTYPES] + [(np.dtype("f4"), dtype) for dtype in NARROW]
    for x_dtype, dtype in pairs:
        for gated in (False, True):
            end = f"{'gated' if gated else 'plain'} {x_dtype} x {dtype}"
            yield f"ffn {end}", lambda p=(x_dtype, dtype, gated): dense(*p)
            yield f"moe {end}", lambda p=(x_dtype, dtype, gated): mixture(*p)
    for dtype in DTYPES:
        yield f"activation {dtype}", lambda p=dtype: elementwise(p)
    for dtype in DTYPES[:2]:
        yield f"route {dtype}", lambda p=dtype: routers(p)


def digest(arrays: Iterator[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: digest(make()) for name, make in results()}, indent=0) + "\n")
