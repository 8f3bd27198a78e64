"""The backward pass against central differences, to 1e-7 of the largest entry; check_gradients."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import CASE_IDS, CASES, all_biases, make_weights, normal

import ffncore as fc
from ffncore import reference

TOLERANCE = 1e-7  # relative to the largest entry of the gradient; rounding alone gives about 1e-9
CLEARANCE = 1e-2  # much larger than the step of the differences, so that no kink is crossed

KINKS = {
    "relu": (0,),
    "relu2": (0,),
    "leaky_relu": (0,),
    "hardswish": (-3, 3),
}


def distance_to_kinks(x, w, act):
    """The smallest distance of a preactivation from a kink."""
    gate, up = reference.preactivations(x, w)
    v = (up if gate is None else gate) * act.gate_multiplier
    gaps = [np.abs(v - kink) for kink in KINKS.get(act.name, ())]
    if act.name == "xielu":
        gaps += [np.abs(v), np.abs(v - act.eps)]
    if act.limit is not None:
        a = v if act.clamp == "pre" else reference.FORMULAS[act.name][0](v, act)
        gaps += [np.abs(a - act.limit), np.abs(np.abs(up) - act.limit)]
    return min((gap.min() for gap in gaps), default=np.inf)


def clear_layer(rng, t, d, f, gated, act):
    """x and weights whose preactivations are not close to kinks."""
    while True:
        w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated))
        x = normal(rng, t, d)
        if distance_to_kinks(x, w, act) > CLEARANCE:
            return {"x": x, **w.arrays()}


@pytest.mark.parametrize("save", ["preactivations", "input"])
@pytest.mark.parametrize("gated, act", CASES, ids=CASE_IDS)
def test_every_activation_and_option(gated, act, save, isa, rng):
    arrays = clear_layer(rng, 3, 4, 5, gated, act)

    def layer(x, **weights):
        return fc.ffn_forward(x, fc.FFNWeights(**weights), activation=act, save=save)

    report = fc.check_gradients(layer, arrays, tolerance=TOLERANCE)
    assert set(report) == set(arrays)


@pytest.mark.parametrize("gated", [False, True])
def test_a_layer_of_several_tiles(gated, isa, rng):
    w = make_weights(rng, 35, 70, gated=gated, biases=all_biases(gated))
    arrays = {"x": normal(rng, 67, 35), **w.arrays()}

    def layer(x, **weights):
        return fc.ffn_forward(x, fc.FFNWeights(**weights), activation="gelu")

    report = fc.check_gradients(layer, arrays, tolerance=TOLERANCE, samples=6)
    assert all(entry.checked <= 6 for entry in report.values())


@pytest.mark.parametrize("gated", [False, True])
def test_xielu_parameters(gated, isa, rng):
    act = fc.Activation("xielu", alpha_p=0.3, alpha_n=-0.4, beta=0.4, eps=-0.1)
    arrays = clear_layer(rng, 9, 4, 5, gated, act)
    x = arrays.pop("x")
    w = fc.FFNWeights(**arrays)

    def layer(alpha):
        given = fc.Activation("xielu", alpha_p=alpha[0], alpha_n=alpha[1], beta=0.4, eps=-0.1)
        y, saved = fc.ffn_forward(x, w, activation=given)
        return y, lambda grad_y: np.array(fc.ffn_backward(grad_y, saved).activation)

    fc.check_gradients(layer, [np.array([0.3, -0.4])], tolerance=TOLERANCE)


@pytest.mark.parametrize("gated, act", CASES, ids=CASE_IDS)
def test_elementwise(gated, act, isa, rng):
    v = np.linspace(-2.5, 2.5, 41) + 0.0217
    arrays = [v, normal(rng, v.size)] if gated else [v]
    while gated and act.limit is not None and abs(abs(arrays[1]) - act.limit).min() < CLEARANCE:
        arrays[1] = normal(rng, v.size)
    one_hot = fc.FFNWeights(up=np.eye(1), down=np.eye(1), gate=np.eye(1) if gated else None)
    if distance_to_kinks(v[:, None], one_hot, act) < 1e-4:
        arrays[0] = v + 0.0031

    def elementwise(x, up=None):
        def backward(grad):
            grads = fc.activation_backward(grad, x, up, activation=act)
            return [grads.x, grads.up] if gated else grads.x

        return fc.activation(x, up, activation=act), backward

    fc.check_gradients(elementwise, arrays, tolerance=TOLERANCE)


# ---- check_gradients itself ----------------------------------------------------------------------


def product(a, b):
    return a @ b, lambda grad: (grad @ b.T, a.T @ grad)


def test_accepts_a_correct_backward_pass(rng):
    a, b = normal(rng, 3, 4), normal(rng, 4, 5)
    report = fc.check_gradients(product, [a, b])
    assert report.max_error < 1e-9
    assert set(report) == {0, 1}
    assert "entries" in str(report)


@pytest.mark.parametrize("samples", [64, 2])
def test_finds_one_wrong_entry(samples, rng):
    def wrong(a, b):
        y, backward = product(a, b)

        def off(grad):
            grad_a, grad_b = backward(grad)
            grad_b[1, 2] *= 1.01
            return grad_a, grad_b

        return y, off

    a, b = normal(rng, 3, 4), normal(rng, 4, 5)
    with pytest.raises(AssertionError, match="the gradient of 1 at"):
        fc.check_gradients(wrong, [a, b], samples=samples)
    report = fc.check_gradients(wrong, [a, b], samples=samples, tolerance=None)
    assert report[0].error < 1e-9
    assert report[1].error > 1e-5


def test_a_loss_is_a_number(rng):
    x = normal(rng, 5)
    fc.check_gradients(lambda x: ((x**2).sum(), lambda grad: grad * 2 * x), [x])
    report = fc.check_gradients(lambda x: (float((x**2).sum()), lambda grad: grad * 2 * x), [x])
    assert report.max_error < 1e-8


def test_a_mixture_with_its_router(rng):
    arrays = {
        "x": normal(rng, 6, 4),
        "router_weight": normal(rng, 3, 4),
        "experts.up": normal(rng, 3, 5, 4),
        "experts.down": normal(rng, 3, 4, 5),
    }

    def layer(**a):
        experts = fc.FFNWeights(up=a["experts.up"], down=a["experts.down"])
        router = fc.Router(
            a["router_weight"], top_k=3
        )  # all of them have to keep their sign within the step
        return fc.MoE(experts, "gelu", router).forward(a["x"])

    assert set(fc.check_gradients(layer, arrays)) == set(arrays)


def test_a_kink_within_the_step_is_named(rng):
    x = np.array([1e-9, 0.5])
    with pytest.raises(AssertionError, match="a kink of the function, such as that of relu at 0"):
        fc.check_gradients(lambda x: (np.maximum(x, 0), lambda grad: grad * (x > 0)), [x])


def test_finds_nan(rng):
    with pytest.raises(AssertionError, match="nan"):
        fc.check_gradients(lambda a: (a * 2, lambda g: g * np.nan), [normal(rng, 3)])


def test_leaves_the_arrays_alone(rng):
    a, b = normal(rng, 3, 4), normal(rng, 4, 5)
    before = a.copy(), b.copy()
    report = fc.check_gradients(product, [a, b], wrt=[1])
    assert set(report) == {1}
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])


def test_absent_arguments(rng):
    def layer(x, gate, up, down):
        w = fc.FFNWeights(gate=gate, up=up, down=down)
        return fc.ffn_forward(x, w, activation="silu")

    x, up, down = normal(rng, 3, 4), normal(rng, 5, 4), normal(rng, 4, 5)
    assert set(fc.check_gradients(layer, [x, None, up, down])) == {0, 2, 3}
    arrays = {"x": x, "gate": None, "up": up, "down": down}
    assert set(fc.check_gradients(layer, arrays)) == {"x", "up", "down"}


def test_says_what_is_wrong(rng):
    a = normal(rng, 3)
    with pytest.raises(TypeError, match="float64, because"):
        fc.check_gradients(product, [a.astype(np.float32)])
    with pytest.raises(TypeError, match=r"expected a pair \(y, backward\)"):
        fc.check_gradients(lambda a: a, [a])
    with pytest.raises(TypeError, match="expected a function of grad_y"):
        fc.check_gradients(lambda a: (a, 3), [a])
    with pytest.raises(ValueError, match="expected one of"):
        fc.check_gradients(lambda a: (a, lambda g: g), [a], wrt=["b"])
    with pytest.raises(ValueError, match="2 gradients"):
        fc.check_gradients(lambda a: (a, lambda g: (g, g)), [a])
    with pytest.raises(ValueError, match="to match the array"):
        fc.check_gradients(lambda a: (a, lambda g: g[:2]), [a])
