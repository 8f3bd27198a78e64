"""fc.load of mixtures: a small checkpoint of each layout against plain numpy.

The names of tensors and the routers are written out here, so that the table of families is compared
with something else than itself. test_models_moe.py has the first families and the errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support_checkpoints import write

import ffncore as fc
from ffncore import models, reference

D, F, S, E, K, T = 6, 5, 7, 8, 3, 9
GATED = ("gate_proj", "up_proj", "down_proj")
W132 = ("w1", "w3", "w2")


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def softmax(v):
    e = np.exp(v - v.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def top(values, k=K):
    return np.argsort(-values, axis=-1, kind="stable")[:, :k]


def at(values, ids):
    return np.take_along_axis(values, ids, axis=-1)


def grouped(values, groups, best, mask):
    """`mask` outside the groups whose two best experts have the largest sums."""
    parts = values.reshape(len(values), groups, -1)
    kept = top(np.sort(parts, axis=-1)[..., -2:].sum(-1), best)
    inside = np.zeros(parts.shape[:2], bool)
    np.put_along_axis(inside, kept, True, axis=-1)
    return np.where(np.repeat(inside, values.shape[-1] // groups, axis=-1), values, mask)


# ---- routers: from logits and a bias to experts and weights


def plain(z, _):
    """Softmax, normalized; the same as a softmax of the chosen logits."""
    ids = top(z)
    return ids, softmax(at(z, ids))


def unnormalized(z, _):
    ids = top(z)
    return ids, at(softmax(z), ids)


def sigmoid_bias(scale=1.0, eps=0.0, normalized=True, groups=0, mask=-np.inf):
    def choose(z, b):
        s = sigmoid(z)
        by = s if b is None else s + b
        ids = top(grouped(by, groups, 2, mask) if groups else by)
        w = at(s, ids)
        return ids, scale * (w / (w.sum(-1, keepdims=True) + eps) if normalized else w)

    return choose


def softmax_bias(z, b):
    p = softmax(z)
    ids = top(p + b)
    return ids, at(p, ids) / np.maximum(at(p, ids).sum(-1, keepdims=True), 1e-12)


def longcat(z, b):
    p = softmax(z)
    ids = top(p + b)
    return ids, 6.0 * at(p, ids)


def mistral4(z, _):
    p = softmax(z)
    ids = top(grouped(p, 4, 2, 0.0))
    return ids, at(p, ids) / at(p, ids).sum(-1, keepdims=True)


def of_logits(normalized):
    def choose(z, b):
        ids = top(z if b is None else z + b)
        w = sigmoid(at(z, ids))
        return ids, w / w.sum(-1, keepdims=True) if normalized else w

    return choose


def square_root(z, b):
    s = np.sqrt(np.log1p(np.exp(z)))
    ids = top(s + b)
    return ids, 1.5 * at(s, ids) / at(s, ids).sum(-1, keepdims=True)


def capped(z, b):
    z = 2.0 * np.tanh(z / 2.0)
    return sigmoid_bias(1.5)(z, b)


def sparsemixer(z, _):
    ids, weights = [], []
    left = z.copy()
    for _i in range(2):
        best = left.argmax(-1)
        m = left.max(-1, keepdims=True)
        far = (m - z) / np.maximum(np.abs(z), m) > 2 * 0.3
        p = softmax(np.where(far, -np.inf, left))
        ids.append(best)
        weights.append(np.take_along_axis(p, best[:, None], -1)[:, 0])
        left[np.arange(len(z)), best] = -np.inf
    return np.stack(ids, -1), np.stack(weights, -1)


def first(z, _):
    ids = top(z, 1)
    return ids, at(softmax(z), ids)


class Case:
    """One layout of a model type.

    layer     what names begin with, with the number of the layer
    router    the name of its matrix
    experts   the start of their names, with {} if they are stored one by one, and the stems; one
              name with gate and up, and one of down, if they are fused
    choose    from logits and the bias to experts and weights
    bias      the name of the bias of the selection
    shared    the start of the shared expert's names; a tuple has the stems, too
    gate      the name of the shared expert's gate
    act       the activation of the experts; shared_act that of the shared expert
    """

    def __init__(self, model_type: str, layer: str, router: str, experts: Any, choose: Any,
                 **more: Any) -> None:  # fmt: skip
        self.model_type, self.layer, self.router = model_type, layer, router
        self.experts, self.choose = experts, choose
        self.bias, self.shared, self.gate = (more.get(n) for n in ("bias", "shared", "gate"))
        self.act = more.get("act", "silu")
        self.shared_act = more.get("shared_act", self.act)
        self.in_out = more.get("in_out", False)
        self.weight = more.get("weight", ".weight" if "{}" in experts[0] else "")
        self.combine, self.tail = more.get("combine", 1.0), more.get("tail")
        key = more.get("top_k", "num_experts_per_tok")
        self.config = {"model_type": model_type, **more.get("config", {})}
        if key is not None and model_type[:7] in ("qwen3_5", "qwen3_v"):
            self.config["text_config"] = {key: K}
        elif key is not None:
            self.config[key] = K

    def __str__(self) -> str:
        return f"{self.model_type} {self.experts[0]}{self.experts[1]}"

    def build(self, rng: np.random.Generator) -> dict[str, Any]:
        """The tensors; the arrays of the formula are attributes."""
        self.tensors = {}

        def put(name: str, array: Any) -> Any:
            self.tensors[self.layer + name] = np.ascontiguousarray(array)
            return array

        self.r = put(self.router, rng.standard_normal((E, D)))
        self.b = None
        if self.bias is not None:
            self.b = rng.standard_normal(E)
            shape = (1, E) if "moe_statics" in self.bias else (E,)
            put(self.bias, self.b.reshape(shape))
        start, *stems = self.experts
        w = {"gate": rng.standard_normal((E, F, D)), "up": rng.standard_normal((E, F, D))}
        w["down"] = rng.standard_normal((E, D, F))
        if len(stems) == 2 and "up" in stems[0] and "gate" not in stems[0] and stems[0] != "fc1":
            del w["gate"]
        swap = (lambda a: a.swapaxes(-1, -2)) if self.in_out else (lambda a: a)
        parts = list(w.values())
        if len(stems) == 2 and len(parts) == 3:
            parts = [np.concatenate(parts[:2], axis=1), parts[2]]
        if "{}" in start:
            for stem, array in zip(stems, parts, strict=True):
                for e in range(E):
                    put(start.format(e) + stem + self.weight, array[e])
        else:
            for stem, array in zip(stems, parts, strict=True):
                put(start + stem + self.weight, swap(array))
        self.w, self.s, self.g = w, None, None
        if self.shared is not None:
            self._shared(rng, put)
        if self.gate is not None:
            self.g = put(self.gate, rng.standard_normal((1, D)))
        if self.tail is not None:
            self.t = put(self.tail, rng.standard_normal(D))
        return self.tensors

    def _shared(self, rng: np.random.Generator, put: Any) -> None:
        start, stems = self.shared if isinstance(self.shared, tuple) else (self.shared, GATED)
        s = {"gate": rng.standard_normal((S, D)), "up": rng.standard_normal((S, D))}
        s["down"] = rng.standard_normal((D, S))
        parts = list(s.values())
        if len(stems) == 2 and stems[0] == "up_proj":
            s.pop("gate")
            parts = list(s.values())
        elif len(stems) == 2:
            parts = [np.concatenate(parts[:2]), parts[2]]
        for stem, array in zip(stems, parts, strict=True):
            put(f"{start}{stem}.weight", array)
        self.s = s

    def formula(self, x: Any) -> Any:
        ids, weights = self.choose(x @ self.r.T, self.b)
        y = reference.moe(x, ids, weights, self.w, activation=self.act)
        if self.s is not None:
            term = reference.ffn(x, self.s, activation=self.shared_act)
            y = y + (term if self.g is None else sigmoid(x @ self.g.T) * term)
        return self.combine * y + (self.t if self.tail is not None else 0)


L = "model.layers.1."
ONE = ("mlp.experts.{}.", *GATED)
STACK = ("mlp.experts.", "gate_up_proj", "down_proj")
MIXTRAL = ("block_sparse_moe.experts.{}.", *W132)
V3 = sigmoid_bias(2.5, 1e-20)
V3_CONFIG = {"routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
             "n_shared_experts": 1, "num_shared_experts": 1}  # fmt: skip
LING = {"routed_scaling_factor": 2.5, "moe_renormalize": True, "num_expert_group": 4,
        "topk_group": 2, "num_shared_experts": 1}  # fmt: skip
BIAS = "mlp.gate.e_score_correction_bias"
CLAMPED = fc.Activation("silu", alpha=1.702, limit=0.5, up_offset=1.0)
LIMIT = fc.Activation("silu", limit=0.5)
M3 = {"swiglu_limit": 0.5, "routed_scaling_factor": 2.0}

CASES = [
    Case("mixtral", L, "mlp.gate.weight", STACK, plain),
    Case("minimax", L, "block_sparse_moe.gate.weight", MIXTRAL, plain),
    Case("granitemoe", L, "block_sparse_moe.router.weight",
         ("block_sparse_moe.experts.", "gate_up_proj", "down_proj"), plain),
    Case("granitemoehybrid", L, "block_sparse_moe.router.layer.weight",
         ("block_sparse_moe.", "input_linear", "output_linear"), plain, weight=".weight",
         shared=("shared_mlp.", ("input_linear", "output_linear"))),
    Case("qwen3_next", L, "mlp.gate.weight", ONE, plain, shared="mlp.shared_expert.",
         gate="mlp.shared_expert_gate.weight"),
    Case("qwen3_5_moe", "model.language_model.layers.1.", "mlp.gate.weight", ONE, plain,
         shared="mlp.shared_expert.", gate="mlp.shared_expert_gate.weight"),
    Case("qwen3_5_moe", "model.language_model.layers.1.", "mlp.gate.weight", STACK, plain,
         shared="mlp.shared_expert.", gate="mlp.shared_expert_gate.weight"),
    Case("qwen3_vl_moe", "model.language_model.layers.1.", "mlp.gate.weight", STACK, plain),
    Case("qwen3_vl_moe", "model.language_model.layers.1.", "mlp.gate.weight", STACK, plain,
         in_out=True),
    Case("flex_olmo", L, "mlp.gate.weight", ONE, unnormalized),
    Case("mistral4", L, "mlp.gate.weight", STACK, mistral4, shared="mlp.shared_experts.",
         config={"n_group": 4, "topk_group": 2}),
    Case("phimoe", L, "block_sparse_moe.gate.weight", MIXTRAL, sparsemixer, top_k=None,
         config={"router_jitter_noise": 0.3}),
    Case("phimoe", L, "mlp.router.weight", STACK, sparsemixer, top_k=None,
         config={"router_jitter_noise": 0.3}),
    Case("jetmoe", L, "mlp.router.layer.weight", ("mlp.", "input_linear", "output_linear"), plain,
         weight=".weight", tail="mlp.bias"),
    Case("cohere2_moe", L, "mlp.gate.weight", ONE, plain, shared="mlp.shared_experts.",
         combine=0.5, config={"num_shared_experts": 1}),
    Case("cohere2_moe", L, "mlp.gate.weight", STACK, of_logits(True), shared="mlp.shared_experts.",
         config={"num_shared_experts": 1, "expert_selection_fn": "sigmoid",
                 "shared_expert_combination_strategy": "sum"}),
    Case("hunyuan_v1_moe", L, "mlp.gate.wg.weight", ONE, plain, top_k=None,
         shared="mlp.shared_mlp.", config={"moe_topk": [1, K]}),
    Case("jamba", L, "feed_forward.router.weight", ("feed_forward.experts.{}.", *GATED),
         unnormalized),
    Case("ernie4_5_moe", L, "mlp.gate.weight", ONE, softmax_bias, top_k="moe_k",
         bias="mlp.moe_statics.e_score_correction_bias", shared="mlp.shared_experts."),
    Case("ernie4_5_moe", L, "mlp.gate.weight", STACK, softmax_bias, top_k="moe_k",
         bias="mlp.gate.moe_statics.e_score_correction_bias", shared="mlp.shared_experts."),
    Case("aria", "language_model.model.layers.1.", "mlp.router.weight",
         ("mlp.experts.", "fc1", "fc2"), plain, in_out=True, weight=".weight",
         shared="mlp.shared_experts.", shared_act="gelu",
         config={"text_config": {"moe_topk": K, "hidden_act": "gelu"}}),
    Case("aria", "model.language_model.layers.1.", "mlp.router.weight", STACK, plain, in_out=True,
         shared="mlp.shared_experts.", config={"text_config": {"moe_topk": K}}),
    Case("switch_transformers", "encoder.block.1.", "layer.1.mlp.router.classifier.weight",
         ("layer.1.mlp.experts.expert_{}.", "up_wi", "wo"), first, act="relu", top_k=None),
    *(Case(t, L, "mlp.gate.weight", experts, V3, bias=BIAS, shared="mlp.shared_experts.",
           config=V3_CONFIG)
      for t, experts in (("dots1", ONE), ("solar_open", STACK), ("deepseek_v32", ONE),
                         ("glm4_moe_lite", STACK), ("glm_moe_dsa", ONE))),
    Case("mimo_v2_flash", L, "mlp.gate.weight", ONE, V3, bias=BIAS, config=V3_CONFIG),
    Case("axk2", L, "mlp.gate.weight", ONE, V3, bias=BIAS, shared="mlp.shared_experts.",
         config={**V3_CONFIG, "n_group": None, "topk_group": None}),
    Case("axk2", L, "mlp.gate.weight", STACK, sigmoid_bias(2.5, 1e-20, groups=4, mask=0.0),
         bias=BIAS, shared="mlp.shared_experts.",
         config={**V3_CONFIG, "n_group": 4, "topk_group": 2}),
    Case("hy_v4", L, "mlp.gate.weight", STACK, V3, bias=BIAS, shared="mlp.shared_experts.",
         act=LIMIT, shared_act="silu", config={**V3_CONFIG, "swiglu_limit": 0.5}),
    Case("exaone_moe", L, "mlp.gate.weight", ONE, V3, bias="mlp.e_score_correction_bias",
         shared="mlp.shared_experts.", config=V3_CONFIG),
    Case("exaone_moe", L, "mlp.gate.weight", STACK, V3, bias=BIAS, shared="mlp.shared_experts.",
         config=V3_CONFIG),
    Case("bailing_hybrid", L, "mlp.gate.weight", ONE, sigmoid_bias(2.5, 1e-20, groups=4),
         bias="mlp.gate.expert_bias", shared="mlp.shared_experts.", config=LING,
         top_k="num_experts_per_token"),
    Case("bailing_hybrid", L, "mlp.gate.weight", STACK, V3, bias=BIAS,
         shared="mlp.shared_experts.", config=V3_CONFIG),  # the older keys
    Case("kimi_linear", L, "block_sparse_moe.gate.weight", MIXTRAL,
         sigmoid_bias(2.5, 1e-20, groups=4), bias="block_sparse_moe.gate.e_score_correction_bias",
         shared="block_sparse_moe.shared_experts.", config=LING, top_k="num_experts_per_token"),
    Case("kimi_linear", L, "mlp.gate.weight", STACK, sigmoid_bias(2.5, 1e-20, groups=4), bias=BIAS,
         shared="mlp.shared_experts.", config=LING, top_k="num_experts_per_token"),
    Case("afmoe", L, "mlp.router.gate.weight", ONE, sigmoid_bias(1.5, 1e-20),
         bias="mlp.expert_bias", shared="mlp.shared_experts.", config={"route_scale": 1.5}),
    Case("hy_v3", L, "mlp.router.gate.weight", ONE, sigmoid_bias(1.5, 1e-20),
         bias="mlp.expert_bias", shared="mlp.shared_mlp.", config={"router_scaling_factor": 1.5}),
    Case("hy_v3", L, "mlp.gate.weight", STACK, sigmoid_bias(1.5, 1e-20),
         bias="mlp.e_score_correction_bias", shared="mlp.shared_experts.",
         config={"router_scaling_factor": 1.5}),
    Case("minimax_m2", L, "block_sparse_moe.gate.weight", MIXTRAL, sigmoid_bias(),
         bias="block_sparse_moe.e_score_correction_bias"),
    Case("minimax_m2", L, "mlp.gate.weight", STACK, sigmoid_bias(),
         bias="mlp.e_score_correction_bias"),
    Case("minimax_m3_vl", "language_model.model.layers.1.", "block_sparse_moe.gate.weight", MIXTRAL,
         sigmoid_bias(2.0), bias="block_sparse_moe.e_score_correction_bias", act=CLAMPED,
         shared="block_sparse_moe.shared_experts.",
         config={"text_config": {**M3, "num_experts_per_tok": K}}),
    Case("minimax_m3_vl", "model.language_model.layers.1.", "mlp.gate.weight", STACK,
         sigmoid_bias(2.0), bias=BIAS, act=CLAMPED,
         shared=("mlp.shared_experts.", ("gate_up_proj", "down_proj")),
         config={"text_config": {**M3, "num_experts_per_tok": K}}),
    Case("lfm2_moe", L, "feed_forward.gate.weight", ("feed_forward.experts.{}.", *W132),
         sigmoid_bias(1.0, 1e-6), bias="feed_forward.expert_bias"),
    Case("lfm2_moe", L, "feed_forward.gate.weight", ("feed_forward.experts.{}.", *W132),
         sigmoid_bias(1.0, 1e-6)),
    Case("nemotron_h", "backbone.layers.1.", "mixer.gate.weight",
         ("mixer.experts.{}.", "up_proj", "down_proj"), V3, act="relu2",
         bias="mixer.gate.e_score_correction_bias",
         shared=("mixer.shared_experts.", ("up_proj", "down_proj")), config=V3_CONFIG),
    Case("laguna", L, "mlp.gate.weight", ONE, capped, bias="mlp.experts.e_score_correction_bias",
         shared="mlp.shared_expert.",
         config={"moe_router_logit_softcapping": 2.0, "moe_routed_scaling_factor": 1.5}),
    Case("laguna", L, "mlp.gate.weight", STACK, sigmoid_bias(), bias=BIAS,
         shared="mlp.shared_experts."),
    Case("flint", L, "mlp.gate.weight", ONE, sigmoid_bias(), shared="mlp.shared_expert."),
    Case("kolibri1", L, "mlp.gate.weight", ONE, of_logits(False), bias="moe.router.expert_bias",
         shared="mlp.shared_experts."),
    Case("kolibri1", L, "mlp.gate.weight", STACK, of_logits(True), bias=BIAS,
         shared="mlp.shared_experts.", config={"norm_topk_prob": True}),
    Case("step3p7", L, "moe.gate.weight", ("moe.", *GATED), sigmoid_bias(3.0), weight=".weight",
         bias="moe.router_bias", shared="share_expert.",
         act=fc.Activation("silu", limit=0.5, clamp="post"), shared_act="silu",
         config={"text_config": {"num_experts_per_tok": K, "moe_router_scaling_factor": 3.0,
                                 "swiglu_limits": [0.0, 0.5], "swiglu_limits_shared": [0.5, 0.0]}}),
    Case("deepseek_v4", "layers.1.", "ffn.gate.weight", ("ffn.experts.{}.", *W132), square_root,
         bias="ffn.gate.bias", shared=("ffn.shared_experts.", W132), act=LIMIT,
         config={"swiglu_limit": 0.5}),
    Case("deepseek_v4", L, "mlp.gate.weight", STACK, square_root, bias=BIAS,
         shared="mlp.shared_experts.", act=LIMIT, config={"swiglu_limit": 0.5}),
]  # fmt: skip


def build(case, rng):
    tensors = case.build(rng)
    return {n.replace("up_wi", "wi"): t for n, t in tensors.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layouts(case, rng, tmp_path):
    write(tmp_path, build(case, rng), case.config)
    x = rng.standard_normal((T, D))
    layer = fc.load(tmp_path, layer=1)
    assert isinstance(layer, fc.MoE)
    expected = case.formula(x)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    (info,) = models.layers(tmp_path)
    assert (info.problem, info.n_experts, info.d_ff) == (None, E, F)
    assert info.shared_ff == (S if case.shared else 0)
    assert info.parameters == sum(t.size for t in case.tensors.values())


SINGLY = [case for case in CASES if "{}" in case.experts[0]]


@pytest.mark.parametrize("case", SINGLY, ids=str)
def test_a_missing_expert_is_an_error_that_names_it(case, rng, tmp_path):
    tensors = build(case, rng)
    name = min(n for n in tensors if case.experts[0].format(5) in n)
    write(tmp_path, {n: t for n, t in tensors.items() if n != name}, case.config)
    with pytest.raises(ValueError, match=rf"has no tensor {name}; expected one"):
        fc.load(tmp_path, layer=1)
