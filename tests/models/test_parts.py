"""Layers of several blocks, parts of a mixture, and mixtures that compute more than the usual."""

import json
import os

import numpy as np
import pytest
from support_checkpoints import write

import ffncore as fc
from ffncore import models, reference

D, F, E, K, T = 6, 5, 8, 3, 9
NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def softmax(v):
    e = np.exp(v - v.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def top(values, k=K):
    return np.argsort(-values, axis=-1, kind="stable")[:, :k]


def at(values, ids):
    return np.take_along_axis(values, ids, axis=-1)


def arrays(rng, f=F, experts=None, d=D):
    lead = () if experts is None else (experts,)
    shapes = {"gate": (*lead, f, d), "up": (*lead, f, d), "down": (*lead, d, f)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def named(start, block):
    return {f"{start}{NAMES[n]}.weight": array for n, array in block.items()}


def one_by_one(start, block):
    found = {}
    for e in range(len(block["up"])):
        found |= named(start.format(e), {n: array[e] for n, array in block.items()})
    return found


def close(layer, x, expected):
    np.testing.assert_allclose(layer(x), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


# ---- several blocks in a layer


def longcat(rng, zero=2):
    start = "model.layers.0."
    w, r, b = (
        arrays(rng, experts=E),
        rng.standard_normal((E + zero, D)),
        0.1 * rng.standard_normal(E + zero),
    )
    dense = [arrays(rng, 7 + i) for i in range(2)]
    tensors = one_by_one(start + "mlp.experts.{}.", w)
    tensors |= {start + "mlp.router.classifier.weight": r}
    tensors |= {start + "mlp.router.e_score_correction_bias": b}
    for i, block in enumerate(dense):
        tensors |= named(f"{start}mlps.{i}.", block)
    config = {"model_type": "longcat_flash", "moe_topk": K, "zero_expert_num": zero}
    return tensors, config, w, r, b, dense


def test_longcat_has_null_experts_and_two_dense_blocks(rng, tmp_path):
    tensors, config, w, r, b, dense = longcat(rng)
    write(tmp_path, tensors, config)
    x = rng.standard_normal((T, D))
    p = softmax(x @ r.T)
    ids = top(p + b)
    weights = 6.0 * at(p, ids)
    null = ids >= E
    assert null.any()
    expected = reference.moe(x, np.where(null, -1, ids), weights, w, activation="silu")
    expected = expected + np.where(null, weights, 0).sum(-1, keepdims=True) * x
    layer = fc.load(tmp_path)
    assert (layer.n_experts, layer.n_null_experts) == (E, 2)
    close(layer, x, expected)
    for i, block in enumerate(dense):
        part = fc.load(tmp_path, part=f"mlps.{i}")
        assert part.name == f"model.layers.0.mlps.{i}"
        close(part, x, reference.ffn(x, block, activation="silu"))
    with pytest.raises(ValueError, match=r"part is 'mlp'; expected one of 'mlps\.0', 'mlps\.1'"):
        fc.load(tmp_path, part="mlp")
    assert models.layers(tmp_path)[0].parts == ("mlps.0", "mlps.1")


def test_stacks_with_rows_of_null_experts(rng, tmp_path):
    tensors, config, w, _, _, _ = longcat(rng)
    x = rng.standard_normal((T, D))
    expected = fc.load(write(tmp_path, tensors, config))(x)
    tensors = {n: t for n, t in tensors.items() if ".experts." not in n}
    fused = np.concatenate([w["gate"], w["up"]], axis=1)
    unused = np.full((2, *fused.shape[1:]), np.nan)
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = np.concatenate([fused, unused])
    tensors["model.layers.0.mlp.experts.down_proj"] = w["down"]
    close(fc.load(write(tmp_path, tensors, config)), x, expected)


def gemma4(rng):
    start = "model.language_model.layers.1."
    w, dense = arrays(rng, experts=E), arrays(rng, 7)
    r, scale, per_expert = (rng.standard_normal(s) for s in ((E, D), (D,), (E,)))
    tensors = named(start + "mlp.", dense)
    tensors |= {
        start + "router.proj.weight": r,
        start + "router.scale": scale,
        start + "router.per_expert_scale": per_expert,
        start + "experts.gate_up_proj": np.concatenate([w["gate"], w["up"]], axis=1),
        start + "experts.down_proj": w["down"],
    }
    config = {"model_type": "gemma4", "text_config": {"top_k_experts": K, "rms_norm_eps": 1e-3}}
    return tensors, config, w, dense, r, scale, per_expert


def test_gemma4_has_a_dense_branch_beside_the_experts(rng, tmp_path):
    tensors, config, w, dense, r, scale, per_expert = gemma4(rng)
    write(tmp_path, tensors, config)
    x, residual = rng.standard_normal((2, T, D))
    u = residual / np.sqrt((residual**2).mean(-1, keepdims=True) + 1e-3)
    z = (u * scale * D**-0.5) @ r.T
    ids = top(z)
    weights = softmax(at(z, ids)) * per_expert[ids]
    expected = reference.moe(x, ids, weights, w, activation="gelu_tanh")
    layer = fc.load(tmp_path, layer=1)
    y = layer(x, router_x=residual)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)
    part = fc.load(tmp_path, layer=1, part="mlp")
    close(part, x, reference.ffn(x, dense, activation="gelu_tanh"))
    with pytest.raises(ValueError, match="part is 'mlps'; expected one of 'mlp'"):
        fc.load(tmp_path, layer=1, part="mlps")
    tensors = {n: t for n, t in tensors.items() if ".mlp." in n}  # a dense model
    write(tmp_path, tensors, config)
    close(fc.load(tmp_path, layer=1), x, reference.ffn(x, dense, activation="gelu_tanh"))
    with pytest.raises(ValueError, match="part is 'mlp'; expected None, because"):
        fc.load(tmp_path, layer=1, part="mlp")


def test_granite_without_experts_has_its_shared_block(rng, tmp_path):
    block = arrays(rng)
    both = np.concatenate([block["gate"], block["up"]])
    tensors = {"model.layers.0.shared_mlp.input_linear.weight": both}
    tensors |= {"model.layers.0.shared_mlp.output_linear.weight": block["down"]}
    config = {"model_type": "granitemoehybrid", "num_local_experts": 0}
    x = rng.standard_normal((T, D))
    layer = fc.load(write(tmp_path, tensors, config))
    assert isinstance(layer, fc.FFN)
    close(layer, x, reference.ffn(x, block, activation="silu"))


# ---- other mixtures


def test_dbrx_stores_all_experts_in_the_rows(rng, tmp_path):
    start = "transformer.blocks.0.ffn."
    w, r = arrays(rng, experts=E), rng.standard_normal((E, D))
    rows = {"w1": w["gate"], "v1": w["up"], "w2": w["down"].swapaxes(1, 2)}
    tensors = {f"{start}experts.mlp.{n}": a.reshape(E * F, D) for n, a in rows.items()}
    tensors[start + "router.layer.weight"] = r
    told = {"moe_top_k": K, "ffn_act_fn": {"name": "gelu"}}
    write(tmp_path, tensors, {"model_type": "dbrx", "ffn_config": told})
    x = rng.standard_normal((T, D))
    ids = top(x @ r.T)
    chosen = softmax(at(x @ r.T, ids))
    close(fc.load(tmp_path), x, reference.moe(x, ids, chosen, w, activation="gelu"))
    told["moe_normalize_expert_weights"] = None
    write(tmp_path, tensors, {"model_type": "dbrx", "ffn_config": told})
    chosen = at(softmax(x @ r.T), ids)
    close(fc.load(tmp_path), x, reference.moe(x, ids, chosen, w, activation="gelu"))
    told["moe_normalize_expert_weights"] = 2.0
    write(tmp_path, tensors, {"model_type": "dbrx", "ffn_config": told})
    with pytest.raises(ValueError, match=r"moe_normalize_expert_weights 2\.0; expected 1 or null"):
        fc.load(tmp_path)


@pytest.mark.parametrize("biased", [False, True])
def test_nemotron_h_computes_experts_in_a_smaller_space(rng, tmp_path, biased):
    start, small = "model.layers.0.mixer.", 4
    w, r = arrays(rng, experts=E, d=small), rng.standard_normal((E, D))
    into, back = rng.standard_normal((small, D)), rng.standard_normal((D, small))
    b_in, b_back = rng.standard_normal(small), rng.standard_normal(D)
    shared = arrays(rng, 7)
    tensors = {
        start + "gate.weight": r,
        start + "gate.e_score_correction_bias": np.zeros(E),
        start + "experts.up_proj": w["up"],
        start + "experts.down_proj": w["down"],
        start + "fc1_latent_proj.weight": into,
        start + "fc2_latent_proj.weight": back,
        start + "shared_experts.up_proj.weight": shared["up"],
        start + "shared_experts.down_proj.weight": shared["down"],
    }
    if biased:
        tensors |= {start + "fc1_latent_proj.bias": b_in, start + "fc2_latent_proj.bias": b_back}
    config = {"model_type": "nemotron_h", "num_experts_per_tok": K}
    layer = fc.load(write(tmp_path, tensors, config))
    x = rng.standard_normal((T, D))
    s = 1 / (1 + np.exp(-x @ r.T))
    ids = top(s)
    weights = at(s, ids) / at(s, ids).sum(-1, keepdims=True)
    given = x @ into.T + (b_in if biased else 0)
    inner = reference.moe(
        given, ids, weights, {"up": w["up"], "down": w["down"]}, activation="relu2"
    )
    h = np.maximum(x @ shared["up"].T, 0) ** 2
    expected = inner @ back.T + (b_back if biased else 0) + h @ shared["down"].T
    close(layer, x, expected)


def inkling(rng, form):
    start, n = "model.llm.layers.0.mlp.", 2
    w, shared = arrays(rng, experts=E), arrays(rng, experts=n)
    r, b, scale = rng.standard_normal((E + n, D)), rng.standard_normal(E), np.array([0.7])
    tensors = {start + "gate.weight": r, start + "gate.global_scale": scale}
    if form == "released":

        def mixed(block):
            """Rows of gate and up in turn."""
            pairs = np.stack([block["gate"], block["up"]], axis=2)
            return pairs.reshape(len(pairs), 2 * F, D)

        tensors |= {start + "gate.bias": b, start + "experts.w13_weight": mixed(w)}
        tensors |= {start + "experts.w2_weight": w["down"]}
        tensors |= {start + "shared_experts.shared_w13_weight": mixed(shared)}
        tensors |= {start + "shared_experts.shared_w2_weight": shared["down"]}
    else:
        tensors |= {start + "gate.e_score_correction_bias": b}
        tensors |= {start + "experts.gate_up_proj": np.concatenate([w["gate"], w["up"]], axis=1)}
        tensors |= {start + "experts.down_proj": w["down"]}
        tensors |= {f"{start}shared_experts.{NAMES[k]}": a for k, a in shared.items()}
    text = {"num_experts_per_tok": K, "n_shared_experts": n, "route_scale": 2.5}
    both = {name: np.concatenate([w[name], shared[name]]) for name in w}
    return tensors, {"model_type": "inkling_mm_model", "text_config": text}, both, r, b


@pytest.mark.parametrize("form", ["released", "own"])
def test_inkling_weights_its_shared_experts(rng, tmp_path, form):
    tensors, config, w, r, b = inkling(rng, form)
    write(tmp_path, tensors, config)
    x = rng.standard_normal((T, D))
    s = 1 / (1 + np.exp(-x @ r.T))
    ids = np.concatenate([top(s[:, :E] + b), np.tile([E, E + 1], (T, 1))], axis=1)
    weights = 0.7 * 2.5 * at(s, ids) / at(s, ids).sum(-1, keepdims=True)
    layer = fc.load(tmp_path)
    assert layer.n_experts == E + 2
    close(layer, x, reference.moe(x, ids, weights, w, activation="silu"))
    parts = [fc.load(tmp_path, experts=held) for held in (range(3), range(3, E))]
    assert [part.n_experts for part in parts] == [5, 5]
    np.testing.assert_allclose(sum(part(x) for part in parts), layer(x), rtol=1e-11, atol=1e-11)
    (info,) = models.layers(tmp_path)
    assert (info.problem, info.n_experts) == (None, E)


# ---- a part of the experts


def qwen(rng):
    start = "model.layers.0.mlp."
    w, shared = arrays(rng, experts=E), arrays(rng, 7)
    tensors = one_by_one(start + "experts.{}.", w) | named(start + "shared_expert.", shared)
    tensors |= {start + "gate.weight": rng.standard_normal((E, D))}
    tensors |= {start + "shared_expert_gate.weight": rng.standard_normal((1, D))}
    return tensors, {"model_type": "qwen2_moe", "num_experts_per_tok": K}, w


def stacked(tensors, w):
    tensors = {n: t for n, t in tensors.items() if ".experts." not in n}
    start = "model.layers.0.mlp.experts."
    tensors[start + "gate_up_proj"] = np.concatenate([w["gate"], w["up"]], axis=1)
    return tensors | {start + "down_proj": w["down"]}


@pytest.mark.parametrize("form", ["one by one", "stacked"])
@pytest.mark.parametrize("split", [[range(4), range(4, 8)], [(0, 3, 7), (1, 2), (4, 5, 6)]])
def test_parts_add_up_to_the_layer(rng, tmp_path, form, split):
    tensors, config, w = qwen(rng)
    write(tmp_path, tensors if form == "one by one" else stacked(tensors, w), config)
    x, grad_y = rng.standard_normal((2, T, D))
    whole = fc.load(tmp_path)
    y, saved = whole.forward(x)
    grads = whole.backward(grad_y, saved)
    parts = [fc.load(tmp_path, experts=held) for held in split]
    assert [part.n_experts for part in parts] == [len(held) for held in split]
    total = sum(part(x) for part in parts)
    np.testing.assert_allclose(total, y, rtol=1e-12, atol=1e-12)
    found = [part.backward(grad_y, part.forward(x)[1]) for part in parts]
    np.testing.assert_allclose(sum(g.x for g in found), grads.x, rtol=1e-11, atol=1e-11)
    router = sum(g.router_weight for g in found)
    np.testing.assert_allclose(router, grads.router_weight, rtol=1e-11, atol=1e-11)
    for part, held, own in zip(parts, split, found, strict=True):
        assert np.array_equal(part.experts.up, w["up"][list(held)])
        np.testing.assert_allclose(own.experts.up, grads.experts.up[list(held)], rtol=1e-11)
        assert (part.shared is None) == (0 not in held)
        assert f"{len(held)} experts, {D} -> {F} -> {D}" in repr(part)
        assert "of 8" in repr(part)
        assert np.array_equal(part.router(x).experts, whole.router(x).experts)
        packed = part.packed()
        np.testing.assert_allclose(packed(x), part(x), rtol=1e-12, atol=1e-12)


def test_null_experts_belong_to_the_first_part(rng, tmp_path):
    tensors, config, *_ = longcat(rng)
    write(tmp_path, tensors, config)
    x, grad_y = rng.standard_normal((2, T, D))
    whole = fc.load(tmp_path)
    parts = [fc.load(tmp_path, experts=held) for held in (range(3), range(3, 8))]
    np.testing.assert_allclose(sum(part(x) for part in parts), whole(x), rtol=1e-11, atol=1e-11)
    dx = sum(part.backward(grad_y, part.forward(x)[1]).x for part in parts)
    expected = whole.backward(grad_y, whole.forward(x)[1]).x
    np.testing.assert_allclose(dx, expected, rtol=1e-11, atol=1e-11)


def test_other_experts_are_not_read(rng, tmp_path):
    tensors, config, w = qwen(rng)
    data = stacked(tensors, w)
    write(tmp_path, data, config)
    expected = fc.load(tmp_path, experts=range(2)).experts.down.copy()
    # Bytes of other experts do not matter, and neither does the file's last expert.
    path = tmp_path / "model.safetensors"
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    begin, end = header["model.layers.0.mlp.experts.down_proj"]["data_offsets"]
    start = 8 + length + begin + 2 * (end - begin) // E
    raw[start : 8 + length + end] = os.urandom(8 + length + end - start)
    path.write_bytes(raw)
    assert np.array_equal(fc.load(tmp_path, experts=range(2)).experts.down, expected)


@pytest.mark.parametrize("held", [(), range(9), (-1, 0), (1, 0), (2, 2)])
def test_numbers_that_are_no_part(rng, tmp_path, held):
    tensors, config, _ = qwen(rng)
    write(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=r"experts is .*; expected increasing numbers from 0 to 7"):
        fc.load(tmp_path, experts=held)


def test_a_dense_layer_has_no_experts(rng, tmp_path):
    write(tmp_path, named("model.layers.0.mlp.", arrays(rng)), {"model_type": "llama"})
    with pytest.raises(ValueError, match="experts is given, and layer 0 has no experts"):
        fc.load(tmp_path, experts=range(2))
    with pytest.raises(ValueError, match="part is 'mlp'; expected None, because the layer has one"):
        fc.load(tmp_path, part="mlp")


def test_the_shared_expert_is_a_part(rng, tmp_path):
    tensors, config, _ = qwen(rng)
    write(tmp_path, tensors, config)
    layer, part = fc.load(tmp_path), fc.load(tmp_path, part="mlp.shared_expert")
    assert np.array_equal(part.weights.up, layer.shared.weights.up)
    with pytest.raises(ValueError, match=r"experts is given, and part mlp\.shared_expert has no"):
        fc.load(tmp_path, part="mlp.shared_expert", experts=range(2))


def test_a_type_that_is_no_number(rng, tmp_path):
    tensors, config, _ = qwen(rng)
    write(tmp_path, tensors, config)
    with pytest.raises(TypeError, match="experts has a str; expected integers"):
        fc.load(tmp_path, experts="12")
