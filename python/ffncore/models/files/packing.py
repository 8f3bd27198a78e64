"""Recognises quantised layers by the names and dtypes of their tensors and by config.json.

Quantised ("packed") layers are not supported. They are recognised, so that the error can name the
quantisation, codes are not counted as parameters, and scales are not taken for weights.
Tests: tests/models/test_packing.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

FLOATS = ("float64", "float32", "float16", "bfloat16")

# From quant_method in config.json to the usual spelling.
_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "aqlm": "AQLM",
    "vptq": "VPTQ",
    "modelopt": "ModelOpt",
}

# Patterns of names that only quantised layers have; the first one that matches counts. Names of
# scales are left out where several quantisations share them.
_NAMES = tuple(
    (packing, re.compile(pattern))
    for packing, pattern in (
        ("bitsandbytes", r"\.(SCB|absmax|quant_map|nested_absmax|nested_quant_map|weight_format)$"),
        ("bitsandbytes", r"\.quant_state\."),
        ("GPTQ", r"\.g_idx$"),
        ("AWQ", r"\.(qweight|qzeros)$"),
        ("compressed-tensors", r"\.weight_(packed|global_scale|shape|zero_point)$"),
        ("MXFP4", r"_blocks$"),
        ("FP8", r"\.?weight_scale_inv$|_proj_scale_inv$"),
        ("HQQ", r"\.W_q$"),
        ("quanto", r"\.weight\._(data|scale|shift|zero_point)$"),
        ("torchao", r"_?weight(_qdata|:_)|\._weight_"),
    )
)

_ANY = re.compile("|".join(pattern.pattern for _, pattern in _NAMES))  # most names match none

_SCALE = re.compile(r"(weight|_proj)_scale(s|_2)?$")

# The dtypes in which codes are stored. Tensors of other dtypes, such as int64, are not weights.
_CODES = frozenset(
    ("uint8", "int8", "int32", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
    + ("F8_E8M0", "F6_E2M3", "F6_E3M2", "F4")
)


def packing(dtypes: Mapping[str, str], method: str | None) -> tuple[str, str] | None:
    """The name of a layer's quantisation and of a tensor that shows it; None for plain weights.

    dtypes  the dtypes of the layer's tensors by name
    method  quant_method in config.json, or None
    """
    suspects = [name for name in dtypes if _ANY.search(name)]
    shows = None
    for found, pattern in _NAMES:
        names = [name for name in suspects if pattern.search(name)]
        if names:
            shows = found, min(names)
            break
    codes = min((name for name, dtype in dtypes.items() if dtype in _CODES), default=None)
    if shows is None and codes is not None:
        scaled = any(_SCALE.search(name) for name in dtypes)
        shows = _by_dtype(dtypes[codes], scaled), codes
    if shows is not None and method is not None:
        return _METHODS.get(method, method), shows[1]
    return shows


def _by_dtype(dtype: str, scaled: bool) -> str:
    if scaled and dtype.startswith("F8"):
        return "FP8"
    if scaled and dtype == "int8":
        return "compressed-tensors"
    return f"an unknown packing of {dtype}"
