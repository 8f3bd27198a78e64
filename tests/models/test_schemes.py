"""Quantised matrices in safetensors: every scheme, made here by packing known codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from support_checkpoints import LLAMA, described, packed, write

import ffncore as fc
from ffncore import models
from ffncore.models.schemes import SCHEMES
from ffncore.quantisation.converters import AWQ_ORDER

D, F = 256, 512
SHAPES = {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}
RNG = np.random.default_rng(3)
X = RNG.standard_normal((3, D)).astype("f4")


def words(nibbles):
    """Codes of 4 bits [..., 8 n] as words int32 [..., n], the first in the lowest bits."""
    grouped = nibbles.reshape(*nibbles.shape[:-1], -1, 8).astype(np.uint32)
    return np.bitwise_or.reduce(grouped << np.arange(0, 32, 4, dtype=np.uint32), -1).view(np.int32)


def pairs(codes, high_first=False):
    first, second = codes[..., 0::2], codes[..., 1::2]
    return (second | first << 4) if high_first else (first | second << 4)


def int4(shape, group=128):
    """codes, zeros and scales of [out, in]."""
    out, k = shape
    codes = RNG.integers(0, 16, shape, dtype=np.uint8)
    zeros = RNG.integers(1, 15, (out, k // group), dtype=np.uint8)
    scales = (RNG.random((out, k // group)) / 64).astype("f2")
    shifted = codes.astype("f4") - np.repeat(zeros, group, 1).astype("f4")
    return codes, zeros, scales, shifted * np.repeat(scales, group, 1).astype("f4")


def awq(shape):
    codes, zeros, scales, w = int4(shape)
    pick = list(AWQ_ORDER)

    def of(a):
        return words(a.T.reshape(a.shape[1], -1, 8)[..., pick].reshape(a.shape[1], -1))

    return {".qweight": of(codes), ".qzeros": of(zeros), ".scales": scales.T.copy()}, w


def gptq(shape, minus=1, order=None):
    codes, zeros, scales, w = int4(shape)
    g_idx = np.arange(shape[1]) // 128
    if order is not None:
        codes, w, g_idx = codes[:, order], w[:, order], g_idx[order]
    parts = {".qweight": words(codes).T.copy(), ".qzeros": words((zeros - minus).T)}
    return parts | {".scales": scales.T.copy(), ".g_idx": g_idx.astype("i4")}, w


def gptq_v2(shape):
    return gptq(shape, minus=0)


def gptq_reordered(shape):
    return gptq(shape, order=RNG.permutation(shape[1]))


def pack_quantized(shape):
    codes, _, scales, _ = int4(shape)
    w = (codes.astype("f4") - 8) * np.repeat(scales, 128, 1).astype("f4")
    size = np.array(shape, np.int64)
    return {".weight_packed": words(codes), ".weight_scale": scales, ".weight_shape": size}, w


def pack_8_bits(shape):
    codes = RNG.integers(-128, 128, shape).astype(np.int8)
    scales = (RNG.random((shape[0], 1)) / 999).astype("f2")
    data = (codes.astype(np.int16) + 128).astype(np.uint8).view("<i4")
    parts = {".weight_packed": data, ".weight_scale": scales}
    return parts | {".weight_shape": np.array(shape, np.int64)}, codes * scales.astype("f4")


def int8(shape):
    codes = RNG.integers(-127, 128, shape).astype(np.int8)
    scales = (RNG.random((shape[0], 1)) / 999).astype("f4")
    return {".weight": codes, ".weight_scale": scales}, codes * scales


def fp8(shape, kind="group", scale=".weight_scale_inv"):
    q = fc.quantize((RNG.standard_normal(shape) / 16).astype("f4"), "fp8_e4m3", scale=kind)
    parts = q.parts()
    scales = parts["scales"]
    scales = scales.reshape(-1)[:1] if kind == "tensor" else scales
    return {".weight": ("F8_E4M3", parts["codes"]), scale: scales}, q.dequantize()


def fp8_channel(shape):
    parts, w = fp8(shape, "channel", ".weight_scale")
    return parts | {".input_scale": np.ones(1, "f4")}, w


def fp8_tensor(shape):
    return fp8(shape, "tensor", ".weight_scale")


def nvfp4(shape):
    codes = RNG.integers(0, 16, shape, dtype=np.uint8)
    scales = RNG.integers(40, 60, (shape[0], shape[1] // 16), dtype=np.uint8)
    whole = np.full(1, 300, "f4")
    q = fc.QuantizedTensor.from_parts(
        "nvfp4", shape, codes=codes, scales=scales, global_scale=whole
    )
    parts = {".weight_packed": pairs(codes), ".weight_scale": ("F8_E4M3", scales)}
    return parts | {".weight_global_scale": whole}, q.dequantize()


def mxfp4_packed(shape):
    parts, w = mxfp4(shape)
    data = parts["_blocks"].reshape(shape[0], -1)
    return {".weight_packed": data, ".weight_scale": parts["_scales"]}, w


def mxfp4(shape):
    codes = RNG.integers(0, 16, shape, dtype=np.uint8)
    scales = RNG.integers(118, 124, (*shape[:-1], shape[-1] // 32), dtype=np.uint8)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "f4")
    w = np.where(codes & 8, -1, 1) * values[codes & 7]
    w = w * np.repeat(np.exp2(scales.astype("f4") - 127), 32, -1)
    blocks = pairs(codes).reshape(*scales.shape, 16)
    return {"_blocks": blocks, "_scales": scales}, w.astype("f4")


def nf4(shape, nested=False):
    codes = RNG.integers(0, 16, shape, dtype=np.uint8)
    scales = RNG.random(codes.size // 64).astype("f4")
    told = {"quant_type": "nf4", "blocksize": 64, "shape": list(shape), "dtype": "bfloat16"}
    parts = {".weight": pairs(codes.reshape(-1), True).reshape(-1, 1), ".weight.absmax": scales}
    parts[".weight.quant_map"] = np.zeros(16, "f4")
    if nested:
        table = np.linspace(-1, 1, 256).astype("f4")
        inner = RNG.integers(0, 256, scales.size, dtype=np.uint8)
        outer = RNG.random(-(-scales.size // 256)).astype("f4")
        scales = table[inner] * np.repeat(outer, 256)[: scales.size] + np.float32(0.25)
        told |= {"nested_blocksize": 256, "nested_offset": 0.25}
        parts |= {".weight.absmax": inner, ".weight.nested_absmax": outer}
        parts[".weight.nested_quant_map"] = table
    data = np.frombuffer(json.dumps(told).encode(), np.uint8)
    parts[".weight.quant_state.bitsandbytes__nf4"] = data
    q = fc.QuantizedTensor.from_parts("nf4", shape, codes=codes, scales=scales)
    return parts, q.dequantize()


def nf4_nested(shape):
    return nf4(shape, nested=True)


# What quantization_config says, the format that is read, and the scheme.
CASES = {
    awq: ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "int4", "AWQ"),
    gptq: ({"quant_method": "gptq", "bits": 4}, "int4", "GPTQ"),
    gptq_v2: ({"quant_method": "gptq", "checkpoint_format": "gptq_v2"}, "int4", "GPTQ"),
    gptq_reordered: ({"quant_method": "gptq", "desc_act": True}, "int4", "GPTQ"),
    pack_quantized: ("compressed-tensors", "int4", "compressed-tensors pack-quantized"),
    pack_8_bits: ("compressed-tensors", "int8", "compressed-tensors pack-quantized"),
    nvfp4: ("compressed-tensors", "nvfp4", "compressed-tensors nvfp4-pack-quantized"),
    mxfp4_packed: ("compressed-tensors", "mxfp4", "compressed-tensors mxfp4-pack-quantized"),
    int8: ("compressed-tensors", "int8", "compressed-tensors int-quantized"),
    fp8_channel: ("compressed-tensors", "fp8_e4m3", "compressed-tensors float-quantized"),
    fp8_tensor: ("compressed-tensors", "fp8_e4m3", "compressed-tensors float-quantized"),
    fp8: ("fp8", "fp8_e4m3", "FP8"),
    nf4: ("bitsandbytes", "nf4", "bitsandbytes NF4"),
    nf4_nested: ("bitsandbytes", "nf4", "bitsandbytes NF4"),
}
cases = pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)


def config(make, base=LLAMA):
    told = CASES[make][0]
    return {
        **base,
        "quantization_config": told if isinstance(told, dict) else {"quant_method": told},
    }


def stored(make, start="model.layers.0.mlp."):
    """Tensors of a layer, and the numbers that they stand for."""
    tensors, numbers = {}, {}
    for name, shape in SHAPES.items():
        parts, numbers[name.removesuffix("_proj")] = make(shape)
        tensors |= {f"{start}{name}{end}": part for end, part in parts.items()}
    return tensors, numbers


def test_every_scheme_has_a_case():
    made_here = {scheme for _, _, scheme in CASES.values()} | {"MXFP4", "FP8 stacks"}
    assert made_here == {scheme.name for scheme in SCHEMES}


@cases
@pytest.mark.parametrize("told", [True, False])
def test_dense(make, told, tmp_path):
    tensors, numbers = stored(make)
    if not told and make is gptq_v2:
        pytest.skip("only config.json tells the version")
    write(tmp_path, tensors, config(make) if told else LLAMA)
    w = fc.load(tmp_path).weights
    plain = fc.load(tmp_path, dtype="float32").weights
    for role, expected in numbers.items():
        assert getattr(w, role).format == CASES[make][1]
        np.testing.assert_array_equal(getattr(w, role).dequantize(), expected)
        np.testing.assert_array_equal(getattr(plain, role), expected)
    (info,) = models.layers(tmp_path)
    assert (info.problem, info.packing, info.dtype) == (None, None, CASES[make][1])
    assert info.parameters == 3 * D * F
    assert 4 <= info.bits < 9
    assert next(iter(fc.load_all(tmp_path))).weights.up == w.up


@cases
def test_experts_one_by_one(make, tmp_path):
    tensors, numbers = {"model.layers.0.mlp.gate.weight": np.ones((2, D), "f2")}, []
    for e in range(2):
        more, told = stored(make, f"model.layers.0.mlp.experts.{e}.")
        tensors |= more
        numbers.append(told)
    write(tmp_path, tensors, config(make, {"model_type": "qwen3_moe", "num_experts_per_tok": 1}))
    found = fc.load(tmp_path)
    for role in ("gate", "up", "down"):
        expected = np.stack([told[role] for told in numbers])
        np.testing.assert_array_equal(getattr(found.experts, role).dequantize(), expected)
    np.testing.assert_array_equal(found(X), fc.load(tmp_path, dtype="float32")(X))
    one = fc.load(tmp_path, experts=[1]).experts
    np.testing.assert_array_equal(one.up.dequantize()[0], numbers[1]["up"])


def test_a_plain_matrix_among_quantised_ones(tmp_path):
    tensors, numbers = stored(gptq)
    start = "model.layers.0.mlp.down_proj"
    tensors = {n: t for n, t in tensors.items() if not n.startswith(start)}
    tensors[f"{start}.weight"] = numbers["down"].astype("f2")
    write(tmp_path, tensors, config(gptq))
    w = fc.load(tmp_path).weights
    assert w.down.dtype == np.float16
    assert w.up.format == "int4"
    assert models.layers(tmp_path)[0].dtype == "int4, float16"


def test_gpt_oss(tmp_path):
    """Stacks with interleaved rows, [out, in] though the plain ones are [in, out]."""
    start = "model.layers.0.mlp."
    up, w_up = mxfp4((2, 2 * F, D))
    down, w_down = mxfp4((2, D, F))
    tensors = {f"{start}experts.gate_up_proj{end}": a for end, a in up.items()}
    tensors |= {f"{start}experts.down_proj{end}": a for end, a in down.items()}
    tensors |= {
        f"{start}router.weight": np.ones((2, D), "f4"),
        f"{start}router.bias": np.ones(2, "f4"),
    }
    tensors[f"{start}experts.gate_up_proj_bias"] = RNG.random((2, 2 * F)).astype("f4")
    tensors[f"{start}experts.down_proj_bias"] = RNG.random((2, D)).astype("f4")
    told = {"model_type": "gpt_oss", "num_experts_per_tok": 1}
    write(tmp_path, tensors, told | {"quantization_config": {"quant_method": "mxfp4"}})
    found = fc.load(tmp_path)
    np.testing.assert_array_equal(found.experts.gate.dequantize(), w_up[:, 0::2])
    np.testing.assert_array_equal(found.experts.up.dequantize(), w_up[:, 1::2])
    np.testing.assert_array_equal(found.experts.down.dequantize(), w_down)
    np.testing.assert_array_equal(found(X), fc.load(tmp_path, dtype="float32")(X))
    assert models.layers(tmp_path)[0].bits == 4.25


@pytest.mark.parametrize("make", [gptq, fp8, nvfp4, pack_quantized, nf4], ids=lambda m: m.__name__)
def test_a_fused_matrix(make, tmp_path):
    start = "model.layers.0.mlp."
    up, w_up = make((2 * F, D))
    down, _ = make((D, F))
    tensors = {f"{start}gate_up_proj{end}": a for end, a in up.items()}
    tensors |= {f"{start}down_proj{end}": a for end, a in down.items()}
    write(tmp_path, tensors, config(make, {"model_type": "phi3", "hidden_act": "silu"}))
    w = fc.load(tmp_path).weights
    np.testing.assert_array_equal(w.gate.dequantize(), w_up[:F])
    np.testing.assert_array_equal(w.up.dequantize(), w_up[F:])


def ours(q, name):
    """The tensors of a matrix as the command quantize writes it, and its metadata."""
    key = f"{name}.{q.format}"
    told = {key: json.dumps({"format": q.format, "shape": list(q.shape)})}
    parts = q.parts()
    if "blocks" in parts:
        return {key: parts["blocks"]}, told
    return {f"{key}.{part}": array for part, array in parts.items()}, told


@pytest.mark.parametrize("format", [n for n, i in fc.formats().items() if i.can_quantize])
@pytest.mark.parametrize("experts", [False, True])
def test_formats_of_the_command_quantize(format, experts, tmp_path):
    start = "model.layers.0.mlp."
    tensors, metadata, made = {}, {}, {}
    names = SHAPES
    told = LLAMA
    if experts:
        names = {"experts.gate_up_proj": (2, 2 * F, D), "experts.down_proj": (2, D, F)}
        tensors[f"{start}gate.weight"] = np.ones((2, D), "f4")
        told = {"model_type": "qwen3_moe", "num_experts_per_tok": 1}
    for name, shape in names.items():
        q = fc.quantize((RNG.standard_normal(shape) / 16).astype("f4"), format)
        more, keys = ours(q, start + name + ("" if experts else ".weight"))
        tensors |= more
        metadata |= keys
        made[name.rpartition(".")[2]] = q
    write(tmp_path, tensors, told)
    header, data = described(tensors)
    (tmp_path / "model.safetensors").write_bytes(packed({"__metadata__": metadata, **header}, data))
    found = fc.load(tmp_path)
    w = found.experts if experts else found.weights
    assert w.down == made["down_proj"]
    if experts:
        whole = made["gate_up_proj"].dequantize()
        np.testing.assert_array_equal(w.gate.dequantize(), whole[:, :F])
        np.testing.assert_array_equal(w.up.dequantize(), whole[:, F:])
    else:
        assert w.up == made["up_proj"]
        assert w.gate == made["gate_proj"]


@pytest.mark.parametrize("told", [None, "x", "{}", '{"format": "q8_0", "shape": [1, 2]}'])
def test_bad_metadata(told, tmp_path):
    tensors = {}
    for name, shape in SHAPES.items():
        q = fc.quantize(np.ones(shape, "f4"), "q4_k")
        tensors |= ours(q, f"model.layers.0.mlp.{name}.weight")[0]
    write(tmp_path, tensors, LLAMA)
    header, data = described(tensors)
    key = "model.layers.0.mlp.gate_proj.weight.q4_k"
    header |= {} if told is None else {"__metadata__": {key: told}}
    (tmp_path / "model.safetensors").write_bytes(packed(header, data))
    with pytest.raises(
        ValueError, match=r"gate_proj\.weight has the metadata .*; expected JSON with"
    ):
        fc.load(tmp_path)


@pytest.mark.parametrize(
    "make, told, sentence",
    [
        (gptq, {"quant_method": "gptq", "bits": 8}, "is quantised by GPTQ to 8 bits; expected 4"),
        (awq, {"quant_method": "awq", "version": "gemv"}, "is in AWQ's layout 'gemv'; expected"),
    ],
)
def test_variants_that_are_not_read(make, told, sentence, tmp_path):
    write(tmp_path, stored(make)[0], {**LLAMA, "quantization_config": told})
    with pytest.raises(ValueError, match=sentence):
        fc.load(tmp_path)


@cases
def test_damaged_parts(make, tmp_path):
    """Each part in turn with one row less: a ValueError that names the matrix."""
    tensors, _ = stored(make)
    for name in [n for n in tensors if n.startswith("model.layers.0.mlp.up_proj")]:
        kind, array = tensors[name] if isinstance(tensors[name], tuple) else ("", tensors[name])
        if name.endswith(("input_scale", ".quant_map")):
            continue  # not used
        damaged = (kind, array[:-1]) if kind else array[:-1]
        write(tmp_path, tensors | {name: damaged}, config(make))
        with pytest.raises(ValueError, match="up_proj"):
            fc.load(tmp_path)


def test_the_page_lists_the_schemes():
    page = Path(__file__).parents[2] / "docs" / "quantised.md"
    if not page.exists():
        pytest.skip("no docs beside the tests")
    for scheme in SCHEMES:
        assert f"| {scheme.name} | `" in page.read_text("utf-8")
