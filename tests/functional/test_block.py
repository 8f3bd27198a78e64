"""fc.ffn with norms and a residual: against the formula, by finite differences, and its errors."""

import copy
import pickle

import numpy as np
import pytest
from support import DTYPES, all_biases, in_every_isa, make_weights, normal, same_bits

import ffncore as fc
from ffncore import reference

D, F, T = 5, 7, 6
NAMES = ("norm", "inner_norm", "post_norm", "out_norm")
# Each norm alone, the blocks of models, and all at once.
CASES = [
    {"norm": "rms"},
    {"post_norm": "layer"},
    {"out_norm": "layer", "residual": True},
    {"norm": "rms", "post_norm": "rms", "residual": True},
    {"residual": True, "residual_multiplier": 0.3},
    {"inner_norm": "rms"},
    {
        "norm": "layer",
        "inner_norm": "layer",
        "post_norm": "rms",
        "out_norm": "rms",
        "residual": True,
        "residual_multiplier": -1.5,
    },
]
IDS = ["+".join(case) for case in CASES]


def make(rng, case, dtype=np.float64, gated=True):
    """x, weights and the options of a case, with the kinds of norms replaced by norms."""
    w = make_weights(rng, D, F, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, options = normal(rng, 2, T // 2, D, dtype=dtype), dict(case)
    for name in NAMES:
        if name in case:
            size = F if name == "inner_norm" else D
            bias = normal(rng, size, dtype=dtype) if case[name] == "layer" else None
            gain = normal(rng, size, dtype=dtype)
            options[name] = fc.Norm(case[name], gain=gain, bias=bias, eps=0.1, gain_offset=0.5)
    if case.get("residual"):
        options["residual"] = normal(rng, 2, T // 2, D, dtype=dtype)
    return x, w, options


def apply(norm, x):
    if norm is None:
        return x
    options = {"eps": norm.eps, "gain_offset": norm.gain_offset}
    return reference.norm(x, norm.kind, norm.gain, norm.bias, **options)


def formula(x, w, options):
    x = apply(options.get("norm"), np.asarray(x, np.float64))
    gate, up = reference.preactivations(x.reshape(-1, D), w)
    h = reference.activation(up if gate is None else gate, None if gate is None else up,
                             activation="silu")  # fmt: skip
    h = apply(options.get("inner_norm"), h)
    y = (h @ w.down.T.astype("f8") + w.b_down).reshape(x.shape)
    y = apply(options.get("post_norm"), y) * options.get("residual_multiplier", 1)
    if options.get("residual") is not None:
        y = y + options["residual"]
    return apply(options.get("out_norm"), y)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_formula(case, dtype, rng):
    x, w, options = make(rng, case, dtype)
    y = fc.ffn(x, w, activation="silu", **options)
    assert y.dtype == dtype
    bound = {8: 1e-13, 4: 1e-5}.get(dtype.itemsize, 0.05 if dtype.name == "bfloat16" else 6e-3)
    expected = formula(x, w, options)
    np.testing.assert_allclose(
        y.astype("f8"), expected, rtol=0, atol=bound * (1 + np.abs(expected).max())
    )
    for save in ("preactivations", "input"):
        again, _ = fc.ffn_forward(x, w, activation="silu", save=save, **options)
        assert same_bits(again, y)
    out = np.zeros(x.shape, dtype)
    assert fc.ffn(x, w, activation="silu", out=out, **options) is out
    assert same_bits(out, y)


@pytest.mark.parametrize("case", [c for c in CASES if "inner_norm" not in c])
def test_every_isa_and_packed(case, rng):
    x, w, options = make(rng, case, np.dtype("f4"))
    packed = fc.pack(w)

    def compute():
        y, saved = fc.ffn_forward(x, w, activation="silu", **options)
        grads = fc.ffn_backward(y, saved)
        return (y, *grads.arrays().values())

    first = in_every_isa(compute)[0]
    assert same_bits(fc.ffn(x, packed, activation="silu", **options), first)
    y, saved = fc.ffn_forward(x, packed, activation="silu", **options)
    grads = fc.ffn_backward(y, saved)
    assert "x" in grads.arrays()
    assert grads.weights is None


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gradients_are_differences(case, gated, rng):
    x, w, options = make(rng, case, gated=gated)
    grad_y = normal(rng, *x.shape)
    _, saved = fc.ffn_forward(x, w, activation="silu", **options)
    found = fc.ffn_backward(grad_y, saved).arrays()
    arrays = {"x": x, **w.arrays()}
    if case.get("residual"):
        arrays["residual"] = options["residual"]
    for name in NAMES:
        if name in case:
            own = options[name].arrays()
            arrays |= {f"{name}.{label}": array for label, array in own.items()}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        differences = np.empty(array.shape)
        for index in np.ndindex(array.shape):
            kept, ends = array[index], []
            for step in (1e-5, -1e-5):
                array[index] = kept + step
                ends.append((fc.ffn(x, w, activation="silu", **options) * grad_y).sum())
            array[index] = kept
            differences[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(found[name], differences, rtol=1e-6, atol=1e-7, err_msg=name)


def test_needs_out_and_accumulate(rng):
    x, w, options = make(rng, CASES[-1])
    y, saved = fc.ffn_forward(x, w, activation="silu", **options)
    whole = fc.ffn_backward(y, saved)
    some = fc.ffn_backward(y, saved, needs=("norm", "inner_norm.gain", "down"))
    assert some.arrays().keys() == {"norm.gain", "norm.bias", "inner_norm.gain", "down"}
    for name, array in some.arrays().items():
        assert same_bits(array, whole.arrays()[name])
    out = {name: np.ones_like(array) for name, array in whole.arrays().items()}
    again = fc.ffn_backward(y, saved, out=out, accumulate=True)
    for name, array in again.arrays().items():
        assert array is out[name], name
        np.testing.assert_allclose(array, 1 + whole.arrays()[name], rtol=1e-14)
    other = fc.ffn_backward(y, saved, out=again)
    assert other.norm.gain is again.norm.gain
    np.testing.assert_array_equal(other.norm.gain, whole.norm.gain)


def test_no_tokens(rng):
    x, w, options = make(rng, CASES[3])
    options["residual"] = options["residual"][:0]
    y, saved = fc.ffn_forward(x[:0], w, activation="silu", **options)
    assert y.shape == (0, T // 2, D)
    np.testing.assert_array_equal(fc.ffn_backward(y, saved).norm.gain, np.zeros(D))


def test_saved_and_gradients_can_be_copied(rng):
    x, w, options = make(rng, CASES[3])
    y, saved = fc.ffn_forward(x, w, activation="silu", **options)
    grads = fc.ffn_backward(y, saved)
    for made in (copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert same_bits(fc.ffn_backward(y, made).x, grads.x)
    assert same_bits(pickle.loads(pickle.dumps(grads)).norm.gain, grads.norm.gain)
    assert "norm.gain=(5,)" in repr(grads)


def test_errors(rng):
    x, w, _ = make(rng, {})
    norm, long = fc.Norm("rms", gain=np.ones(D)), fc.Norm("rms", gain=np.ones(D + 1))
    for options, error, sentence in (
        ({"norm": "rms"}, TypeError, "norm is of type str; expected an fc.Norm"),
        ({"inner_norm": 1}, TypeError, "inner_norm is of type int; expected an fc.Norm"),
        ({"norm": long}, ValueError, r"norm.gain has shape \(6,\); expected \(5,\) to match x"),
        ({"inner_norm": norm}, ValueError, r"inner_norm.gain has shape \(5,\); expected \(7,\)"),
        ({"residual": x[:1]}, ValueError, "residual has shape"),
        ({"residual": True}, TypeError, "residual is of type bool"),
        ({"residual": x.astype("f4")}, TypeError, "residual has dtype float32"),
        ({"residual_multiplier": 2.0}, ValueError, "residual_multiplier is 2.0 and residual is"),
        ({"residual": x, "residual_multiplier": np.inf}, ValueError, "residual_multiplier is inf"),
        ({"norm": norm, "out": x}, ValueError, "out overlaps x"),
        ({"residual": x, "save": "all"}, ValueError, "save is 'all'"),
    ):
        call = fc.ffn_forward if "save" in options else fc.ffn
        with pytest.raises(error, match=sentence):
            call(x, w, activation="silu", **options)
    inner = fc.Norm("rms", gain=np.ones(F))
    with pytest.raises(TypeError, match="weights are packed and inner_norm is given"):
        fc.ffn(x, fc.pack(w), activation="silu", inner_norm=inner)
    _, saved = fc.ffn_forward(x, w, activation="silu", norm=norm)
    for options, error, sentence in (
        ({"needs": "x"}, TypeError, "needs is of type str"),
        ({"needs": ("nrom",)}, ValueError, "needs has 'nrom'"),
        ({"accumulate": True}, ValueError, "accumulate is True and out is None"),
        ({"out": {"x": x}}, ValueError, "out.x overlaps x"),
        ({"out": [x]}, TypeError, "out is of type list"),
    ):
        with pytest.raises(error, match=sentence):
            fc.ffn_backward(x.copy(), saved, **options)
    with pytest.raises(ValueError, match="grad_y has shape"):
        fc.ffn_backward(x[:1], saved)
