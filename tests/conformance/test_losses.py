"""The losses of routers against functions of the transformers library, also in a whole layer."""

import importlib

import numpy as np
import pytest
from blocks import TOLERANCE, D, E, K, Tensors, generator, near, torch
from families_softmax import FAMILIES

import ffncore as fc


def function(module, name):
    return getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), name)


def theirs(loss, logits):
    given = torch.from_numpy(logits.copy()).requires_grad_(True)
    value = loss(given)
    value.backward()
    return float(value.detach()), given.grad.numpy()


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_load_balancing(top_k):
    rng = generator("load balancing")
    logits = rng.standard_normal((23, E))
    hf = function("mixtral", "load_balancing_loss_func")
    value, grad = theirs(lambda z: hf((z,), E, top_k), logits)
    routing = fc.route(logits, top_k)
    assert fc.load_balancing_loss(logits, routing) == pytest.approx(value, rel=TOLERANCE)
    near(fc.load_balancing_loss_backward(1.0, logits, routing), grad, "gradient")


def test_load_balancing_of_switch():
    rng = generator("switch")
    logits = rng.standard_normal((3, 11, E))
    hf = function("switch_transformers", "load_balancing_loss_func")
    value, grad = theirs(lambda z: hf(z.softmax(-1), z.argmax(-1)), logits)
    routing = fc.route(logits, 1)
    ours = fc.load_balancing_loss(logits, routing, convention="switch")
    assert ours == pytest.approx(value, rel=TOLERANCE)
    found = fc.load_balancing_loss_backward(1.0, logits, routing, convention="switch")
    near(found, grad, "gradient")


def test_router_z():
    rng = generator("z")
    logits = 3 * rng.standard_normal((3, 11, E))
    value, grad = theirs(function("switch_transformers", "router_z_loss_func"), logits)
    assert fc.router_z_loss(logits) == pytest.approx(value, rel=TOLERANCE)
    near(fc.router_z_loss_backward(1.0, logits), grad, "gradient")


def test_loss_of_a_layer():
    """A loss with a load-balancing part: the gradients of the router's weight and of x."""
    rng = generator("layer")
    family = FAMILIES["mixtral"]
    block = family.make(rng, torch.float64)
    layer = family.layer(Tensors(block.state_dict()))
    x, grad_y = rng.standard_normal((2, 1, 9, D))
    given = torch.from_numpy(x.copy()).requires_grad_(True)
    logits = given.reshape(-1, D) @ block.gate.weight.T
    loss = (block(given) * torch.from_numpy(grad_y)).sum()
    hf = function("mixtral", "load_balancing_loss_func")
    (loss + 0.3 * hf((logits,), E, K)).backward()

    _, saved = layer.forward(x)
    grad_logits = fc.load_balancing_loss_backward(0.3, saved.logits, saved.routing)
    grads = layer.backward(grad_y, saved, grad_logits=grad_logits)
    near(grads.x, given.grad.numpy(), "x")
    near(grads.router_weight, block.gate.weight.grad.numpy(), "router")
    without = layer.backward(grad_y, saved)
    assert np.abs(without.router_weight - grads.router_weight).max() > 1e-3
