"""Quantised weights of unknown kinds are recognised by names, dtypes and config.json, and refused.

test_schemes.py has the kinds that are read. Here their tensors have shapes that cannot be.
"""

import numpy as np
import pytest
from support_checkpoints import LLAMA, llama, write

import ffncore as fc
from ffncore import models
from ffncore.__main__ import main

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
U8 = np.zeros((12, 1), np.uint8)
I8 = np.zeros((6, 4), np.int8)
I32 = np.zeros((2, 4), np.int32)
F16 = np.ones((1, 4), np.float16)
F32 = np.ones(3, np.float32)
FP8 = ("F8_E4M3", np.zeros((6, 4), np.uint8))

# The tensors that replace a weight [6, 4], by the ends of their names.
PACKINGS = {
    "bitsandbytes-int8": {"weight": I8, "SCB": F32, "weight_format": np.zeros((), np.uint8)},
    # Parts are missing: without scales nobody can read them.
    "GPTQ": {"qweight": I32, "g_idx": np.zeros(4, np.int32)},
    "AWQ": {"qweight": I32, "qzeros": I32},
    "compressed-tensors": {"weight_packed": I32, "weight_shape": np.zeros(2, np.int64)},
    "an unknown packing of F8_E4M3": {"weight": FP8},
    "HQQ": {"W_q": U8, "scale": F16, "zero": F16},
    "quanto": {"weight._data": I8, "weight._scale": F16},
    "torchao": {"_weight_qdata": I8, "_weight_scale": F16},
    "an unknown packing of int8": {"weight": I8},
    "an unknown packing of F8_E8M0": {"weight": ("F8_E8M0", np.zeros((6, 4), np.uint8))},
}


def stored(packing):
    tensors = {"model.norm.weight": np.ones(4, np.float16)}
    for layer in range(2):
        for name in PROJECTIONS:
            for suffix, tensor in PACKINGS[packing].items():
                tensors[f"model.layers.{layer}.mlp.{name}.{suffix}"] = tensor
    return tensors


@pytest.mark.parametrize("packing", PACKINGS)
def test_by_names_and_dtypes(packing, tmp_path, capsys):
    tensors = stored(packing)
    write(tmp_path, tensors, LLAMA)
    who = packing.removesuffix("-int8")
    with pytest.raises(
        ValueError,
        match=rf"model\.safetensors: model\.layers\.1\.mlp\..* is quantised by {who}, which",
    ):
        fc.load(tmp_path, 1)
    with pytest.raises(ValueError, match="is quantised by"):
        fc.load(tmp_path, 1, dtype="float32")
    infos = models.layers(tmp_path)
    assert [info.packing for info in infos] == [who, who]
    assert [(info.parameters, info.d_model, info.dtype) for info in infos] == [(0, 0, "")] * 2
    size = sum(
        (t[1] if isinstance(t, tuple) else t).nbytes for n, t in tensors.items() if ".mlp." in n
    )
    assert sum(info.nbytes for info in infos) == size
    assert main(["inspect", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"0-1  packed by {who}, not read, {size:,} bytes  llama model."]


@pytest.mark.parametrize(
    "packing, method, who",
    [
        ("GPTQ", "awq", "AWQ"),
        ("AWQ", "gptq", "GPTQ"),
        ("an unknown packing of int8", "eetq", "EETQ"),
        ("an unknown packing of F8_E4M3", "fbgemm_fp8", "FP8"),
        ("an unknown packing of int8", "of_tomorrow", "of_tomorrow"),
    ],
)
def test_config_json_knows_better(packing, method, who, tmp_path):
    config = {**LLAMA, "quantization_config": {"quant_method": method}}
    write(tmp_path, stored(packing), config)
    assert {info.packing for info in models.layers(tmp_path)} == {who}


@pytest.mark.parametrize("told", [None, 7, [], "gptq", {}, {"quant_method": 7}])
def test_a_quantization_config_that_tells_nothing(told, tmp_path):
    write(tmp_path, stored("GPTQ"), {**LLAMA, "quantization_config": told})
    assert {info.packing for info in models.layers(tmp_path)} == {"GPTQ"}


def test_plain_layers_between_packed_ones(tmp_path, capsys):
    tensors = {n: t for n, t in stored("GPTQ").items() if "layers.1." not in n}
    tensors |= {n: t for n, t in llama().items() if "layers.1." in n}
    write(tmp_path, tensors, {**LLAMA, "quantization_config": {"quant_method": "gptq"}})
    assert np.array_equal(
        fc.load(tmp_path, 1).weights.up, tensors["model.layers.1.mlp.up_proj.weight"]
    )
    assert main(["inspect", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:6] == ["1", "dense,", "gated", "4", "6", "silu"]
    assert lines[5] == "1 layer, 72 parameters in them"
    assert lines[7].startswith("0  packed by GPTQ, not read, ")


def test_packed_experts(tmp_path):
    tensors = {"model.layers.0.mlp.gate.weight": np.ones((2, 4), np.float16)}
    for e in range(2):
        for name in PROJECTIONS:
            start = f"model.layers.0.mlp.experts.{e}.{name}."
            tensors |= {start + suffix: t for suffix, t in PACKINGS["GPTQ"].items()}
    write(tmp_path, tensors, {"model_type": "qwen3_moe"})
    (info,) = models.layers(tmp_path)
    assert info.packing == "GPTQ"
    with pytest.raises(
        ValueError, match=r"experts\..*g_idx is quantised by GPTQ, which is not supported"
    ):
        fc.load(tmp_path)


def test_what_is_no_packing(tmp_path):
    """int64 tensors are not codes, and a scale with plain weights is an unknown tensor."""
    tensors = llama()
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((6, 4), np.int64)
    write(tmp_path, tensors, LLAMA)
    with pytest.raises(ValueError, match=r"up_proj\.weight has dtype int64; expected float32"):
        fc.load(tmp_path)
    tensors = llama()
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = F32
    write(tmp_path, tensors, LLAMA)
    with pytest.raises(
        ValueError, match=r"up_proj\.weight is stored in .* of float32 .*; expected dtypes and"
    ):
        fc.load(tmp_path)
