"""config.json: the defaults of the families, and values of the wrong type."""

import json
import math

import numpy as np
import pytest
from support_checkpoints import DEEPSEEK_V3, LLAMA, deepseek_v3, llama, write

import ffncore as fc
from ffncore import models
from ffncore.models import finding, loading
from ffncore.models.families.around import around_of
from ffncore.models.files.config import Config
from ffncore.models.files.defaults import DEFAULTS, FIXED, NESTED, SYNONYMS
from ffncore.models.mixture_loading import routing

ROWS = (*models.FAMILIES, *models.MOE_FAMILIES)
TYPES = [(row, model_type) for row in ROWS for model_type in row.model_types]
KINDS = {"hidden_act": str, "hidden_activation": str, "activation_function": str}
KINDS |= {"topk_method": str, "scoring_func": str, "norm_topk_prob": bool, "mlp_bias": bool}
KINDS |= dict.fromkeys(("activation", "afn", "mlp_hidden_act", "dense_act_fn"), str)
KINDS |= dict.fromkeys(("encoder_hidden_act", "decoder_hidden_act", "feed_forward_proj"), str)
KINDS |= dict.fromkeys(("expert_selection_fn", "ffn_config.ffn_act_fn.name"), str)
KINDS |= {"shared_expert_combination_strategy": str}
KINDS |= dict.fromkeys(("use_bias", "enable_bias", "bias", "moe_renormalize"), bool)
KINDS |= {"do_layer_norm_before": bool}
KINDS |= dict.fromkeys(("parallel_attn", "use_parallel_residual"), bool)
KINDS |= dict.fromkeys(("routed_scaling_factor", "swiglu_alpha", "swiglu_limit"), float)
KINDS |= dict.fromkeys(("residual_multiplier", "scale_depth", "rms_norm_eps", "route_scale"), float)
KINDS |= dict.fromkeys(("router_scaling_factor", "moe_routed_scaling_factor"), float)
KINDS |= dict.fromkeys(("moe_router_scaling_factor", "router_jitter_noise", "moe_norm_min"), float)
KINDS |= dict.fromkeys(("mlp_multipliers.0", "mlp_multipliers.1", "layer_norm_eps"), float)
KINDS |= {"moe_router_logit_softcapping": float, "activation_sparsity_pattern": list}
KINDS |= {"ffn_config.moe_normalize_expert_weights": float}


class Recorder(dict):
    """A config.json without any key, which remembers the keys that are read."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)


def test_every_model_type_has_its_table_and_nothing_else():
    assert {model_type for _, model_type in TYPES} == set(DEFAULTS)
    assert set(FIXED) | {model_type for model_type, _ in SYNONYMS} <= set(DEFAULTS)
    assert not NESTED & set(DEFAULTS)  # their towers have the keys
    for table in DEFAULTS.values():
        for key, value in table.items():
            assert value is None or type(value) is KINDS.get(key, int), key


@pytest.mark.parametrize("row, model_type", TYPES, ids=lambda v: v if isinstance(v, str) else "")
def test_every_key_that_is_read_has_a_row_in_the_table(row, model_type, tmp_path):
    """Each row of the table is read by a layer, and nothing else is."""
    table = DEFAULTS[model_type]
    told = {k: v for k, v in SAMPLES.items() if table.get(k, 0) is None}
    told |= MORE.get(model_type, {})
    own = Recorder({"model_type": model_type, **told})
    for tower in ("encoder", "decoder") if model_type == "moonshine" else ("",):
        config = Config(tmp_path / "config.json", own, tower=tower).at(0, row.by_layer)
        if tower != "decoder":
            own.asked.clear()
        if isinstance(row, models.MoEFamily):
            routing(config, row, 256)
            condition = row.shared_if.get(model_type)
            if isinstance(condition, str):
                config.integer(condition, 0)
            if row.null_experts is not None:
                config.integer(row.null_experts, 0)
            if row.assembly is not None:
                row.assembly(config)
        for kind in ("experts", "shared", "dense"):
            assert isinstance(loading._activation(None, row, config, kind), fc.Activation)
        around_of(config)
        if row.inner is not None:
            row.inner(config)
        if row.multiplier is not None:
            config.number(row.multiplier)
        if row.shared_layers:
            assert finding._numbers(row, config, 0) == range(config.integer("num_hidden_layers", 1))
        if any(form.norm for form in row.forms):
            config.number(row.norm_eps_key)
        if config.reads(row.bias_key):
            config.flag(row.bias_key)
    only = set(getattr(row, "only", {})) - set(table)  # may be there, and only so
    assert own.asked - only - (ALSO - set(table)) == set(table)


# Second names of keys, and the parts of config.json that towers could have.
ALSO = {"num_experts_per_tok", "norm_topk_prob", "n_group", "mlp_multipliers", "ffn_config"}

# Keys with which all others are read.
MORE = {
    "deepseek_v2": {"topk_method": "group_limited_greedy"},
    "cohere2_moe": {"expert_selection_fn": "sigmoid"},
    "step3p5": {"swiglu_limits": [7.0], "swiglu_limits_shared": [16.0]},
    "gemma4_text": {"top_k_experts": 2},
    "dots1": {"num_experts_per_tok": 2, "n_shared_experts": 1},
}

SAMPLES = {
    "hidden_act": "silu",
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


@pytest.fixture
def moe(tmp_path):
    """Load layer 0 of a DeepSeek-V3 with a changed config.json."""

    def load(config, **options):
        return fc.load(write(tmp_path, deepseek_v3(), config), **options)

    return load


def test_a_key_that_is_absent_has_the_default_of_the_class(moe):
    config = without(DEEPSEEK_V3, "routed_scaling_factor", "norm_topk_prob", "hidden_act")
    layer = moe(config)
    assert layer.router.options["routed_scaling_factor"] == 2.5
    assert layer.router.options["norm_topk_prob"] is True
    assert layer.activation == fc.Activation("silu")
    # The default of 8 groups would leave one expert per group.
    with pytest.raises(ValueError, match=r"config\.json .*do not fit: .*group"):
        moe(without(DEEPSEEK_V3, "n_group", "topk_group"))


@pytest.mark.parametrize("key", sorted(SAMPLES))
def test_a_model_type_without_a_class_has_no_defaults(moe, key):
    config = {"model_type": "kimi_k2", **SAMPLES}
    assert moe(config).router.options["routed_scaling_factor"] == 2.0
    with pytest.raises(
        ValueError, match=rf"config\.json has no {key}, for which model_type 'kimi_k2' has"
    ):
        moe(without(config, key))


WRONG = {
    "num_experts_per_tok": [None, "8", [8], True, 2.0, -1, 0, math.nan, 9, 10**40, {}],
    "n_group": [None, "2", [2], True, 2.0, -1, 0, 9, 3],
    "topk_group": [None, "1", True, 0, 3],
    "n_shared_experts": [None, "1", True, -1, 1.0],
    "routed_scaling_factor": [None, "2.5", [2.5], True, 0, -1.0, math.nan, math.inf, 10**400],
    "norm_topk_prob": [None, "true", 1, 0, [True]],
    "hidden_act": [None, 7, ["silu"], True, "silo", ""],
    "scoring_func": [None, "softmax", 7],
    "topk_method": [None, "greedy", ["noaux_tc"]],
    "model_type": [None, 7, ["deepseek_v3"], "deepseek_v33"],
    "text_config": ["deepseek_v3", 7, [], True],
}


@pytest.mark.parametrize("key, value", [(k, v) for k, values in WRONG.items() for v in values])
def test_a_value_that_is_no_such_thing(moe, tmp_path, key, value):
    with pytest.raises(ValueError, match=rf"config\.json (has|says) {key} ") as caught:
        moe({**DEEPSEEK_V3, key: value})
    assert len(str(caught.value)) < 700
    if key not in ("model_type", "text_config") and value not in ("silo", ""):
        assert [info.problem for info in models.layers(tmp_path)] == [str(caught.value)] * 2


def test_the_callers_activation_overrules_a_wrong_one(moe):
    config = {**DEEPSEEK_V3, "hidden_act": ["silu"]}
    assert moe(config, activation="relu").activation == fc.Activation("relu")


@pytest.mark.parametrize("key", ["swiglu_alpha", "swiglu_limit"])
@pytest.mark.parametrize("value", [None, "7.0", True, 0, -7.0, math.nan])
def test_options_of_an_activation(tmp_path, key, value):
    rng = np.random.default_rng(3)
    shapes = {"router.weight": (4, 2), "router.bias": (4,)}
    shapes |= {"experts.gate_up_proj": (4, 2, 6), "experts.gate_up_proj_bias": (4, 6)}
    shapes |= {"experts.down_proj": (4, 3, 2), "experts.down_proj_bias": (4, 2)}
    tensors = {f"layers.0.mlp.{n}": rng.standard_normal(s).astype("f4") for n, s in shapes.items()}
    write(tmp_path, tensors, {"model_type": "gpt_oss", "hidden_act": "gelu"})
    # Its code reads no hidden_act.
    expected = fc.Activation("silu", alpha=1.702, limit=7.0, up_offset=1.0)
    assert fc.load(tmp_path).activation == expected
    write(tmp_path, tensors, {"model_type": "gpt_oss", key: value})
    with pytest.raises(ValueError, match=rf"config\.json has {key} .*; expected a finite number"):
        fc.load(tmp_path)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is a JSON array; expected an object"),
        ("7", "is a JSON number"),
        ("null", "is a JSON null"),
        ('{"a": ' * 100_000, "is (nested too deeply|not JSON)"),
    ],
)
def test_no_config_json(tmp_path, text, sentence):
    write(tmp_path, llama())
    (tmp_path / "config.json").write_text(text, "utf-8")
    for call in (fc.load, models.layers):
        with pytest.raises(ValueError, match=rf"config\.json {sentence}"):
            call(tmp_path)


def test_parts_beside_the_text_model_do_not_count(tmp_path):
    text = {"model_type": "gemma3_text"}
    outer = {"model_type": "gemma3", "hidden_activation": "relu"}
    for config in ({**outer, "text_config": text}, outer, {**outer, "text_config": {}}):
        assert fc.load(write(tmp_path, llama(), config)).activation.name == "gelu_tanh"
    config = {**outer, "text_config": {**text, "hidden_activation": "relu"}}
    assert fc.load(write(tmp_path, llama(), config)).activation.name == "relu"


@pytest.mark.parametrize(
    "config, name",
    [
        ({"model_type": "gemma"}, "gelu_tanh"),
        ({"model_type": "gemma", "hidden_act": "gelu"}, "gelu_tanh"),
        ({"model_type": "gemma", "hidden_act": "silu"}, "silu"),
        ({"model_type": "gemma2", "hidden_act": "silu"}, "gelu_tanh"),
        ({"model_type": "llama", "hidden_activation": "gelu"}, "silu"),
        ({"hidden_act": "relu"}, "relu"),
    ],
)
def test_the_key_of_the_activation(tmp_path, config, name):
    assert fc.load(write(tmp_path, llama(), config)).activation.name == name


def test_a_config_json_that_does_not_tell_the_activation(tmp_path):
    write(tmp_path, llama(), {"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(ValueError, match=r"config\.json does not name the activation"):
        fc.load(tmp_path)
    write(tmp_path, llama(), {"model_type": "unknown"})
    with pytest.raises(ValueError, match=r"config\.json does not name the activation"):
        fc.load(tmp_path, family="llama")
    assert fc.load(tmp_path, family="llama", activation="relu").activation.name == "relu"


@pytest.mark.parametrize("model_type", ["bert", "esm", "gpt2", "imagegpt", "decision_transformer"])
def test_defaults_of_plain_families(tmp_path, model_type):
    shapes = {"intermediate.dense": (6, 4), "output.dense": (4, 6)}
    start = "encoder.layer.0."
    if model_type not in ("bert", "esm"):
        shapes, start = {"mlp.c_fc": (4, 6), "mlp.c_proj": (6, 4)}, "h.0."
    tensors = {f"{start}{n}.weight": np.ones(s, "f4") for n, s in shapes.items()}
    out = -1 if start == "h.0." else 0
    tensors |= {f"{start}{n}.bias": np.ones(s[out], "f4") for n, s in shapes.items()}
    layer = fc.load(write(tmp_path, tensors, {"model_type": model_type}))
    names = {"gpt2": "gelu_tanh", "imagegpt": "quick_gelu", "decision_transformer": "relu"}
    assert layer.activation.name == names.get(model_type, "gelu")
    del tensors[min(name for name in tensors if name.endswith("bias"))]
    write(tmp_path, tensors, {"model_type": model_type})
    with pytest.raises(ValueError, match=r"has no tensor .*\.bias; expected one"):
        fc.load(tmp_path)


def test_biases_that_config_json_speaks_of(tmp_path):
    write(tmp_path, llama(), {**LLAMA, "mlp_bias": True})
    with pytest.raises(ValueError, match=r"has no tensor .*gate_proj\.bias; expected one"):
        fc.load(tmp_path)
    write(tmp_path, llama(), {**LLAMA, "mlp_bias": "no"})
    with pytest.raises(ValueError, match=r"config\.json has mlp_bias 'no'; expected true or"):
        fc.load(tmp_path)


def test_a_number_of_shared_experts_that_the_tensors_do_not_have(moe, tmp_path):
    with pytest.raises(ValueError, match=r"shared_experts\.gate_proj\.weight exists, but .*json"):
        moe({**DEEPSEEK_V3, "n_shared_experts": 0})
    tensors = {n: t for n, t in deepseek_v3().items() if "shared" not in n}
    write(tmp_path, tensors, DEEPSEEK_V3)
    with pytest.raises(ValueError, match=r"has no tensor .*shared_experts\.gate_proj\.weight"):
        fc.load(tmp_path)
    write(tmp_path, tensors, {**DEEPSEEK_V3, "n_shared_experts": 0})
    assert fc.load(tmp_path).shared is None


def test_repr_of_values_is_short(moe):
    with pytest.raises(
        ValueError, match=r"hidden_act \['\\u2603x*\.\.\.; expected a name"
    ) as caught:
        moe({**DEEPSEEK_V3, "hidden_act": ["☃" + "x" * 5000]})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["hidden_act", "model_type", "text_config", "n_group"])
def test_values_that_are_nested_deeply(tmp_path, key):
    """Text that is nested as deeply as json reads, but deeper than json writes."""
    write(tmp_path, deepseek_v3())
    for depth in range(300, 1200, 100):
        text = json.dumps({**DEEPSEEK_V3, key: 0})
        text = text.replace(f'"{key}": 0', f'"{key}": ' + "[" * depth + "]" * depth)
        (tmp_path / "config.json").write_text(text, "utf-8")
        with pytest.raises(ValueError, match=r"config\.json (has|says|is nested)"):
            fc.load(tmp_path)


def test_a_repeated_key_is_the_last_one(tmp_path):
    """The last value counts, as in every JSON reader."""
    write(tmp_path, llama())
    text = json.dumps(LLAMA)[:-1] + ', "hidden_act": "relu"}'
    (tmp_path / "config.json").write_text(text, "utf-8")
    assert fc.load(tmp_path).activation.name == "relu"
