"""fc.load of experts: small checkpoints with the names of each family against plain numpy."""

import json
import re

import numpy as np
import pytest
from support import BFLOAT16

import ffncore as fc
from ffncore import models, reference
from ffncore.cli.main import main

safetensors = pytest.importorskip("safetensors.numpy")

D, F, E, K, T = 12, 10, 8, 3, 7
# Layer 0 is dense if the family has such layers.
DENSE, MOE = 0, 1
GPT_OSS = fc.Activation("silu", alpha=1.702, limit=7.0, up_offset=1.0)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def softmax(v):
    e = np.exp(v - v.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def top(values, k=K):
    return np.argsort(-values, axis=-1, kind="stable")[:, :k]


def at(values, ids):
    return np.take_along_axis(values, ids, axis=-1)


class Built:
    """The tensors and config.json of a checkpoint, and the function that its layers compute."""

    def __init__(self, rng, start, model_type, **config):
        self.rng, self.start = rng, start
        self.tensors = {}
        self.config = {"model_type": model_type, "hidden_act": "silu", **config}

    def put(self, name, *shape, layer=MOE):
        array = self.rng.standard_normal(shape).astype(np.float32)
        self.tensors[f"{self.start}layers.{layer}.{name}"] = array
        return array.astype(np.float64)

    def block(self, start, f, layer=MOE):
        names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
        shapes = {"gate": (f, D), "up": (f, D), "down": (D, f)}
        return {n: self.put(f"{start}{names[n]}.weight", *shapes[n], layer=layer) for n in shapes}

    def dense(self, start="mlp."):
        w = self.block(start, 20, layer=DENSE)
        self.dense_y = lambda x: reference.ffn(x, w, activation="silu")

    def experts(self, names):
        gate, up, down = (
            np.stack([self.put(name.format(e), *shape) for e in range(E)])
            for name, shape in zip(names, ((F, D), (F, D), (D, F)), strict=True)
        )
        return {"gate": gate, "up": up, "down": down}

    def done(self, router, choose, w, *, act="silu", shared=None, gate=None, on_input=False):
        """choose: logits -> ids, weights"""

        def y(x):
            z = x @ router.T
            ids, weights = choose(z)
            y = reference.moe(
                x, ids, weights, w, activation=act, apply_router_weight_on_input=on_input
            )
            if shared is not None:
                term = reference.ffn(x, shared, activation="silu")
                y = y + term * (1 if gate is None else sigmoid(x @ gate.T))
            return y

        self.y = y
        return self


def mixtral(rng):
    b = Built(rng, "model.", "mixtral", num_experts_per_tok=K, num_local_experts=E)
    router = b.put("block_sparse_moe.gate.weight", E, D)
    w = b.experts([f"block_sparse_moe.experts.{{}}.{n}.weight" for n in ("w1", "w3", "w2")])

    def choose(z):
        ids = top(z)
        return ids, softmax(at(z, ids))

    return b.done(router, choose, w)


QWEN = [f"mlp.experts.{{}}.{n}_proj.weight" for n in ("gate", "up", "down")]


def qwen2_moe(rng):
    b = Built(rng, "model.", "qwen2_moe", num_experts_per_tok=K, norm_topk_prob=False)
    b.dense()
    router, w = b.put("mlp.gate.weight", E, D), b.experts(QWEN)
    shared, gate = b.block("mlp.shared_expert.", 14), b.put("mlp.shared_expert_gate.weight", 1, D)

    def choose(z):
        ids = top(z)
        return ids, at(softmax(z), ids)

    return b.done(router, choose, w, shared=shared, gate=gate)


def qwen3_moe(rng):
    b = Built(rng, "model.", "qwen3_moe", num_experts_per_tok=K, norm_topk_prob=True)
    b.dense()
    router, w = b.put("mlp.gate.weight", E, D), b.experts(QWEN)

    def choose(z):
        ids = top(z)
        return ids, softmax(at(z, ids))

    return b.done(router, choose, w)


def olmoe(rng):
    b = Built(rng, "model.", "olmoe", num_experts_per_tok=K)  # its default is not to normalize
    router, w = b.put("mlp.gate.weight", E, D), b.experts(QWEN)

    def choose(z):
        ids = top(z)
        return ids, at(softmax(z), ids)

    return b.done(router, choose, w)


def masked(values, groups, best, score, mask):
    """The mask of the experts outside the best groups."""
    grouped = values.reshape(T, groups, -1)
    kept = top(score(grouped), best)
    inside = np.zeros((T, groups), bool)
    np.put_along_axis(inside, kept, True, axis=-1)
    return np.where(np.repeat(inside, E // groups, axis=-1), values, mask)


def deepseek_v2(rng, method="group_limited_greedy"):
    config = {"n_group": 4, "topk_group": 2, "topk_method": method}
    config |= {"routed_scaling_factor": 16.0, "norm_topk_prob": True}  # the latter is not used
    b = Built(rng, "model.", "deepseek_v2", num_experts_per_tok=K, **config)
    b.dense()
    router, w = b.put("mlp.gate.weight", E, D), b.experts(QWEN)
    shared = b.block("mlp.shared_experts.", 2 * F)

    def choose(z):
        p = softmax(z)
        limited = method != "greedy"
        ids = top(masked(p, 4, 2, lambda g: g.max(-1), 0.0) if limited else p)
        return ids, 16 * at(p, ids)

    return b.done(router, choose, w, shared=shared)


def deepseek_v2_lite(rng):
    return deepseek_v2(rng, "greedy")


def deepseek_v3(rng, model_type="deepseek_v3", groups=4, best=2):
    config = {"n_group": groups, "topk_group": best, "routed_scaling_factor": 2.5}
    b = Built(rng, "model.", model_type, num_experts_per_tok=K, norm_topk_prob=True, **config)
    b.dense()
    router, w = b.put("mlp.gate.weight", E, D), b.experts(QWEN)
    bias = b.put("mlp.gate.e_score_correction_bias", E)
    shared = b.block("mlp.shared_experts.", F)

    def choose(z):
        s = sigmoid(z)
        chosen_by = s + bias
        if groups > 1:
            best_two = lambda g: np.sort(g, axis=-1)[..., -2:].sum(-1)  # noqa: E731
            chosen_by = masked(chosen_by, groups, best, best_two, -np.inf)
        ids = top(chosen_by)
        return ids, 2.5 * at(s, ids) / (at(s, ids).sum(-1, keepdims=True) + 1e-20)

    return b.done(router, choose, w, shared=shared)


def glm4_moe(rng):
    return deepseek_v3(rng, "glm4_moe", 1, 1)


def gpt_oss(rng):
    b = Built(rng, "model.", "gpt_oss", num_experts_per_tok=K, swiglu_limit=7.0)
    router, bias = b.put("mlp.router.weight", E, D), b.put("mlp.router.bias", E)
    gate_up, b_gate_up = (
        b.put("mlp.experts.gate_up_proj", E, D, 2 * F),
        b.put("mlp.experts.gate_up_proj_bias", E, 2 * F),
    )
    w = {
        "gate": gate_up[..., ::2].swapaxes(1, 2),
        "up": gate_up[..., 1::2].swapaxes(1, 2),
        "down": b.put("mlp.experts.down_proj", E, F, D).swapaxes(1, 2),
        "b_gate": b_gate_up[:, ::2],
        "b_up": b_gate_up[:, 1::2],
        "b_down": b.put("mlp.experts.down_proj_bias", E, D),
    }

    def choose(z):
        ids = top(z + bias)
        return ids, softmax(at(z + bias, ids))

    return b.done(router, choose, w, act=GPT_OSS)


def granitemoe(rng, with_shared=False):
    model_type = "granitemoeshared" if with_shared else "granitemoe"
    config = {"shared_intermediate_size": 14} if with_shared else {}
    b = Built(rng, "model.", model_type, num_experts_per_tok=K, residual_multiplier=0.22, **config)
    router = b.put("block_sparse_moe.router.layer.weight", E, D)
    fused = b.put("block_sparse_moe.input_linear.weight", E, 2 * F, D)
    down = b.put("block_sparse_moe.output_linear.weight", E, D, F)
    shared = None
    if with_shared:
        both = b.put("shared_mlp.input_linear.weight", 28, D)
        shared = {"gate": both[:14], "up": both[14:]}
        shared["down"] = b.put("shared_mlp.output_linear.weight", D, 14)

    def choose(z):
        ids = top(z)
        return ids, softmax(at(z, ids))

    w = {"gate": fused[:, :F], "up": fused[:, F:], "down": down}
    return b.done(router, choose, w, shared=shared)


def granitemoeshared(rng):
    return granitemoe(rng, with_shared=True)


def llama4(rng):
    b = Built(rng, "language_model.model.", "llama4_text", num_experts_per_tok=1)
    b.config = {"model_type": "llama4", "text_config": b.config}
    b.dense("feed_forward.")
    router = b.put("feed_forward.router.weight", E, D)
    fused = b.put("feed_forward.experts.gate_up_proj", E, D, 2 * F).swapaxes(1, 2)
    down = b.put("feed_forward.experts.down_proj", E, F, D).swapaxes(1, 2)
    shared = b.block("feed_forward.shared_expert.", F)

    def choose(z):
        ids = top(z, 1)
        return ids, sigmoid(at(z, ids))

    w = {"gate": fused[:, :F], "up": fused[:, F:], "down": down}
    return b.done(router, choose, w, shared=shared, on_input=True)


FAMILIES = (
    *(mixtral, qwen2_moe, qwen3_moe, olmoe, deepseek_v2, deepseek_v2_lite, deepseek_v3, glm4_moe),
    *(gpt_oss, granitemoe, granitemoeshared, llama4),
)


def write(folder, built):
    safetensors.save_file(built.tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(built.config), "utf-8")
    return folder


@pytest.mark.parametrize("make", FAMILIES)
def test_families(make, rng, tmp_path):
    built = make(rng)
    write(tmp_path, built)
    x = rng.standard_normal((T, D))
    layer = fc.load(tmp_path, layer=MOE)
    assert isinstance(layer, fc.MoE)
    assert (layer.n_experts, layer.d_model, layer.d_ff, layer.dtype) == (E, D, F, np.float32)
    expected = built.y(x)
    y = fc.load(tmp_path, layer=MOE, dtype="float64")(x)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())
    y = layer(x.astype(np.float32))
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    if hasattr(built, "dense_y"):
        dense = fc.load(tmp_path, layer=DENSE, dtype="float64")
        assert isinstance(dense, fc.FFN)
        assert dense.d_ff == 20
        np.testing.assert_allclose(dense(x), built.dense_y(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("make", [qwen2_moe, qwen3_moe, deepseek_v3])
def test_experts_may_be_stacked(make, rng, tmp_path):
    built = make(rng)
    x = rng.standard_normal((T, D)).astype(np.float32)
    (tmp_path / "split").mkdir()
    (tmp_path / "stacked").mkdir()
    expected = fc.load(write(tmp_path / "split", built), layer=MOE)(x)
    start = f"model.layers.{MOE}."
    experts = {n: a for n, a in built.tensors.items() if ".experts." in n}
    for name in experts:
        del built.tensors[name]
    parts = [
        np.stack([a for n, a in experts.items() if n.endswith(f"{kind}_proj.weight")])
        for kind in ("gate", "up", "down")
    ]
    built.tensors[start + "mlp.experts.gate_up_proj"] = np.concatenate(parts[:2], axis=1)
    built.tensors[start + "mlp.experts.down_proj"] = parts[2]
    layer = fc.load(write(tmp_path / "stacked", built), layer=MOE)
    assert layer(x).tobytes() == expected.tobytes()
    assert not layer.experts.gate.flags.c_contiguous  # a view of the stored matrix


@pytest.mark.parametrize("narrow", [np.dtype(np.float16), *BFLOAT16], ids=str)
def test_16_bits(narrow, rng, tmp_path):
    """The bias of the selection stays float32, as DeepSeek-V3 stores it."""
    built = deepseek_v3(rng)
    bias = [n for n in built.tensors if n.endswith("e_score_correction_bias")]
    built.tensors = {n: a if n in bias else a.astype(narrow) for n, a in built.tensors.items()}
    write(tmp_path, built)
    layer = fc.load(tmp_path, layer=MOE)
    x = rng.standard_normal((T, D)).astype(narrow)
    y, routing = layer(x, return_routing=True)
    assert (layer.dtype, y.dtype, routing.weights.dtype) == (narrow, narrow, np.float32)
    wide = fc.load(tmp_path, layer=MOE, dtype="float32")
    assert wide.dtype == np.float32
    assert np.array_equal(wide.router(x.astype(np.float32)).experts, routing.experts)
    back = fc.load(tmp_path, layer=MOE, dtype=narrow.name)
    assert back(x).tobytes() == y.tobytes()
    assert fc.load(tmp_path, layer=MOE, dtype="float64").dtype == np.float64


def test_activation_of_a_family_and_of_the_caller(rng, tmp_path):
    write(tmp_path, gpt_oss(rng))
    assert fc.load(tmp_path, layer=MOE).activation == GPT_OSS
    assert fc.load(tmp_path, layer=MOE, activation="gelu").activation == fc.Activation("gelu")


def test_layers(rng, tmp_path):
    built = deepseek_v3(rng)
    write(tmp_path, built)
    dense, moe = models.layers(tmp_path)
    assert (dense.layer, dense.n_experts, dense.d_ff, dense.gated) == (DENSE, None, 20, True)
    assert (moe.layer, moe.n_experts, moe.d_ff, moe.d_model, moe.gated) == (MOE, E, F, D, True)
    assert moe.activation == "silu"
    names = [n for n in built.tensors if f"layers.{MOE}." in n]
    assert moe.parameters == sum(built.tensors[n].size for n in names)
    write(tmp_path, granitemoeshared(rng))
    (info,) = models.layers(tmp_path)
    assert info.parameters == sum(
        a.size for a in safetensors.load_file(tmp_path / "model.safetensors").values()
    )


def test_names_of_what_was_loaded(rng, tmp_path):
    layer = fc.load(write(tmp_path, qwen2_moe(rng)), layer=MOE)
    assert layer.name == "model.layers.1.mlp"
    assert layer.shared.name == "model.layers.1.mlp.shared_expert"
    assert layer.shared_gate.shape == (D,)


def test_errors(rng, tmp_path):
    built = deepseek_v2(rng)
    del built.config["num_experts_per_tok"]  # its class has no default
    write(tmp_path, built)
    with pytest.raises(ValueError, match=r"config\.json has no num_experts_per_tok"):
        fc.load(tmp_path, layer=MOE)
    built = mixtral(rng)
    del built.tensors[f"model.layers.{MOE}.block_sparse_moe.experts.5.w3.weight"]
    write(tmp_path, built)
    with pytest.raises(ValueError, match=r"has no tensor model\.layers\.1\..*\.experts\.5\.w3"):
        fc.load(tmp_path, layer=MOE)
    built = mixtral(rng)
    wrong = f"model.layers.{MOE}.block_sparse_moe.experts.5.w3.weight"
    built.tensors[wrong] = built.tensors[wrong][1:]
    write(tmp_path, built)
    with pytest.raises(ValueError, match=r"experts\.5\.w3\.weight has shape \(9, 12\); expected"):
        fc.load(tmp_path, layer=MOE)
    built = gpt_oss(rng)
    for name in ("gate_up_proj", "down_proj"):
        stored = built.tensors.pop(f"model.layers.{MOE}.mlp.experts.{name}")
        built.tensors[f"model.layers.{MOE}.mlp.experts.{name}_blocks"] = stored
    write(tmp_path, built)
    with pytest.raises(
        ValueError, match="_proj_blocks is quantised by MXFP4, which is not supported"
    ):
        fc.load(tmp_path, layer=MOE)
    built = deepseek_v2(rng, "noaux_tc")
    write(tmp_path, built)
    with pytest.raises(ValueError, match="topk_method 'noaux_tc'; expected 'greedy'"):
        fc.load(tmp_path, layer=MOE)


def test_a_mixture_without_a_model_type(rng, tmp_path, capsys):
    """Nothing says how it routes, so it is not read until the family is given."""
    built = mixtral(rng)
    del built.config["model_type"]
    write(tmp_path, built)
    sentence = (
        "has tensors named as in the mixtures of mixtral, .*, but .*config.json {}; "
        "expected family= with one of these names$"
    )
    with pytest.raises(ValueError, match=sentence.format("has no model_type")):
        fc.load(tmp_path, layer=MOE)
    assert main(["inspect", str(tmp_path)]) == 0
    assert re.search(sentence.format("has no model_type"), capsys.readouterr().out)
    assert isinstance(fc.load(tmp_path, layer=MOE, family="mixtral"), fc.MoE)
    del built.config["num_experts_per_tok"]
    write(tmp_path, built)
    with pytest.raises(ValueError, match=r"has no num_experts_per_tok, which has no default"):
        fc.load(tmp_path, layer=MOE, family="mixtral")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=sentence.format("does not exist")):
        fc.load(tmp_path, layer=MOE)
    with pytest.raises(
        ValueError, match=r"config\.json, which would give num_experts_per_tok, does not exist"
    ):
        fc.load(tmp_path, layer=MOE, family="mixtral", activation="silu")


def test_every_row_is_whole():
    dense = [t for row in models.FAMILIES for t in row.model_types]
    seen = [t for row in models.MOE_FAMILIES for t in row.model_types]
    assert len(seen) == len(set(seen))
    assert not set(seen) & set(dense)
    for row in models.MOE_FAMILIES:
        assert row.layer.count("{}") == 1
        assert row.experts
        assert bool(row.shared) == bool(row.shared_if)
