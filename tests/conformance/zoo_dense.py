"""Model types whose feed-forward layers are dense: one row each, see zoo.py."""

from __future__ import annotations

from typing import Any

from blocks import torch
from zoo import Block, Model

# ---- what transformers has no single module for --------------------------------------------------


def bert(layer: Any, x: Any) -> Any:
    """Two modules; the second one also adds the residual and normalizes."""
    return layer.output.dense(layer.intermediate(x))


def normed_first(layer: Any, x: Any) -> Any:
    """As above, but the norm is in the first module, before the matrix."""
    first = layer.intermediate
    return layer.output.dense(first.intermediate_act_fn(first.dense(x)))


def mpt(block: Any, x: Any) -> Any:
    """The block adds the residual that it is given; here nothing."""
    return block(x, torch.zeros_like(x))


def albert(layer: Any, x: Any) -> Any:
    return layer.ffn_output(layer.activation(layer.ffn(x)))


def fc1_fc2(layer: Any, x: Any) -> Any:
    """The two matrices are modules of the decoder layer."""
    return layer.fc2(layer.activation_fn(layer.fc1(x)))


def xielu(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn.beta.fill_(0.5)
        layer.mlp.act_fn.eps.fill_(-0.01)


def w1_w3_w2(tensors: Any) -> Any:
    names = {"mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3"}
    names["mlp.down_proj"] = "feed_forward.w2"
    found = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


def new_names(tensors: Any) -> Any:
    """The names of gte's released files, in models whose type is that of their own code, "new"."""
    return {f"new.{name}": tensor for name, tensor in tensors.items()}


def released_t5(written: dict[str, Any]) -> dict[str, Any]:
    """Most published files have one key in place of three."""
    return {k: v for k, v in written.items() if k not in ("dense_act_fn", "is_gated_act")}


# ---- rows ----------------------------------------------------------------------------------------

ENCODER = (Block("encoder.layer.{}", call=bert),)
LLAMA = (Block("model.layers.{}.mlp"),)
GPT = (Block("transformer.h.{}.mlp"),)


def encoders(*model_types: str, **keys: Any) -> list[Model]:
    return [Model(t, ENCODER, keys, "AutoModel") for t in model_types]


def decoders(*model_types: str, blocks: tuple[Block, ...] = LLAMA, **keys: Any) -> list[Model]:
    return [Model(t, blocks, keys) for t in model_types]


def stacks(call: Any = fc1_fc2) -> tuple[Block, ...]:
    """The layers of an encoder and of a decoder."""
    return tuple(
        Block(f"model.{side}.layers.{{}}", load={"prefix": f"model.{side}"}, call=call)
        for side in ("encoder", "decoder")
    )


T5 = tuple(
    Block(f"{side}.block.{{}}.layer.{n}.DenseReluDense", load={"prefix": side})
    for side, n in (("encoder", 1), ("decoder", 2))
)


DENSE = [
    # two matrices
    *encoders("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "deberta"),
    *encoders("deberta-v2", "layoutlm", "megatron-bert", "ernie", "roformer", "nystromformer"),
    *encoders("xlm-roberta-xl", "rembert", "splinter", "data2vec-text"),
    *encoders("esm", mask_token_id=1),
    Model(
        "roberta-prelayernorm",
        (Block("encoder.layer.{}", call=normed_first),),
        head="AutoModel",
    ),
    Model("gpt2", GPT),
    Model("gpt2", GPT, {"n_inner": 12}, variant="inner"),
    Model("imagegpt", GPT, head="ImageGPTForCausalImageModeling"),
    Model("decision_transformer", (Block("encoder.h.{}.mlp"),), head="DecisionTransformerModel"),
    Model("openai-gpt", GPT),
    Model(
        "albert",
        (Block("encoder.albert_layer_groups.0.albert_layers.0", call=albert),),
        head="AutoModel",
    ),
    Model(
        "distilbert", (Block("distilbert.transformer.layer.{}.ffn"),), head="AutoModelForMaskedLM"
    ),
    *decoders("opt", blocks=(Block("model.decoder.layers.{}", call=fc1_fc2),)),
    *(
        Model(t, stacks(), head="AutoModelForSeq2SeqLM")
        for t in ("bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "plbart")
    ),
    Model("blenderbot-small", stacks(), head="AutoModelForSeq2SeqLM"),
    Model("speech_to_text", stacks(), head="Speech2TextForConditionalGeneration"),
    Model("xglm", (Block("model.layers.{}", call=fc1_fc2),)),
    Model(
        "whisper",
        stacks(),
        {"max_source_positions": 8, "max_target_positions": 8, "decoder_start_token_id": 0},
        head="WhisperForConditionalGeneration",
    ),
    *decoders("phi", "nanochat", "starcoder2", "nemotron", "arcee", "jais2", "persimmon"),
    *decoders("falcon", blocks=GPT, num_kv_heads=1),
    Model(
        "falcon",
        GPT,
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        variant="new",
    ),
    Model("gpt_neox", (Block("gpt_neox.layers.{}.mlp"),)),
    Model("bloom", (Block("transformer.h.{}.mlp", call=mpt),)),
    *decoders("gptj", "codegen", blocks=GPT, rotary_dim=4),
    Model("gpt_neo", GPT, {"attention_types": [[["global", "local"], 1]]}),
    *decoders("gpt_bigcode", blocks=GPT),
    Model("mpt", (Block("transformer.blocks.{}.ffn", call=mpt),)),
    Model("vit", (Block("layers.{}.mlp"),), head="ViTModel"),
    Model("deit", (Block("layers.{}.mlp"),), head="DeiTModel"),
    Model(
        "dinov2_with_registers",
        (Block("encoder.layer.{}.mlp"),),
        {"mlp_ratio": 2},
        head="Dinov2WithRegistersModel",
    ),
    Model("modernbert-decoder", LLAMA, {"cls_token_id": 0, "sep_token_id": 0}),
    Model("dinov2", (Block("encoder.layer.{}.mlp"),), {"mlp_ratio": 2}, head="Dinov2Model"),
    # gate, up and down
    *decoders("llama", "mistral", "ministral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3"),
    *decoders("smollm3", "granite", "cohere", "cohere2", "stablelm", "exaone4"),
    *decoders("gemma", "gemma2", "gemma3_text"),
    Model("llama", LLAMA, {"mlp_bias": True}, variant="bias"),
    *decoders("ministral3", "hyperclovax", "minicpm3", "hunyuan_v1_dense"),
    *decoders("phi3", "glm", "glm4"),
    Model("t5", T5, head="T5ForConditionalGeneration"),
    Model(
        "t5",
        T5,
        {"feed_forward_proj": "relu"},
        "T5ForConditionalGeneration",
        retell=released_t5,
        variant="released",
    ),
    Model(
        "t5",
        T5,
        {"feed_forward_proj": "gated-gelu"},
        "T5ForConditionalGeneration",
        retell=released_t5,
        variant="gated-released",
    ),
    *(
        Model(t, T5, {"feed_forward_proj": "gated-gelu"}, head=head, variant=variant)
        for t, head, variant in (
            ("t5", "T5ForConditionalGeneration", "gated"),
            ("mt5", "MT5ForConditionalGeneration", ""),
            ("umt5", "UMT5ForConditionalGeneration", ""),
        )
    ),
    Model("apertus", LLAMA, {"dtype": "float32"}, prepare=xielu),
    Model("bitnet", LLAMA, {"rms_norm_eps": 0.1}),
    Model("gte", (Block("layers.{}.mlp"),), head="GteModel"),
    Model("new", (Block("layers.{}.mlp"),), head="GteModel", made_as="gte", mend=new_names),
    Model("nomic_bert", (Block("layers.{}.mlp"),), head="NomicBertModel"),
    Model(
        "dinov2",
        (Block("encoder.layer.{}.mlp"),),
        {"mlp_ratio": 2, "use_swiglu_ffn": True},
        head="Dinov2Model",
        variant="giant",
    ),
    Model("falcon_h1", (Block("model.layers.{}.feed_forward"),), {"mlp_multipliers": [0.7, 1.3]}),
    Model("lfm2", (Block("model.layers.{}.feed_forward"),)),
    Model("recurrent_gemma", (Block("model.layers.{}.mlp_block"),)),
    Model(
        "gemma3n_text",
        LLAMA,
        {"activation_sparsity_pattern": [0.95, 0.0], "num_kv_shared_layers": 0},
    ),
    Model("gemma4_text", LLAMA),
    Model(
        "gemma4_text",
        LLAMA,
        {
            "use_double_wide_mlp": True,
            "num_kv_shared_layers": 1,
            "layer_types": ["full_attention"] * 2,
        },
        variant="wide",
    ),
    *decoders("seed_oss", "helium", "cwm", "diffllama", "olmo_hybrid", "vaultgemma", "ernie4_5"),
    Model("internlm2", LLAMA, made_as="llama", rename=w1_w3_w2),
    Model("qwen3_5_text", LLAMA),
    Model(
        "modernbert",
        (Block("model.layers.{}.mlp"),),
        {"cls_token_id": 0, "sep_token_id": 0},
        head="AutoModelForMaskedLM",
    ),
]
