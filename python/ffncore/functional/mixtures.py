"""A mixture of experts: fc.moe, fc.moe_forward and fc.moe_backward.

    y[t] = sum over slots s of w[t, s] FFN_e(x[t]),  e = experts[t, s]      weight on the output
    y[t] = sum over slots s of FFN_e(w[t, s] x[t])                          weight on the input

x is [..., d] with t as its tokens. A Routing holds experts and weights w, [..., k] each: the k
slots of a token. The FFNWeights of the experts have a leading dimension E. Rows go through the
experts without a copy of x and without an array [T, k, d]. The outputs of a token's slots are added
in float32, in their order; the output of an expert has the bits of fc.ffn with its weights. A slot
with expert -1 adds nothing, and the gradient of its weight is 0.

    d_w[t, s] = <dy[t], FFN_e(x[t])>, or <d(w x), x[t]>     with the weight on the input
    dx[t]     = sum over the token's experts, by rising number
    gradients of an expert's weights are those of fc.ffn_backward, 0 for an expert without tokens

Tests: tests/functional/test_moe.py, tests/functional/test_moe_backward.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..arrays.shapes import Array, MaybeArray
from ..passes import passes
from ..values.activation import Activation
from ..values.arguments import LayerArguments
from ..values.gradients import MoEGrads
from ..values.packed import PackedWeights
from ..values.routing import Routing
from ..values.saved import MoESaved
from ..values.weights import FFNWeights


def moe(
    x: Array,
    routing: Routing,
    weights: FFNWeights | PackedWeights,
    *,
    activation: str | Activation,
    apply_router_weight_on_input: bool = False,
    out: MaybeArray = None,
) -> Array:
    """Compute the output of a mixture of experts.

    For each token it is y = sum over its slots s of weights[s] FFN_e(x) with e = experts[s], where
    FFN_e is the layer of fc.ffn with the weights of expert e.

    x           [..., d_model], with the dtype of the weights, or float32 with 16-bit weights
    routing     a Routing with the leading dimensions of x: experts [..., k], from 0 to
                n_experts - 1, or -1 for no expert, and weights [..., k], float64 with float64 x,
                else float32. A token may have an expert in several slots
    weights     FFNWeights of experts, with a leading dimension n_experts on every array, or the
                same packed
    activation  a name, or an Activation with options
    apply_router_weight_on_input  if true, y = sum of FFN_e(weights[s] x) instead
    out         an array like x to write y to, with any strides, which must not overlap an input;
                None: a new array

    Returns y, an array with the shape and dtype of x: out if it was passed.

    Raises ValueError for shapes, values and experts that do not exist, and TypeError for types and
    dtypes, before anything is computed.

    x, routing, weights and out may also be torch CUDA tensors, or CuPy arrays, of one device, as
    for fc.ffn. Then the numbers of the experts are not checked, because this would wait for the
    GPU: an expert that does not exist counts as -1. With FFNCORE_CUDA_DEBUG=1 in the environment it
    is an error, and each call waits for the GPU.

    See also: fc.route, fc.moe_forward, fc.MoE.

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
    """Compute the output of a mixture, and save what moe_backward needs.

    x, routing, weights, activation, apply_router_weight_on_input and out are those of fc.moe.

    save  "preactivations" keeps gate and up of every slot that has an expert, d_ff numbers each,
          before the activation; "input" keeps only references to x, routing and weights, and the
          backward pass computes gate and up again: less memory, more time, the same bits

    Returns y, which has the bits of fc.moe, and a MoESaved. x, the weights of the routing and those
    of the experts must not be changed before the backward pass.

    Raises ValueError and TypeError as fc.moe does, and ValueError for an unknown save.

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
    """Compute gradients of x, the routing weights, the experts and xielu's parameters.

    grad_y      [..., d_model], with the shape and dtype of y
    saved       the MoESaved that fc.moe_forward returned
    needs       names of the gradients to compute: "x", "routing_weights", "gate", "up", "down",
                "b_gate", "b_up", "b_down", "activation". Default: all that exist; with packed
                weights only "x" and "routing_weights"
    out         arrays to write the gradients to: a MoEGrads, or a mapping from names of needs to
                arrays. Gradients that out has no array for are new arrays
    accumulate  if true, add the gradients to the values in out; those of experts without tokens
                stay as they are

    Returns a MoEGrads: grads.x is [..., d_model], grads.routing_weights [..., k] and
    grads.weights.up [n_experts, d_ff, d_model]. An expert without tokens has gradients of zero;
    routing.counts has the number of tokens of each expert. Dtypes are those of fc.ffn_backward, and
    the gradient of the routing weights has their dtype.

    grads.x is the gradient through the experts alone. If the logits depend on x, as in
    logits = x r^T with a router r [n_experts, d_model], the router's part has to be added:

        grad_logits = fc.route_backward(grads.routing_weights, saved.routing)
        grad_r = grad_logits^T x
        grad_x = grads.x + grad_logits r

    Raises ValueError and TypeError as fc.ffn_backward does. On a GPU the gradients are arrays of
    the same library.

    >>> grads = fc.moe_backward(grad_y, moe_saved)
    >>> grad_logits = fc.route_backward(grads.routing_weights, moe_saved.routing)
    """
    return passes.backward(grad_y, saved, needs, out, accumulate, MoESaved)  # type: ignore[no-any-return]
