"""fc.load of GGUF files: names, options of the architectures, mixtures, shards."""

import numpy as np
import pytest
from support_gguf import LLAMA, layer, write

import ffncore as fc
from ffncore import models
from ffncore.models.families.row import TABLE
from ffncore.models.files.architectures import ARCHITECTURES
from ffncore.models.files.defaults import DEFAULTS

RNG = np.random.default_rng(2)
X = RNG.standard_normal((3, 256)).astype("f4")
TYPES = ("q4_k", "q5_k", "q6_k")


def numbers(shape, dtype="f4"):
    return (RNG.standard_normal(shape) / 16).astype(dtype)


def mixture(name, tensors, **more):
    told = {"general.architecture": name, f"{name}.expert_count": 4}
    return told | {f"{name}.{key}": value for key, value in more.items()}, tensors


def test_a_layer(tmp_path):
    tensors = layer(0, TYPES) | layer(1, ("float16", "q8_0", "float32"))
    tensors["blk.0.ffn_norm.weight"] = numbers(256)
    path = write(tmp_path / "m.gguf", LLAMA, tensors)
    found = fc.load(path)
    assert isinstance(found, fc.FFN)
    assert found.activation.name == "silu"
    for role in ("gate", "up", "down"):
        assert getattr(found.weights, role) == tensors[f"blk.0.ffn_{role}.weight"]
    plain = fc.load(path, dtype="float32")
    assert not plain.weights.quantized
    np.testing.assert_array_equal(found(X), plain(X))
    mixed = fc.load(path, 1).weights
    assert mixed.gate.dtype == np.float16
    assert mixed.up.format == "q8_0"
    assert [info.dtype for info in models.layers(path)] == [
        "q4_k, q5_k, q6_k",
        "float16, q8_0, float32",
    ]
    assert models.layers(path)[0].family is TABLE["llama"]
    assert [each.d_ff for each in fc.load_all(path)] == [512, 512]
    assert fc.load(tmp_path).weights.up == found.weights.up  # the only one in the folder
    with pytest.raises(ValueError, match=r"layer 7 is not in .*m\.gguf; expected one of 0-1"):
        fc.load(path, 7)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_of_a_known_model(name):
    told = ARCHITECTURES[name]
    for model_type in filter(None, (told.model_type, told.experts, told.sigmoid)):
        assert model_type in DEFAULTS
        assert any(model_type in row.model_types for row in TABLE.values())
        keys = {key for key in told.told if told.experts in ("", model_type)}
        known = {
            k
            for row in TABLE.values()
            if model_type in row.model_types
            for k in (*DEFAULTS[model_type], *getattr(row, "told", {}).values(), *row.keys)
        }
        if model_type != "deepseek_v2":  # which ignores one key of V3
            assert {k for k in keys if "|" not in k} <= known, model_type


@pytest.mark.parametrize(
    "name, activation, gated",
    [
        ("qwen2", "silu", True),
        ("gemma2", "gelu_tanh", True),
        ("gpt2", "gelu_tanh", False),
        ("gptneox", "gelu", False),
        ("falcon", "gelu", False),
        ("nemotron", "relu2", False),
        ("nomic-bert", "silu", True),
        ("bert", "gelu", False),
    ],
)
def test_activations(name, activation, gated, tmp_path):
    tensors = layer(0, ("q8_0",) * 3)
    if not gated:
        del tensors["blk.0.ffn_gate.weight"]
    if name in ("gpt2", "gptneox", "bert"):
        tensors |= {"blk.0.ffn_up.bias": numbers(512), "blk.0.ffn_down.bias": numbers(256)}
    found = fc.load(write(tmp_path / "m.gguf", {"general.architecture": name}, tensors))
    assert (found.activation.name, found.weights.gated) == (activation, gated)
    assert (found.weights.b_up is not None) == (name in ("gpt2", "gptneox", "bert"))


def test_a_fused_layer(tmp_path):
    both = fc.quantize(numbers((1024, 256)), "q4_k")
    tensors = {"blk.0.ffn_up.weight": both} | layer(0, TYPES)
    tensors = {n: t for n, t in tensors.items() if "gate" not in n} | {"blk.0.ffn_up.weight": both}
    w = fc.load(write(tmp_path / "m.gguf", {"general.architecture": "phi3"}, tensors)).weights
    whole = both.dequantize()
    np.testing.assert_array_equal(w.gate.dequantize(), whole[:512])
    np.testing.assert_array_equal(w.up.dequantize(), whole[512:])


@pytest.mark.parametrize("name, norm", [("llama", True), ("qwen3moe", True), ("olmoe", False)])
def test_experts(name, norm, tmp_path):
    tensors = layer(0, TYPES, end="_exps", e=4) | {"blk.0.ffn_gate_inp.weight": numbers((4, 256))}
    path = write(tmp_path / "m.gguf", *mixture(name, tensors, expert_used_count=2))
    found = fc.load(path)
    assert isinstance(found, fc.MoE)
    assert found.router.options["top_k"] == 2
    assert found.router.options.get("norm_topk_prob", True) is norm
    np.testing.assert_array_equal(found(X), fc.load(path, dtype="float32")(X))
    some = fc.load(path, experts=[1, 3])
    assert some.experts.up == fc.load(path, experts=[1, 3]).experts.up
    np.testing.assert_array_equal(some.experts.up[1].dequantize(), found.experts.up[3].dequantize())


def test_a_shared_expert_and_its_gate(tmp_path):
    tensors = layer(0, TYPES, end="_exps", e=4) | layer(0, TYPES, end="_shexp")
    tensors |= {"blk.0.ffn_gate_inp.weight": numbers((4, 256))}
    tensors |= {"blk.0.ffn_gate_inp_shexp.weight": numbers(256)}
    path = write(tmp_path / "m.gguf", *mixture("qwen2moe", tensors, expert_used_count=2))
    found = fc.load(path)
    assert found.shared.weights.quantized
    assert found.shared_gate.shape == (256,)
    np.testing.assert_array_equal(found(X), fc.load(path, dtype="float32")(X))


@pytest.mark.parametrize("groups", [1, 2])
def test_deepseek(groups, tmp_path):
    tensors = layer(0, TYPES) | layer(1, TYPES, end="_exps", e=4) | layer(1, TYPES, end="_shexp")
    tensors |= {
        "blk.1.ffn_gate_inp.weight": numbers((4, 256)),
        "blk.1.exp_probs_b.bias": numbers(4),
    }
    more = {"expert_used_count": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5}
    more |= {"expert_gating_func": 2, "expert_shared_count": 1}
    if groups > 1:
        more |= {"expert_group_count": 2, "expert_group_used_count": 1}
    path = write(tmp_path / "m.gguf", *mixture("deepseek2", tensors, **more))
    assert isinstance(fc.load(path, 0), fc.FFN)
    router = fc.load(path, 1).router
    told = router.options
    assert (told["score_fn"], told["routed_scaling_factor"]) == ("sigmoid", 2.5)
    assert told.get("n_group", 1) == groups
    assert told["e_score_correction_bias"].shape == (4,)


def test_gpt_oss(tmp_path):
    tensors = layer(0, ("mxfp4",) * 3, end="_exps", e=4)
    tensors |= {
        "blk.0.ffn_gate_inp.weight": numbers((4, 256)),
        "blk.0.ffn_gate_inp.bias": numbers(4),
    }
    for role, size in (("gate", 512), ("up", 512), ("down", 256)):
        tensors[f"blk.0.ffn_{role}_exps.bias"] = numbers((4, size))
    path = write(tmp_path / "m.gguf", *mixture("gpt-oss", tensors, expert_used_count=2))
    found = fc.load(path)
    assert (found.activation.limit, found.activation.alpha) == (7.0, 1.702)
    assert found.experts.b_gate.shape == (4, 512)
    assert found.experts.up.format == "mxfp4"
    np.testing.assert_array_equal(found(X), fc.load(path, dtype="float32")(X))


def test_bitnet(tmp_path):
    tensors = layer(0, ("tq2_0",) * 3) | {"blk.0.ffn_sub_norm.weight": np.ones(512, "f4")}
    found = fc.load(write(tmp_path / "m.gguf", {"general.architecture": "bitnet-b1.58"}, tensors))
    assert found.activation.name == "relu2"
    assert found.inner.norm == "rms"


def test_shards(tmp_path):
    tensors = layer(0, TYPES)
    for i, (name, tensor) in enumerate(tensors.items(), 1):
        told = LLAMA if i == 1 else {"split.no": i - 1}
        write(tmp_path / f"m-{i:05}-of-00003.gguf", told, {name: tensor})
    for path in (tmp_path, tmp_path / "m-00001-of-00003.gguf", tmp_path / "m-00003-of-00003.gguf"):
        assert fc.load(path).weights.down == tensors["blk.0.ffn_down.weight"]
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected m-00002-of-00003\.gguf, too$"):
        fc.load(tmp_path / "m-00001-of-00003.gguf")


@pytest.mark.parametrize("told", [None, 7, "clip"])
def test_an_unknown_architecture(told, tmp_path):
    metadata = {} if told is None else {"general.architecture": told}
    path = write(tmp_path / "m.gguf", metadata, layer(0, TYPES))
    with pytest.raises(ValueError, match=r"has general\.architecture .*; expected one of arcee, "):
        fc.load(path)


def test_what_a_family_does_not_have(tmp_path):
    tensors = layer(0, TYPES) | {"blk.0.ffn_up.scale": np.ones(1, "f4")}
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_up\.scale is a tensor that ffncore does"):
        fc.load(write(tmp_path / "m.gguf", LLAMA, tensors))
    tensors = layer(0, TYPES, end="_exps", e=4) | {"blk.0.ffn_gate_inp.weight": numbers((4, 256))}
    tensors["blk.0.exp_probs_b.bias"] = numbers(4)
    told = mixture("qwen3moe", tensors, expert_used_count=2)
    with pytest.raises(ValueError, match="is not supported: the model's family does not have it"):
        fc.load(write(tmp_path / "m.gguf", *told))
    tensors = {"blk.0.ffn_up.weight": numbers((8, 4))}
    with pytest.raises(ValueError, match=r"has no tensor blk\.0\.ffn_gate\.weight"):
        fc.load(write(tmp_path / "m.gguf", LLAMA, tensors))


def test_a_tensor_of_an_unknown_type(tmp_path):
    kinds = {"blk.0.ffn_up.weight": 23}
    path = write(tmp_path / "m.gguf", LLAMA, layer(0, TYPES) | layer(1, TYPES), kinds=kinds)
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_up\.weight has type 23 \(IQ4_XS\), which"):
        fc.load(path)
    assert fc.load(path, 1).d_ff == 512
    first, second = models.layers(path)
    assert "IQ4_XS" in first.problem
    assert second.problem is None
