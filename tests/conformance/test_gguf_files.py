"""GGUF files that the gguf package wrote, and what its numpy code reads in them."""

import numpy as np
import pytest

import ffncore as fc

gguf = pytest.importorskip("gguf")
SHAPES = {"gate": (512, 256), "up": (512, 256), "down": (256, 512)}


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "TQ1_0", "TQ2_0", "MXFP4", "F32", "BF16"])
def test_a_layer(name, tmp_path):
    if name == "BF16":
        pytest.importorskip("ml_dtypes")
    kind = gguf.GGMLQuantizationType[name]
    rng = np.random.default_rng(8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    expected = {}
    for role, shape in SHAPES.items():
        data = gguf.quants.quantize((rng.standard_normal(shape) / 16).astype("f4"), kind)
        writer.add_tensor(f"blk.0.ffn_{role}.weight", data, raw_dtype=kind)
        expected[role] = gguf.quants.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    w = fc.load(tmp_path / "m.gguf", dtype="float32").weights
    for role, numbers in expected.items():
        np.testing.assert_array_equal(getattr(w, role), numbers)
