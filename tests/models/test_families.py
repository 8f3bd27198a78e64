"""fc.load of dense families: a small checkpoint of each layout against plain numpy.

The names of tensors and the activations are written out here, as they are in published files, so
that the table of families is compared with something else than itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from support_checkpoints import write

import ffncore as fc
from ffncore import models
from ffncore.models.files.defaults import DEFAULTS
from ffncore.models.files.towers import TOWERS

D, F, LAYERS = 6, 8, 2

ACTIVATIONS = {
    "relu": lambda v: np.maximum(v, 0),
    "relu2": lambda v: np.maximum(v, 0) ** 2,
    "silu": lambda v: v / (1 + np.exp(-v)),
    "gelu": lambda v: v / 2 * (1 + np.vectorize(math.erf)(v / np.sqrt(2))),
    "tanh": lambda v: v / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))),
    "quick": lambda v: v / (1 + np.exp(-1.702 * v)),
}


class Case:
    """One layout of a model type.

    names    of up and down, or gate, up and down, or gate_up and down: their whole stems
    act      of the formula
    biases   roles that have a bias
    order    of gate_up
    config   further keys of config.json
    load     further arguments of fc.load
    """

    def __init__(
        self,
        model_type: str,
        start: str,
        names: dict[str, str],
        act: str,
        *,
        biases: tuple[str, ...] = (),
        order: str = "gate_first",
        in_out: bool = False,
        weight: str = ".weight",
        config: dict[str, Any] | None = None,
        load: dict[str, Any] | None = None,
    ) -> None:
        self.model_type, self.start, self.names, self.act = model_type, start, names, act
        self.biases, self.order, self.in_out, self.weight = biases, order, in_out, weight
        self.config = {"model_type": model_type, **(config or {})}
        self.load = load or {}

    def __str__(self) -> str:
        return f"{self.model_type} {self.start}{next(iter(self.names.values()))}"

    def tensors(self, rng: np.random.Generator) -> dict[str, Any]:
        shapes = {"gate": (F, D), "up": (F, D), "gate_up": (2 * F, D), "down": (D, F)}
        tensors = {}
        for i in range(LAYERS):
            for role, name in self.names.items():
                shape = shapes[role]
                stem = self.start.format(i) + name
                stored = shape[::-1] if self.in_out else shape
                tensors[stem + self.weight] = rng.standard_normal(stored)
                if role in self.biases:
                    tensors[stem + ".bias"] = rng.standard_normal(shape[0])
        return tensors

    def formula(self, tensors: dict[str, Any], layer: int, x: Any) -> Any:
        def linear(role: str, v: Any) -> Any:
            stem = self.start.format(layer) + self.names[role]
            matrix = tensors[stem + self.weight]
            return v @ (matrix if self.in_out else matrix.T) + tensors.get(stem + ".bias", 0)

        act = ACTIVATIONS[self.act]
        if "gate_up" in self.names:
            halves = np.split(linear("gate_up", x), 2, axis=-1)
            gate, up = halves if self.order == "gate_first" else halves[::-1]
            return linear("down", act(gate) * up)
        if "gate" in self.names:
            return linear("down", act(linear("gate", x)) * linear("up", x))
        return linear("down", act(linear("up", x)))


GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
W123 = {"gate": "w1", "up": "w3", "down": "w2"}
FUSED = {"gate_up": "gate_up_proj", "down": "down_proj"}
FALCON = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}
FC = {"up": "fc1", "down": "fc2"}
C = {"up": "c_fc", "down": "c_proj"}
UP = {"up": "up_proj", "down": "down_proj"}
BOTH = ("up", "down")
T5 = "{}.block.{{}}.layer.{}.DenseReluDense."
ENCODER, DECODER = {"prefix": "encoder"}, {"prefix": "decoder"}

CASES = [
    Case("openai-gpt", "transformer.h.{}.mlp.", C, "tanh", biases=BOTH, in_out=True),
    Case("albert", "albert.encoder.albert_layer_groups.{}.albert_layers.0.",
         {"up": "ffn", "down": "ffn_output"}, "tanh", biases=BOTH,
         config={"num_hidden_layers": 2, "num_hidden_groups": 2}),
    Case("distilbert", "distilbert.transformer.layer.{}.ffn.", {"up": "lin1", "down": "lin2"},
         "gelu", biases=BOTH),
    Case("t5", T5.format("encoder", 1), {"up": "wi", "down": "wo"}, "relu"),
    Case("t5", T5.format("decoder", 2), {"gate": "wi_0", "up": "wi_1", "down": "wo"}, "tanh",
         config={"feed_forward_proj": "gated-gelu"}),
    Case("umt5", T5.format("encoder", 1), {"gate": "wi_0", "up": "wi_1", "down": "wo"}, "silu",
         config={"feed_forward_proj": "gated-silu", "dense_act_fn": "silu"}),
    Case("mt5", T5.format("encoder", 1), {"gate": "wi_0", "up": "wi_1", "down": "wo"}, "tanh"),
    Case("opt", "model.decoder.layers.{}.", FC, "relu", biases=BOTH),
    Case("opt", "model.decoder.layers.{}.", FC, "relu", config={"enable_bias": False}),
    Case("whisper", "model.encoder.layers.{}.", FC, "gelu", biases=BOTH),
    Case("bart", "model.decoder.layers.{}.", FC, "gelu", biases=BOTH),
    Case("phi", "model.layers.{}.mlp.", FC, "tanh", biases=BOTH),
    Case("nanochat", "model.layers.{}.mlp.", FC, "relu2"),
    Case("phi3", "model.layers.{}.mlp.", FUSED, "silu"),
    Case("glm4", "model.layers.{}.mlp.", FUSED, "silu"),
    Case("dia", "decoder.layers.{}.mlp.", FUSED, "tanh",
         config={"decoder_config": {"hidden_act": "gelu_new"}}),
    Case("falcon", "transformer.h.{}.mlp.", FALCON, "gelu"),
    Case("falcon", "transformer.h.{}.mlp.", FALCON, "gelu", biases=BOTH, config={"bias": True}),
    Case("gpt_neox", "gpt_neox.layers.{}.mlp.", FALCON, "tanh", biases=BOTH,
         config={"hidden_act": "gelu_fast"}),
    Case("persimmon", "model.layers.{}.mlp.", FALCON, "relu2", biases=BOTH),
    Case("bloom", "transformer.h.{}.mlp.", FALCON, "tanh", biases=BOTH),
    Case("gptj", "transformer.h.{}.mlp.", {"up": "fc_in", "down": "fc_out"}, "tanh", biases=BOTH,
         config={"n_inner": None}),
    Case("codegen", "transformer.h.{}.mlp.", {"up": "fc_in", "down": "fc_out"}, "tanh",
         biases=BOTH),
    Case("gpt_neo", "transformer.h.{}.mlp.", C, "tanh", biases=BOTH),
    Case("gpt_bigcode", "transformer.h.{}.mlp.", C, "tanh", biases=BOTH),
    Case("starcoder2", "model.layers.{}.mlp.", C, "tanh", biases=BOTH),
    Case("mpt", "transformer.blocks.{}.ffn.", UP, "gelu"),
    Case("nemotron", "model.layers.{}.mlp.", UP, "relu2"),
    Case("arcee", "model.layers.{}.mlp.", UP, "relu2"),
    Case("jais2", "model.layers.{}.mlp.", UP, "relu2", biases=BOTH),
    Case("modernbert", "model.layers.{}.mlp.", {"gate_up": "Wi", "down": "Wo"}, "gelu"),
    Case("moonshine", "model.encoder.layers.{}.mlp.", FC, "gelu", biases=BOTH),
    Case("moonshine", "model.decoder.layers.{}.mlp.", {"gate_up": "fc1", "down": "fc2"}, "silu",
         biases=("gate_up", "down"), order="up_first"),
    Case("gte", "encoder.layer.{}.mlp.", {"gate_up": "up_gate_proj", "down": "down_proj"}, "gelu",
         biases=("down",), order="up_first"),
    Case("gte", "layers.{}.mlp.", GATED, "gelu", biases=("down",)),
    Case("nomic_bert", "encoder.layers.{}.mlp.", {"gate": "fc12", "up": "fc11", "down": "fc2"},
         "silu"),
    Case("nomic_bert", "layers.{}.mlp.", GATED, "silu"),
    Case("lfm2", "model.layers.{}.feed_forward.", W123, "silu"),
    Case("internlm2", "model.layers.{}.feed_forward.", W123, "silu",
         config={"hidden_act": "silu"}),
    Case("recurrent_gemma", "model.layers.{}.mlp_block.", GATED, "tanh",
         biases=("gate", "up", "down")),
    Case("ernie4_5", "model.layers.{}.mlp.", GATED, "silu"),
    Case("smollm3", "model.layers.{}.mlp.", GATED, "silu"),
    Case("hunyuan_v1_dense", "model.layers.{}.mlp.", GATED, "silu"),
    Case("vit", "vit.encoder.layer.{}.", {"up": "intermediate.dense", "down": "output.dense"},
         "gelu", biases=BOTH),
    Case("deit", "layers.{}.mlp.", FC, "gelu", biases=BOTH),
    Case("dinov2", "encoder.layer.{}.mlp.", FC, "gelu", biases=BOTH),
    Case("dinov2", "encoder.layer.{}.mlp.", {"gate_up": "weights_in", "down": "weights_out"},
         "silu", biases=("gate_up", "down"), config={"hidden_act": "gelu"}),
    Case("dinov2", "layers.{}.mlp.", GATED, "silu", biases=("gate", "up", "down")),
    Case("clip_vision_model", "vision_model.encoder.layers.{}.mlp.", FC, "quick", biases=BOTH),
    Case("siglip_vision_model", "vision_model.encoder.layers.{}.mlp.", FC, "tanh", biases=BOTH),
    Case("qwen3_vl", "model.visual.blocks.{}.mlp.", {"up": "linear_fc1", "down": "linear_fc2"},
         "tanh", biases=BOTH),
    Case("kimi_k25", "vision_tower.encoder.blocks.{}.mlp.", {"up": "fc0", "down": "fc1"}, "tanh",
         biases=BOTH),
    Case("pixtral", "vision_tower.transformer.layers.{}.feed_forward.", GATED, "gelu"),
    Case("gemma4", "model.vision_tower.encoder.layers.{}.mlp.", GATED, "tanh",
         weight=".linear.weight", config={"vision_config": {"model_type": "gemma4_vision"}}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layouts(case, rng, tmp_path):
    tensors = case.tensors(rng)
    write(tmp_path, tensors, case.config)
    x = rng.standard_normal((3, D))
    for number in range(LAYERS):
        layer = fc.load(tmp_path, layer=number, **case.load)
        expected = case.formula(tensors, number, x)
        np.testing.assert_allclose(layer(x), expected, rtol=1e-10, atol=1e-10)
    infos = models.layers(tmp_path)
    assert [(info.layer, info.problem, info.d_ff) for info in infos] == [
        (number, None, F) for number in range(LAYERS)
    ]
    assert sum(info.parameters for info in infos) == sum(t.size for t in tensors.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_tensor_of_a_layer_is_needed(case, rng, tmp_path):
    tensors = case.tensors(rng)
    weights = [n for n in tensors if case.start.format(1) in n and n.endswith(case.weight)]
    assert len(weights) == len(case.names)
    for name in weights[:-1]:  # without the last one, another form may be the nearest
        write(tmp_path, {n: t for n, t in tensors.items() if n != name}, case.config)
        with pytest.raises(ValueError, match=r"has no tensor|does not use"):
            fc.load(tmp_path, layer=1)


def test_a_layer_of_albert_is_that_of_its_group(rng, tmp_path):
    case = next(case for case in CASES if case.model_type == "albert")
    tensors = case.tensors(rng)
    config = {"model_type": "albert", "num_hidden_layers": 5, "num_hidden_groups": 2}
    write(tmp_path, tensors, config)
    x = rng.standard_normal((3, D))
    for layer, group in enumerate((0, 0, 0, 1, 1)):  # floor(layer / (5 / 2))
        expected = case.formula(tensors, group, x)
        np.testing.assert_allclose(fc.load(tmp_path, layer=layer)(x), expected, rtol=1e-10)
    with pytest.raises(ValueError, match=r"layer 5 is not in .*; expected one of 0-4"):
        fc.load(tmp_path, layer=5)
    write(tmp_path, tensors, {**config, "inner_group_num": 2})
    with pytest.raises(ValueError, match=r"has inner_group_num 2; expected an integer"):
        fc.load(tmp_path)


# ---- layers that compute more


def own(rng, start, **shapes):
    return {start + name.replace("__", "."): rng.standard_normal(s) for name, s in shapes.items()}


def gated(rng, start):
    shapes = {"gate_proj__weight": (F, D), "up_proj__weight": (F, D), "down_proj__weight": (D, F)}
    return own(rng, start, **shapes)


def test_bitnet_has_a_norm_inside(rng, tmp_path):
    start = "model.layers.0.mlp."
    t = gated(rng, start) | own(rng, start, ffn_sub_norm__weight=(F,))
    layer = fc.load(write(tmp_path, t, {"model_type": "bitnet", "rms_norm_eps": 1e-3}))
    x = rng.standard_normal((3, D))
    gate, up = x @ t[start + "gate_proj.weight"].T, x @ t[start + "up_proj.weight"].T
    h = np.maximum(gate, 0) ** 2 * up
    h = h / np.sqrt((h * h).mean(-1, keepdims=True) + 1e-3) * t[start + "ffn_sub_norm.weight"]
    np.testing.assert_allclose(layer(x), h @ t[start + "down_proj.weight"].T, rtol=1e-10)
    del t[start + "ffn_sub_norm.weight"]
    write(tmp_path, t, {"model_type": "bitnet"})
    with pytest.raises(ValueError, match=r"has no tensor .*ffn_sub_norm\.weight"):
        fc.load(tmp_path)


def test_kosmos_has_a_norm_inside(rng, tmp_path):
    start = "text_model.model.layers.0.ffn."
    t = own(rng, start, fc1__weight=(F, D), fc1__bias=(F,), fc2__weight=(D, F), fc2__bias=(D,))
    t |= own(rng, start, ffn_layernorm__weight=(F,), ffn_layernorm__bias=(F,))
    config = {"model_type": "kosmos-2", "text_config": {"layer_norm_eps": 1e-2}}
    layer = fc.load(write(tmp_path, t, config))
    x = rng.standard_normal((3, D))
    h = ACTIVATIONS["gelu"](x @ t[start + "fc1.weight"].T + t[start + "fc1.bias"])
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-2)
    h = h * t[start + "ffn_layernorm.weight"] + t[start + "ffn_layernorm.bias"]
    expected = h @ t[start + "fc2.weight"].T + t[start + "fc2.bias"]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-10)


def test_falcon_h1_has_multipliers_inside(rng, tmp_path):
    start = "model.layers.0.feed_forward."
    t = gated(rng, start)
    config = {"model_type": "falcon_h1", "mlp_multipliers": [0.5, -3.0]}
    write(tmp_path, t, config)
    with pytest.raises(ValueError, match=r"has mlp_multipliers\.1 \[?.*-3\.0.*expected a finite"):
        fc.load(tmp_path)
    write(tmp_path, t, {**config, "mlp_multipliers": [0.5, 3.0]})
    x = rng.standard_normal((3, D))
    gate, up = x @ t[start + "gate_proj.weight"].T, x @ t[start + "up_proj.weight"].T
    h = ACTIVATIONS["silu"](gate * 0.5) * up
    expected = h @ t[start + "down_proj.weight"].T * 3.0
    np.testing.assert_allclose(fc.load(tmp_path)(x), expected, rtol=1e-10)


def test_apertus_has_trained_numbers_in_its_activation(rng, tmp_path):
    start = "model.layers.0.mlp."
    t = own(rng, start, up_proj__weight=(F, D), down_proj__weight=(D, F))
    numbers = {"alpha_p": 0.3, "alpha_n": 0.4, "beta": 0.25, "eps": -1e-3}
    for name, value in numbers.items():
        t[f"{start}act_fn.{name}"] = np.full((1,) if name[:5] == "alpha" else (), value)
    write(tmp_path, t, {"model_type": "apertus"})
    layer = fc.load(tmp_path)
    assert layer.activation == fc.Activation("xielu", **numbers)
    del t[f"{start}act_fn.beta"]
    write(tmp_path, t, {"model_type": "apertus"})
    with pytest.raises(ValueError, match=r"has no tensor .*act_fn\.beta"):
        fc.load(tmp_path)


@pytest.mark.parametrize("pattern, share", [([0.0, 0.95], 0.95), (0.95, 0.95), (None, 0.95)])
def test_gemma3n_cuts_gates_off_in_some_layers(rng, tmp_path, pattern, share):
    start = "model.language_model.layers.1.mlp."
    t = gated(rng, start)
    config = {"model_type": "gemma3n", "text_config": {"activation_sparsity_pattern": pattern}}
    layer = fc.load(write(tmp_path, t, config), layer=1)
    x = rng.standard_normal((3, D))
    p = x @ t[start + "gate_proj.weight"].T
    if share:
        z = 1.6448536269514722
        p = np.maximum(p - p.mean(-1, keepdims=True) - z * p.std(-1, keepdims=True), 0)
    h = ACTIVATIONS["tanh"](p) * (x @ t[start + "up_proj.weight"].T)
    np.testing.assert_allclose(layer(x), h @ t[start + "down_proj.weight"].T, rtol=1e-9)
    assert (layer.inner is None) == (not share)


def test_gemma3n_has_a_pattern_of_its_own(tmp_path):
    tensors = gated(np.random.default_rng(0), "model.layers.9.mlp.")
    tensors |= gated(np.random.default_rng(0), "model.layers.10.mlp.")
    write(tmp_path, tensors, {"model_type": "gemma3n_text"})
    assert fc.load(tmp_path, layer=9).inner.sparsity == 0.95
    assert fc.load(tmp_path, layer=10).inner is None
    write(tmp_path, tensors, {"model_type": "gemma3n_text", "num_hidden_layers": 10})
    assert fc.load(tmp_path, layer=9).inner is None
    config = {"model_type": "gemma3n_text", "activation_sparsity_pattern": [0.5]}
    write(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=r"has activation_sparsity_pattern .*an entry for layer 9"):
        fc.load(tmp_path, layer=9)


# ---- the table


def test_names_of_rows_are_different():
    rows = (*models.FAMILIES, *models.MOE_FAMILIES)
    names = [row.name for row in rows]
    assert len(names) == len(set(names))
    types = [t for row in rows for t in row.model_types]
    assert len(types) == len(set(types))
    assert not set(types) & set(models.REFUSED)


def test_at_least_one_tower_of_a_model_is_known():
    for outer, towers in TOWERS.items():
        known = set(towers.values()) & (set(DEFAULTS) | set(models.REFUSED))
        assert known, outer


def test_old_attributes_of_rows_are_the_first_form():
    row = next(row for row in models.FAMILIES if row.name == "llama")
    assert (row.up, row.down, row.gate) == ("mlp.up_proj", "mlp.down_proj", "mlp.gate_proj")
    assert not row.in_out
    assert not row.biases
    assert row.blocks == ("mlp.",)
    mixture = next(row for row in models.MOE_FAMILIES if row.name == "gpt_oss")
    assert mixture.stacked == ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    assert (mixture.stacked_bias, mixture.layout) == ("_bias", "interleaved")
    assert mixture.dense is mixture
