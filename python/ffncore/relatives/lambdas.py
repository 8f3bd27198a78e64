"""The positional lambdas of LambdaNetworks, in numpy: fc.positional_lambda.

    L_n = sum_m e_nm v_m^T       [k, d]: a linear function for position n
    y_n = L_n^T q_n              y_n = sum_m (q_n . e_nm) v_m

    dq_n = L_n dy_n      dv_m = sum_n (q_n . e_nm) dy_n      de_nm = q_n (dy_n . v_m)

q is [..., n, k], v [..., m, d], the embeddings e [n, m, k]. What is constant, and what comes from
the input:

                     queries   keys           values
    FFN              input     constant       constant
    attention        input     input          input
    All-attention    input     both           both
    lambda           input     constant (e)   input

Source: Bello, LambdaNetworks (2021), the positional part. Tests: tests/relatives/test_lambdas.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..arrays.dtypes import check_dtype, check_same_dtype
from ..arrays.linear import work_dtype
from ..arrays.shapes import Array, as_array, check_rank, check_shape


class PositionalLambdaGrads(NamedTuple):
    """The gradients that fc.positional_lambda_backward returns: a named tuple.

    q           [..., n, k]
    v           [..., m, d]
    embeddings  [n, m, k], summed over the leading dimensions
    """

    q: Array
    v: Array
    embeddings: Array


def positional_lambda(q: Array, v: Array, embeddings: Array) -> Array:
    """Apply a linear function of each position's own to its query: y_n = sum_m (q_n . e_nm) v_m.

    q           [..., n, k]: n positions with queries of size k
    v           [..., m, d], with the dtype and the leading dimensions of q
    embeddings  [n, m, k], with the dtype of q; a softmax over m is the caller's

    Returns y [..., n, d]. 16 bits are computed in float32 and rounded once.

    Raises ValueError for shapes, and TypeError for types and dtypes.

    >>> y = fc.positional_lambda(np.ones((3, 2)), np.ones((5, 4)), np.ones((3, 5, 2)))
    """
    q, v, embeddings = _checked(q, v, embeddings)
    work = work_dtype(q)
    weights = np.einsum("...nk,nmk->...nm", q.astype(work), embeddings.astype(work))
    y: Array = np.matmul(weights, v.astype(work)).astype(q.dtype)
    return y


def positional_lambda_backward(
    grad_y: Array, q: Array, v: Array, embeddings: Array
) -> PositionalLambdaGrads:
    """Compute the gradients of fc.positional_lambda from the gradient of its result.

    grad_y      [..., n, d], with the dtype of q
    q           as passed to fc.positional_lambda
    v           as passed to fc.positional_lambda
    embeddings  as passed to fc.positional_lambda

    Returns a PositionalLambdaGrads, whose arrays have the dtypes of the arguments.

    Raises ValueError for shapes, and TypeError for types and dtypes.

    >>> q, v, embeddings = np.ones((3, 2)), np.ones((5, 4)), np.ones((3, 5, 2))
    >>> lambda_grads = fc.positional_lambda_backward(np.ones((3, 4)), q, v, embeddings)
    """
    q, v, embeddings = _checked(q, v, embeddings)
    grad = as_array("grad_y", grad_y)
    check_same_dtype("grad_y", grad, q.dtype, "q")
    check_shape("grad_y", grad, (*q.shape[:-1], v.shape[-1]), "to match q and v")
    work = work_dtype(q)
    wide, e, dy = q.astype(work), embeddings.astype(work), grad.astype(work)
    weights = np.einsum("...nk,nmk->...nm", wide, e)
    dweights = np.matmul(dy, np.swapaxes(v.astype(work), -1, -2))
    found = (
        np.einsum("...nm,nmk->...nk", dweights, e),
        np.matmul(np.swapaxes(weights, -1, -2), dy),
        np.einsum("bnk,bnm->nmk", _batch(wide), _batch(dweights)),
    )
    return PositionalLambdaGrads(*(array.astype(q.dtype) for array in found))


def _batch(array: Array) -> Array:
    """The leading dimensions as one."""
    merged: Array = array.reshape(math.prod(array.shape[:-2]), *array.shape[-2:])
    return merged


def _checked(q: object, v: object, embeddings: object) -> tuple[Array, Array, Array]:
    first, second, third = as_array("q", q), as_array("v", v), as_array("embeddings", embeddings)
    dtype = check_dtype("q", first)
    if first.ndim < 2:
        raise ValueError(f"q has shape {first.shape}; expected [..., n, k]")
    check_same_dtype("v", second, dtype, "q")
    check_same_dtype("embeddings", third, dtype, "q")
    check_rank("embeddings", third, 3, "[n, m, k]")
    n, k = first.shape[-2:]
    check_shape("embeddings", third, (n, third.shape[1], k), "to match q")
    width = second.shape[-1] if second.ndim else 0
    check_shape(
        "v", second, (*first.shape[:-2], third.shape[1], width), "to match q and embeddings"
    )
    return first, second, third
