"""fc.quantize by rounding to nearest: errors of a table, options, bad arguments."""

import re

import numpy as np
import pytest
from support import DTYPES, normal
from support_quantised import relative

import ffncore as fc

# Relative errors of normal weights: what other quantisers reach. Ours may be smaller.
ERRORS = {
    ("q8_0", "group"): 0.0054,
    ("q4_0", "group"): 0.0859,
    ("q4_1", "group"): 0.0783,
    ("q4_k", "group"): 0.0718,
    ("mxfp4", "group"): 0.1164,
    ("int8", "group"): 0.0074,
    ("int4", "group"): 0.1005,
    ("int4", "channel"): 0.1344,
    ("fp8_e4m3", "group"): 0.0265,
    ("q1_0", "group"): 0.601,
    ("q1_0", "tensor"): 0.603,
    ("q2_0", "group"): 0.433,
    ("tq1_0", "group"): 0.436,
    ("tq2_0", "group"): 0.436,
    ("tq2_0", "tensor"): 0.514,
    # Halving the step of q4_k and of q5_k.
    ("q5_k", "group"): 0.0718 / 2,
    ("q6_k", "group"): 0.0718 / 4,
}


@pytest.mark.parametrize("name, scale", ERRORS)
def test_error_of_normal_weights(name, scale):
    rng = np.random.default_rng(7)
    w = (rng.standard_normal((1024, 512)) / np.sqrt(512)).astype("f4")
    found = relative(fc.quantize(w, name, scale=scale).dequantize(), w)
    assert 0.9 * ERRORS[name, scale] < found * 1.05 or found < ERRORS[name, scale]
    assert found <= 1.05 * ERRORS[name, scale]


def test_every_format_is_in_the_table():
    made = {name for name, info in fc.formats().items() if info.can_quantize}
    assert made == {name for name, _ in ERRORS}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_strides(rng, dtype):
    w = normal(rng, 256, 6, dtype=dtype)
    before = w.copy()
    for view in (w.T, w[::-1].T, np.asfortranarray(w.T)):
        q = fc.quantize(view, "q4_k")
        assert q == fc.quantize(np.ascontiguousarray(view.astype("f4")), "q4_k")
    np.testing.assert_array_equal(w, before)


def test_large_matrices_are_cut_without_a_seam(rng):
    w = normal(rng, 700, 1024, dtype=np.float32)
    for name in ("q4_0", "q6_k", "tq1_0", "int8", "fp8_e4m3"):
        q = fc.quantize(w, name)
        part = fc.quantize(w[640:], name)
        np.testing.assert_array_equal(q.dequantize()[640:], part.dequantize())


ONES = np.ones((4, 256), "f4")
NAN = np.where(np.eye(4, 256, 1, dtype=bool), np.nan, 1).astype("f4")

BAD = [
    ((ONES, "q4_0"), {"method": "best"}, ValueError, "method 'best' is not known; known are rtn"),
    ((ONES, "q4_0"), {"method": None}, ValueError, "method None is not known"),
    ((ONES, "q4_0"), {"scale": "tensor"}, ValueError, "scale is 'tensor'; expected 'group' for q4"),
    ((ONES, "int8"), {"scale": "row"}, ValueError, "scale is 'row'; expected 'group' or 'tensor'"),
    ((ONES, "int4"), {"group": 0}, ValueError, "group is 0; expected at least 1"),
    ((ONES, "int4"), {"group": 64.0}, TypeError, "group is of type float; expected a number of"),
    ((ONES, {"up": "q4_0"}), {}, TypeError, "format is of type dict; expected a name"),
    ((ONES[0], "q4_0"), {}, ValueError, "w has shape (256,); expected [out, in] or [n_experts"),
    ((ONES[:0], "q4_0"), {}, ValueError, "w has shape (0, 256); expected [out, in] or"),
    ((ONES.astype(int), "q4_0"), {}, TypeError, "w has dtype int64; expected float32, float64"),
    (([1.0], "q4_0"), {}, TypeError, "w is of type list; expected a numpy array"),
    ((NAN, "q4_0"), {}, ValueError, "w has nan at (0, 1); expected finite numbers of float32"),
    ((NAN[None], "int8"), {}, ValueError, "w[0] has nan at (0, 1); expected finite numbers"),
    (
        (ONES * np.float64(1e300), "int8"),
        {},
        ValueError,
        "w has inf at (0, 0)",
    ),
]


@pytest.mark.parametrize("arguments, options, error, sentence", BAD)
def test_bad_arguments(arguments, options, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        fc.quantize(*arguments, **options)
