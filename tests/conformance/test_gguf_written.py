"""GGUF files that ffncore writes, read by the gguf package."""

import numpy as np
import pytest
from support_checkpoints import DEEPSEEK_V3, LLAMA, deepseek_v3, llama, write

import ffncore as fc
from ffncore.models.writing.gguf_file import TENSOR_TYPES
from ffncore.models.writing.quantize import quantize_checkpoint

gguf = pytest.importorskip("gguf")

# The package knows neither the type of q2_0 nor how to dequantise q1_0.
FORMATS = [name for name in TENSOR_TYPES if name in fc.formats() and name != "q2_0"]


def test_the_numbers_of_types_are_those_of_the_package():
    short = {"float32": "F32", "float16": "F16", "float64": "F64", "bfloat16": "BF16"}
    for name, number in TENSOR_TYPES.items():
        if name != "q2_0":
            assert gguf.GGMLQuantizationType[short.get(name, name.upper())] == number


def test_the_layout_is_that_of_the_package():
    from ffncore.models.writing import gguf_file, to_gguf

    assert gguf_file.ALIGNMENT == gguf.GGUF_DEFAULT_ALIGNMENT
    assert gguf_file.VERSION == gguf.GGUF_VERSION
    names = set(gguf.MODEL_ARCH_NAMES.values())
    assert set(to_gguf.ARCHITECTURES.values()) <= names
    assert {to_gguf.architecture(n, "") for n in ("llama", "qwen3", "qwen3_moe", "gpt2")} <= names


def read(path):
    reader = gguf.GGUFReader(path)
    entries = {name: field.contents() for name, field in reader.fields.items()}
    return entries, {tensor.name: tensor for tensor in reader.tensors}


def numbers(tensor):
    shape = tuple(int(n) for n in tensor.shape[::-1])
    if tensor.tensor_type == gguf.GGMLQuantizationType.Q1_0:
        q = fc.QuantizedTensor.from_bytes("q1_0", np.ascontiguousarray(tensor.data), shape)
        return q.dequantize()
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)


@pytest.mark.parametrize("format", FORMATS)
def test_dense_layers(tmp_path, format):
    write(tmp_path, llama(2, 256, 512), LLAMA)
    quantize_checkpoint(tmp_path, tmp_path / "out.gguf", format)
    entries, tensors = read(tmp_path / "out.gguf")
    assert entries["general.architecture"] == "llama"
    assert entries["llama.block_count"] == 2
    assert entries["llama.feed_forward_length"] == 512
    assert len(tensors) == 6
    for n in range(2):
        w = fc.load(tmp_path, n).weights
        for role in ("gate", "up", "down"):
            found = numbers(tensors[f"blk.{n}.ffn_{role}.weight"])
            assert np.array_equal(found, fc.quantize(getattr(w, role), format).dequantize())


def test_a_mixture(tmp_path):
    write(tmp_path, deepseek_v3(1, 32, 64), DEEPSEEK_V3)
    quantize_checkpoint(tmp_path, tmp_path / "out.gguf", {"gate": "q8_0", "up": "q4_0"})
    entries, tensors = read(tmp_path / "out.gguf")
    assert entries["deepseek2.expert_weights_norm"] is True
    assert entries["deepseek2.expert_weights_scale"] == 2.5
    layer = fc.load(tmp_path)
    for role, format in (("gate", "q8_0"), ("up", "q4_0"), ("down", None)):
        w = getattr(layer.experts, role)
        expected = w if format is None else fc.quantize(w, format).dequantize()
        assert np.array_equal(numbers(tensors[f"blk.0.ffn_{role}_exps.weight"]), expected)
    router = tensors["blk.0.ffn_gate_inp.weight"]
    assert np.array_equal(numbers(router), layer.router.weight)
