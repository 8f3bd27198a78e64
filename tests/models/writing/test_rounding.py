"""The formats of fields, and the errors that the summary tells."""

import numpy as np
import pytest

import ffncore as fc
from ffncore.models.writing.rounding import Sums, check_formats

w = np.random.default_rng(1).standard_normal((3, 5, 256)).astype("f4")


def test_formats_by_field():
    assert check_formats("q4_0", "rtn").formats == dict.fromkeys(("gate", "up", "down"), "q4_0")
    some = check_formats({"up": "q4_k", "gate": "q4_k"}, "rtn")
    assert some.format_of(("down",), "name") is None
    assert some.format_of(("gate", "up"), "name") == "q4_k"
    with pytest.raises(ValueError, match="name has gate as it is and up q4_k in one tensor"):
        check_formats({"up": "q4_k"}, "rtn").format_of(("gate", "up"), "name")


@pytest.mark.parametrize(
    "formats, method, sentence",
    [
        ({"router": "q4_0"}, "rtn", "format has a field 'router'; expected gate, up, down"),
        ("q5", "rtn", "format 'q5' is not known"),
        ({"up": "nf4"}, "rtn", "format 'nf4' is read only"),
        ("int4", "gptq", "method is 'gptq'; expected rtn or hqq"),
    ],
)
def test_wrong_names(formats, method, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_formats(formats, method)


def test_sizes_and_methods_are_checked_before():
    with pytest.raises(ValueError, match="w has rows of 100 weights; expected a multiple of 256"):
        check_formats("q4_k", "rtn").check("w", 100, "q4_k")
    with pytest.raises(ValueError, match="'hqq' chooses zeros, which q8_0 has not"):
        check_formats("q8_0", "hqq").check("w", 64, "q8_0")
    check_formats("int4", "hqq").check("w", 128, "int4")


@pytest.mark.parametrize("method, format", [("rtn", "q4_k"), ("rtn", "fp8_e4m3"), ("hqq", "int4")])
def test_sums(method, format):
    rounding = check_formats(format, method)
    made = [rounding.tensor("w", part, format, ("up",)) for part in (w, w[0], w[:1])]
    assert made[0] == fc.quantize(w, format, method=method)
    parts = np.concatenate([w, w[:1], w[:1]]).astype(float)
    hat = np.concatenate([made[0].dequantize(), made[1].dequantize()[None], made[2].dequantize()])
    sums = rounding.sums["up"]
    assert sums.weights == parts.size
    assert sums.nbytes == sum(q.nbytes for q in made)
    assert sums.error == pytest.approx(np.linalg.norm(hat - parts) / np.linalg.norm(parts), 1e-6)
    assert sums.bits_per_weight == pytest.approx(8 * sums.nbytes / parts.size)


def test_16_bits_are_widened():
    rounding = check_formats("q8_0", "rtn")
    q = rounding.tensor("w", w.astype("f2"), "q8_0", ("down",))
    assert q == fc.quantize(w.astype("f2").astype("f4"), "q8_0")
    wrong = w.copy()
    wrong[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"name\[1\] has nan at \(2, 3\)"):
        rounding.tensor("name", wrong, "q8_0", ("up",))


def test_nothing_but_zeros_has_no_error():
    assert Sums().error == Sums().bits_per_weight == 0
