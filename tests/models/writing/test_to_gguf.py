"""GGUF files: names, entries, and the bytes of each tensor."""

import numpy as np
import pytest
from support_checkpoints import DEEPSEEK_V3, LLAMA, deepseek_v3, llama, write
from support_gguf_parse import parse

import ffncore as fc
from ffncore.models.writing.gguf_file import TENSOR_TYPES
from ffncore.models.writing.quantize import quantize_checkpoint
from ffncore.models.writing.to_gguf import architecture

FORMATS = [name for name in TENSOR_TYPES if name in fc.formats()]


def written(folder, formats):
    out = folder / "out.gguf"
    out.unlink(missing_ok=True)
    quantize_checkpoint(folder, out, formats)
    data = out.read_bytes()
    entries, tensors = parse(data)
    kinds = {number: name for name, number in TENSOR_TYPES.items()}
    return entries, {n: (shape, kinds[k], data[at:]) for n, (shape, k, at) in tensors.items()}


def tensor(told):
    """The QuantizedTensor or array of a tensor in a file."""
    shape, kind, data = told
    if kind in fc.formats():
        bits = fc.formats()[kind].bits_per_weight
        return fc.QuantizedTensor.from_bytes(kind, data[: int(np.prod(shape) * bits / 8)], shape)
    return np.frombuffer(data, kind, count=int(np.prod(shape))).reshape(shape)


@pytest.mark.parametrize("format", FORMATS)
def test_dense_layers(tmp_path, format):
    write(tmp_path, {**llama(2, 256, 512), "model.norm.weight": np.ones(256, "f4")}, LLAMA)
    entries, tensors = written(tmp_path, format)
    for key, value in {
        "general.architecture": "llama",
        "ffncore.model_type": "llama",
        "ffncore.activation": "silu",
        "llama.block_count": 2,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
    }.items():
        assert entries[key] == value
    roles = ("gate", "up", "down")
    assert tensors.keys() == {f"blk.{n}.ffn_{role}.weight" for n in range(2) for role in roles}
    for n in range(2):
        w = fc.load(tmp_path, n).weights
        for role in roles:
            q = tensor(tensors[f"blk.{n}.ffn_{role}.weight"])
            assert q == fc.quantize(getattr(w, role), format)


def test_biases_and_fields_that_stay(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        f"h.0.mlp.{name}": rng.standard_normal(shape).astype("f2")
        for name, shape in (
            *(("c_fc.weight", (64, 96)), ("c_proj.weight", (96, 64))),
            *(("c_fc.bias", (96,)), ("c_proj.bias", (64,))),
        )
    }
    write(tmp_path, tensors, {"model_type": "gpt2", "activation_function": "gelu_new"})
    entries, found = written(tmp_path, {"up": "q8_0"})
    assert entries["general.architecture"] == "gpt2"
    assert entries["ffncore.activation"] == "gelu_tanh"
    assert {name: told[1] for name, told in found.items()} == {
        "blk.0.ffn_up.weight": "q8_0",
        "blk.0.ffn_up.bias": "float32",
        "blk.0.ffn_down.weight": "float16",
        "blk.0.ffn_down.bias": "float32",
    }
    w = fc.load(tmp_path).weights
    assert tensor(found["blk.0.ffn_up.weight"]) == fc.quantize(w.up, "q8_0")
    assert np.array_equal(tensor(found["blk.0.ffn_down.weight"]), w.down)
    assert np.array_equal(tensor(found["blk.0.ffn_up.bias"]), w.b_up)


def test_experts_router_and_shared_expert(tmp_path):
    write(tmp_path, deepseek_v3(2, 32, 64), DEEPSEEK_V3)
    entries, found = written(tmp_path, "q8_0")
    for key, value in {
        "general.architecture": "deepseek2",
        "deepseek2.expert_count": 8,
        "deepseek2.expert_used_count": 3,
        "deepseek2.expert_feed_forward_length": 64,
        "deepseek2.expert_shared_feed_forward_length": 64,
        "deepseek2.expert_shared_count": 1,
        "deepseek2.expert_weights_norm": True,
        "deepseek2.expert_weights_scale": 2.5,
        "deepseek2.expert_gating_func": 2,
    }.items():
        assert entries[key] == value
    layer = fc.load(tmp_path, 1)
    for role in ("gate", "up", "down"):
        stack = tensor(found[f"blk.1.ffn_{role}_exps.weight"])
        assert stack == fc.quantize(getattr(layer.experts, role), "q8_0")
        shared = tensor(found[f"blk.1.ffn_{role}_shexp.weight"])
        assert shared == fc.quantize(getattr(layer.shared.weights, role), "q8_0")
    assert np.array_equal(tensor(found["blk.1.ffn_gate_inp.weight"]), layer.router.weight)
    bias = tensor(found["blk.1.exp_probs_b.bias"])
    assert np.array_equal(bias, layer.router.options["e_score_correction_bias"])
    assert len(found) == 2 * 8


def test_gate_and_up_are_taken_apart(tmp_path):
    rng = np.random.default_rng(0)
    start = "model.layers.0.mlp."
    tensors = {
        f"{start}experts.gate_up_proj": rng.standard_normal((3, 64, 64)),
        f"{start}experts.down_proj": rng.standard_normal((3, 64, 32)),
        f"{start}gate.weight": rng.standard_normal((3, 64)),
    }
    config = {"model_type": "qwen3_moe", "hidden_act": "silu", "num_experts_per_tok": 2}
    tensors = {name: w.astype("f4") for name, w in tensors.items()}
    write(tmp_path, tensors, {**config, "norm_topk_prob": True})
    _, found = written(tmp_path, {"gate": "q4_0", "up": "q8_0"})
    w = fc.load(tmp_path).experts
    for role, format in (("gate", "q4_0"), ("up", "q8_0")):
        expected = fc.quantize(getattr(w, role), format)
        assert tensor(found[f"blk.0.ffn_{role}_exps.weight"]) == expected
    assert np.array_equal(tensor(found["blk.0.ffn_down_exps.weight"]), w.down)


def test_architectures_whose_up_has_the_rows_of_gate_first(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "model.layers.0.mlp.gate_up_proj.weight": rng.standard_normal((64, 64)).astype("f4"),
        "model.layers.0.mlp.down_proj.weight": rng.standard_normal((64, 32)).astype("f4"),
    }
    write(tmp_path, tensors, {"model_type": "phi3", "hidden_act": "silu"})
    entries, found = written(tmp_path, "q8_0")
    assert entries["general.architecture"] == "phi3"
    assert entries["phi3.feed_forward_length"] == 32
    assert found.keys() == {"blk.0.ffn_up.weight", "blk.0.ffn_down.weight"}
    up = tensors["model.layers.0.mlp.gate_up_proj.weight"]
    assert tensor(found["blk.0.ffn_up.weight"]) == fc.quantize(up, "q8_0")
    with pytest.raises(ValueError, match="in one tensor; expected one format for both"):
        written(tmp_path, {"up": "q8_0"})


def test_bfloat16(tmp_path):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    write(tmp_path, llama(1, 64, 96, dtype=bfloat16), LLAMA)
    _, found = written(tmp_path, {"up": "q8_0"})
    w = fc.load(tmp_path).weights
    assert tensor(found["blk.0.ffn_up.weight"]) == fc.quantize(w.up, "q8_0")
    shape, kind, data = found["blk.0.ffn_gate.weight"]
    assert (shape, kind) == ((96, 64), "bfloat16")
    assert data[: 96 * 64 * 2] == w.gate.tobytes()


def test_what_a_gguf_file_cannot_hold(tmp_path):
    write(tmp_path, llama(1, 256, 256), LLAMA)
    with pytest.raises(ValueError, match="format is 'int4'; expected one of GGUF: q4_0, "):
        written(tmp_path, "int4")
    write(tmp_path, llama(1, 96, 64), LLAMA)
    with pytest.raises(ValueError, match=r"gate_proj.weight has rows of 96 .* multiple of 256"):
        written(tmp_path, "q4_k")
    assert not list(tmp_path.glob("*.gguf"))


def test_architectures():
    assert architecture("qwen3_moe", "qwen") == "qwen3moe"
    assert architecture("mixtral", "mixtral") == "llama"
    assert architecture("gemma3_text", "gemma") == "gemma3"
    assert architecture("phi", "phi") == "phi2"
    assert architecture(None, "llama") == "llama"
