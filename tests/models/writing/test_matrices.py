"""Which tensors of a checkpoint are matrices of layers, in every way in which they are stored."""

import numpy as np
import pytest
from support_checkpoints import DEEPSEEK_V3, LLAMA, deepseek_v3, llama, write

import ffncore as fc
from ffncore.models.files.checkpoint import Checkpoint
from ffncore.models.writing.matrices import layers_of, matrices_of

rng = np.random.default_rng(2)


def normal(*shape):
    return rng.standard_normal(shape).astype("f4")


def found(folder):
    with Checkpoint(folder) as checkpoint:
        matrices = matrices_of(layers_of(checkpoint))
        return {name: (m, m.read(checkpoint)) for name, m in matrices.items()}


def test_dense_layers(tmp_path):
    others = {"model.norm.weight": normal(4), "model.embed_tokens.weight": normal(9, 4)}
    others |= {"model.layers.0.self_attn.q_proj.weight": normal(4, 4)}
    write(tmp_path, {**llama(2), **others}, LLAMA)
    matrices = found(tmp_path)
    assert matrices.keys() == llama(2).keys()
    w = fc.load(tmp_path, 1).weights
    for field in ("gate", "up", "down"):
        matrix, array = matrices[f"model.layers.1.mlp.{field}_proj.weight"]
        assert matrix.fields == (field,)
        assert matrix.shape == array.shape == getattr(w, field).shape
        assert np.array_equal(array, getattr(w, field))


def test_matrices_that_are_stored_the_other_way_round(tmp_path):
    tensors = {"h.0.mlp.c_fc.weight": normal(4, 6), "h.0.mlp.c_proj.weight": normal(6, 4)}
    tensors |= {"h.0.mlp.c_fc.bias": normal(6), "h.0.mlp.c_proj.bias": normal(4)}
    write(tmp_path, tensors, {"model_type": "gpt2", "activation_function": "gelu_new"})
    matrices = found(tmp_path)
    assert [*matrices] == ["h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"]
    w = fc.load(tmp_path).weights
    for (matrix, array), own in zip(matrices.values(), (w.up, w.down), strict=True):
        assert matrix.shape == array.shape
        assert np.array_equal(array, own)


def test_gate_and_up_in_one_tensor(tmp_path):
    tensors = {"model.layers.0.mlp.gate_up_proj.weight": normal(12, 4)}
    tensors |= {"model.layers.0.mlp.down_proj.weight": normal(4, 6)}
    write(tmp_path, tensors, {"model_type": "phi3", "hidden_act": "silu"})
    fields = [matrix.fields for matrix, _ in found(tmp_path).values()]
    assert fields == [("gate", "up"), ("down",)]


def test_experts_and_a_shared_expert_but_no_router(tmp_path):
    tensors = deepseek_v3(1)
    write(tmp_path, tensors, DEEPSEEK_V3)
    expected = {name for name in tensors if name.endswith("_proj.weight")}
    assert found(tmp_path).keys() == expected
    assert len(expected) == 3 * 9


def test_stacked_experts_whose_rows_follow_each_other(tmp_path):
    start = "transformer.blocks.0.ffn."
    names = {"v1": "up", "w1": "gate", "w2": "down"}
    tensors = {f"{start}experts.mlp.{name}": normal(3 * 6, 4) for name in names}
    tensors |= {f"{start}router.layer.weight": normal(3, 4)}
    config = {"model_type": "dbrx", "ffn_config": {"ffn_act_fn": {"name": "silu"}, "moe_top_k": 2}}
    write(tmp_path, tensors, config)
    matrices, w = found(tmp_path), fc.load(tmp_path).experts
    for name, field in names.items():
        matrix, array = matrices[f"{start}experts.mlp.{name}"]
        assert matrix.shape == array.shape == getattr(w, field).shape
        assert np.array_equal(array, getattr(w, field))


def test_layers_that_are_refused(tmp_path):
    tensors = llama(2)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write(tmp_path, tensors, LLAMA)
    with pytest.raises(ValueError, match=r"no tensor model.layers.1.mlp.up_proj.weight"):
        found(tmp_path)
    write(tmp_path, {"a": normal(3)}, LLAMA)
    with pytest.raises(ValueError, match="has no feed-forward layer that ffncore knows"):
        found(tmp_path)
