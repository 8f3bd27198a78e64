"""Rows of text models whose layers have no experts. row.py describes the fields.

Names are those of released files and of transformers 5; where they differ, the row has both. Tests:
tests/models/test_models.py, tests/models/test_families.py.
"""

from __future__ import annotations

from .names import fused, gated, numbered, plain
from .row import Family, Names
from .special import gemma3n_sparsity, t5_activation

_FALCON = ("mlp.", "dense_h_to_4h", "dense_4h_to_h")
_T5 = tuple(f"layer.{i}.DenseReluDense." for i in (1, 2))

DENSE = (
    Family(
        "bert",
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "esm", "deberta")
        + ("deberta-v2", "layoutlm", "megatron-bert", "ernie", "xlm-roberta-xl", "roformer")
        + ("nystromformer", "rembert", "roberta-prelayernorm", "splinter", "data2vec-text"),
        "encoder.layer.{}.",
        (plain("", "intermediate.dense", "output.dense", biases=True),),
    ),
    Family(
        "gpt2",  # its class Conv1D stores [in, out]
        ("gpt2", "imagegpt", "decision_transformer", "openai-gpt"),
        "h.{}.",
        (plain("mlp.", "c_fc", "c_proj", in_out=True, biases=True),),
        activation_keys=("activation_function", "afn"),
    ),
    Family(
        "llama",
        ("llama", "mistral", "ministral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "smollm3")
        + ("granite", "cohere", "cohere2", "stablelm", "exaone4", "ministral3", "hyperclovax")
        + ("minicpm3", "hunyuan_v1_dense", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")
        + ("qwen3_5_text", "voxtral_realtime_text", "voxtral_realtime_encoder", "seed_oss")
        + ("helium", "cwm", "diffllama", "olmo_hybrid"),
        "layers.{}.",
        (gated("mlp."),),
    ),
    Family(
        "gemma",  # the names of llama, another key for the activation
        ("gemma", "gemma2", "gemma3_text", "vaultgemma"),
        "layers.{}.",
        (gated("mlp."),),
        activation_keys=("hidden_activation", "hidden_act"),
    ),
    Family(
        "gemma3n",
        ("gemma3n_text",),
        "layers.{}.",
        (gated("mlp."),),
        activation_keys=("hidden_activation",),
        by_layer=("activation_sparsity_pattern",),
        inner=gemma3n_sparsity,
        keys=("activation_sparsity_pattern", "num_hidden_layers"),
    ),
    Family("ernie4_5", ("ernie4_5",), "layers.{}.", (gated("mlp."),), bias_key="use_bias"),
    Family(
        "t5",
        ("t5", "mt5", "umt5"),
        "block.{}.",
        (
            *(plain(start, "wi", "wo") for start in _T5),
            *(Names(start, gate="wi_0", up="wi_1", down="wo") for start in _T5),
        ),
        told_activation=t5_activation,
        keys=("dense_act_fn", "feed_forward_proj"),
    ),
    Family(
        "albert",
        ("albert",),
        "albert_layer_groups.{}.albert_layers.0.",
        (plain("", "ffn", "ffn_output", biases=True),),
        shared_layers=True,
        keys=("num_hidden_layers", "num_hidden_groups", "inner_group_num"),
    ),
    Family(
        "distilbert",
        ("distilbert",),
        "layer.{}.",
        (plain("ffn.", "lin1", "lin2", biases=True),),
        activation_keys=("activation",),
    ),
    Family(
        "opt",
        ("opt",),
        "layers.{}.",
        (plain("", "fc1", "fc2"),),
        activation_keys=("activation_function",),
        bias_key="enable_bias",
    ),
    Family(
        "bart",
        ("bart", "mbart", "whisper", "pegasus", "marian", "m2m_100", "blenderbot")
        + ("blenderbot-small", "plbart", "xglm", "speech_to_text", "qwen2_audio_encoder")
        + ("voxtral_encoder", "audioflamingo3_encoder", "qwen3_omni_moe_audio_encoder"),
        "layers.{}.",
        (plain("", "fc1", "fc2", biases=True),),
        activation_keys=("activation_function",),
    ),
    Family("phi", ("phi",), "layers.{}.", (plain("mlp.", "fc1", "fc2", biases=True),)),
    Family("nanochat", ("nanochat",), "layers.{}.", (plain("mlp.", "fc1", "fc2"),)),
    Family(
        "phi3",
        ("phi3", "glm", "glm4", "dia_encoder", "dia_decoder", "glm4v_text", "glm_ocr_text"),
        "layers.{}.",
        (fused("mlp."),),
    ),
    Family(
        "falcon",
        ("falcon",),
        "h.{}.",
        (plain(*_FALCON),),
        activation_keys=("activation",),
        bias_key="bias",
    ),
    Family("bloom", ("bloom",), "h.{}.", (plain(*_FALCON, biases=True),)),
    Family("gpt_neox", ("gpt_neox", "persimmon"), "layers.{}.", (plain(*_FALCON, biases=True),)),
    Family(
        "gptj",
        ("gptj", "codegen"),
        "h.{}.",
        (plain("mlp.", "fc_in", "fc_out", biases=True),),
        activation_keys=("activation_function",),
    ),
    Family(
        "gpt_neo",
        ("gpt_neo", "gpt_bigcode"),
        "h.{}.",
        (plain("mlp.", "c_fc", "c_proj", biases=True),),
        activation_keys=("activation_function",),
    ),
    Family(
        "starcoder2",
        ("starcoder2",),
        "layers.{}.",
        (plain("mlp.", "c_fc", "c_proj"),),
        bias_key="use_bias",
    ),
    Family("mpt", ("mpt",), "blocks.{}.", (plain("ffn.", "up_proj", "down_proj"),)),
    Family(
        "nemotron",
        ("nemotron", "arcee", "jais2"),
        "layers.{}.",
        (plain("mlp.", "up_proj", "down_proj"),),
    ),
    Family(
        "apertus",
        ("apertus",),
        "layers.{}.",
        (plain("mlp.", "up_proj", "down_proj"),),
        activation_tensors={
            name: f"mlp.act_fn.{name}" for name in ("alpha_p", "alpha_n", "beta", "eps")
        },
    ),
    Family("bitnet", ("bitnet",), "layers.{}.", (gated("mlp.", norm="rms:ffn_sub_norm"),)),
    Family(
        "kosmos2",
        ("kosmos_2_text_model",),
        "layers.{}.",
        (plain("ffn.", "fc1", "fc2", biases=True, norm="layer:ffn_layernorm"),),
        activation_keys=("activation_function",),
        norm_eps_key="layer_norm_eps",
    ),
    Family(
        "modernbert",  # transformers calls the half that is activated "input"
        ("modernbert", "modernbert-decoder"),
        "layers.{}.",
        (Names("mlp.", gate_up="Wi", down="Wo"),),
        activation_keys=("hidden_activation",),
    ),
    Family(
        "moonshine",
        ("moonshine",),
        "layers.{}.",
        (
            plain("mlp.", "fc1", "fc2", biases=True, tower="encoder"),
            Names(
                "mlp.", gate_up="fc1", down="fc2", order="up_first", biases=True, tower="decoder"
            ),
        ),
        activation_keys=("{tower}_hidden_act",),
    ),
    Family(
        "gte",
        ("gte", "new"),
        "layers.{}.",
        (
            Names(
                "mlp.",
                gate_up="up_gate_proj",
                down="down_proj",
                order="up_first",
                layer="encoder.layer.{}.",
            ),
            gated("mlp."),
        ),
    ),
    Family(
        "nomic_bert",
        ("nomic_bert",),
        "layers.{}.",
        (Names("mlp.", gate="fc12", up="fc11", down="fc2"), gated("mlp.")),
    ),
    Family(
        "falcon_h1",
        ("falcon_h1",),
        "layers.{}.",
        (gated("feed_forward."),),
        activation_options={"gate_multiplier": "mlp_multipliers.0"},
        multiplier="mlp_multipliers.1",
    ),
    Family("lfm2", ("lfm2", "internlm2"), "layers.{}.", (numbered("feed_forward."),)),
    Family(
        "recurrent_gemma",
        ("recurrent_gemma",),
        "layers.{}.",
        (gated("mlp_block.", biases=True),),
        activation_keys=("hidden_activation",),
    ),
)
