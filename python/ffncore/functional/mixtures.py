"""A mixture of experts as functions: forward, forward that saves, backward.

    y[t] = sum over slots s of w[t, s] FFN_e(x[t]),  e = experts[t, s]      weight on the output
    y[t] = sum over slots s of FFN_e(w[t, s] x[t])                          weight on the input

x is [..., d], a Routing holds experts and weights [..., k], the experts' FFNWeights have a leading
E on every array. Rows go through experts without copies of x and without a [T, k, d] array. The
slots of a token are added in fp32, in order; an expert's rows have the bits of fc.ffn with its
weights. Expert -1 is none: the slot adds nothing, and its weight gets gradient 0.

Gradients (dy_s: what a slot's output gets, w dy or dy):

    d_w[t, s] = <dy[t], FFN_e(x[t])>, or <d(w x), x[t]>         experts as fc.ffn_backward's
    dx[t]     = sum over the slots' experts in rising order     0 for experts that no token chose

Tests: tests/functional/test_moe.py, tests/functional/test_moe_backward.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..arrays.shapes import Array, MaybeArray
from ..values.activation import Activation
from ..values.arguments import LayerArguments
from ..values.gradients import MoEGrads
from ..values.packed import PackedWeights
from ..values.routing import Routing
from ..values.saved import MoESaved
from ..values.weights import FFNWeights
from . import passes


def moe(
    x: Array,
    routing: Routing,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    apply_router_weight_on_input: bool = False,
    out: MaybeArray = None,
) -> Array:
    """y [..., d] of x [..., d]; out: an array to write y to, which is returned.

    routing  experts [..., k] from 0 to E - 1, or -1 for none; weights [..., k] float32, or float64
             beside float64 x. An expert may be there twice within a token.
    weights  of the experts: FFNWeights with a leading E, or packed ones

    x, routing, weights and out may also be torch CUDA tensors, or CuPy arrays, of one device, as
    for fc.ffn. There expert ids are not looked at: one that does not exist counts as -1, or is an
    error with FFNCORE_CUDA_DEBUG=1 in the environment, where each call waits for the GPU.

    >>> y = fc.moe(x, fc.route(logits, 8), experts, activation="silu")
    """
    layer = LayerArguments(x, weights, activation, (routing, apply_router_weight_on_input))
    return passes.forward(layer, out)


def moe_forward(
    x: Array,
    routing: Routing,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    apply_router_weight_on_input: bool = False,
    save: str = "preactivations",
    out: MaybeArray = None,
) -> tuple[Array, MoESaved]:
    """y and what the backward pass needs; arguments as for moe.

    save="preactivations" keeps gate and up of every slot that has an expert; save="input" keeps
    references alone, and the backward pass computes them again. The results are the same bits.
    Arrays on a GPU as for moe.

    >>> y, saved = fc.moe_forward(x, routing, experts, activation="silu")
    """
    layer = LayerArguments(x, weights, activation, (routing, apply_router_weight_on_input))
    return passes.forward_saved(layer, save, out)


def moe_backward(
    grad_y: Array,
    saved: MoESaved,
    *,
    needs: Iterable[str] | None = None,
    out: MoEGrads | Mapping[str, Any] | None = None,
    accumulate: bool = False,
) -> MoEGrads:
    """Gradients of x, the routing weights, the experts and xielu's parameters.

    grads.x is the gradient along the experts alone. Where the routing was made of logits = x r^T by
    a router r [E, d], the logits depend on x, too, and the whole gradient is

        grad_logits = fc.route_backward(grads.routing_weights, routing)
        grad_r = grad_logits^T x
        grad_x = grads.x + grad_logits r

    An expert without tokens has gradients of zero (routing.counts tells how many each has).

    needs       names of what is wanted: "x", "routing_weights", "gate", "up", "down", "b_gate",
                "b_up", "b_down", "activation"; what is not needed is not computed. Default: all
                that exist (through packed weights: x and routing_weights).
    out         arrays to fill: a MoEGrads, or a mapping of the names of needs
    accumulate  add into out instead; experts that no token chose are not touched

    Dtypes as for fc.ffn_backward, and arrays on a GPU, too; the gradient of routing weights has
    their dtype.

    >>> grads = fc.moe_backward(grad_y, saved)
    >>> grad_logits = fc.route_backward(grads.routing_weights, saved.routing)
    """
    return passes.backward(grad_y, saved, needs, out, accumulate, MoESaved)  # type: ignore[no-any-return]
