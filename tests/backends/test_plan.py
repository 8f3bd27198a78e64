"""The plan at widths where one pass over the tokens cannot hold all that training needs."""

import numpy as np
import pytest
from support import same_bits

import ffncore as fc
from ffncore import _core
from ffncore.values.activation import as_core


def sliding(rng, rows, columns):
    """A matrix of any size in the memory of a row and a column: each row is a shifted copy."""
    line = rng.standard_normal(rows + columns) / np.sqrt(columns)
    return np.lib.stride_tricks.as_strided(line, (rows, columns), line.strides * 2)


@pytest.mark.slow
def test_grad_x_apart(rng):
    # 512 tokens of dx in float64 take 59 MiB here, and all hidden units 57 MiB, so that dx is
    # computed separately, with dh once more. Only the backward pass runs; preactivations are 0.
    if fc.available_isas() == ("scalar",):
        pytest.skip("takes a minute in the scalar level")
    tokens, d, f = 513, 15000, 14500
    up, down = sliding(rng, f, d), sliding(rng, d, f)
    x, grad_y = sliding(rng, tokens, d), sliding(rng, tokens, d)
    activation = as_core("identity", False)

    def backward(count, needs_x, needs_bias):
        saved = np.zeros(_core.saved_bytes(x, count, f, False) // 8)
        grad_x = np.empty((count, d)) if needs_x else None
        grad_bias = np.empty(f) if needs_bias else None
        weights = _core.Weights(up=up, down=down)
        grads = {} if grad_bias is None else {"b_up": grad_bias}
        _core.debug_flops()
        _core.ffn_backward(
            *(x[:count], grad_y[:count], weights, activation, saved, False),
            *(grad_x, grads, False),
        )
        return grad_x, grad_bias, _core.debug_flops() / (2 * count * d * f)

    grad_x, grad_bias, products = backward(tokens, True, True)
    assert products == pytest.approx(3, rel=0.1)  # dh, dx, and dh again
    assert same_bits(grad_x[:8], backward(8, True, False)[0])
    np.testing.assert_allclose(grad_bias, grad_y.sum(0) @ down, rtol=1e-9, atol=1e-9)
