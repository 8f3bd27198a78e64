"""fc.FFN against the dense feed-forward blocks of the transformers library: output, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from blocks import (
    HEADS,
    Arrays,
    D,
    F,
    Get,
    Tensors,
    block_of,
    compare,
    configuration,
    fill,
    generator,
    near,
    torch,
)

import ffncore as fc


def names(gate: str | None, up: str, down: str) -> Callable[[Get], Arrays]:
    """The matrices of torch.nn.Linear modules, and their biases if they have any."""

    def arrays(get: Get) -> Arrays:
        found = {}
        for ours, stem in (("gate", gate), ("up", up), ("down", down)):
            if stem is None:
                continue
            found[ours] = get(f"{stem}.weight")
            if f"{stem}.bias" in get:
                found[f"b_{ours}"] = get(f"{stem}.bias")
        return found

    return arrays


def conv1d(get: Get) -> Arrays:
    """[in, out], as GPT-2 has it."""
    found = names(None, "c_fc", "c_proj")(get)
    return found | {"up": found["up"].T, "down": found["down"].T}


def fused(stem: str, down: str, gate_first: bool = True) -> Callable[[Get], Arrays]:
    def arrays(get: Get) -> Arrays:
        order = ("gate", "up") if gate_first else ("up", "gate")
        both = get(f"{stem}.weight")
        half = len(both) // 2
        found = {order[0]: both[:half], order[1]: both[half:], "down": get(f"{down}.weight")}
        if f"{stem}.bias" in get:
            bias = get(f"{stem}.bias")
            found |= {f"b_{order[0]}": bias[:half], f"b_{order[1]}": bias[half:]}
            found["b_down"] = get(f"{down}.bias")
        return found

    return arrays


def with_residual(block: Any, x: Any) -> Any:
    """The block adds what it is given; here nothing."""
    return block(x, torch.zeros_like(x))


@dataclass(frozen=True)
class Dense:
    module: str
    config: str
    block: str
    activation: str | fc.Activation
    arrays: Callable[[Get], Arrays]
    arguments: dict[str, Any] = field(default_factory=dict)
    after: tuple[Any, ...] = ()  # block(config, *after)
    before: tuple[Any, ...] = ()  # block(*before, config)
    call: Callable[[Any, Any], Any] = lambda block, x: block(x)


LLAMA = names("gate_proj", "up_proj", "down_proj")
GATED = {"hidden_size": D, "intermediate_size": F, **HEADS}
HIDDEN = {"hidden_size": D, "intermediate_size": F, "num_attention_heads": 2}

BLOCKS = {
    "llama": Dense("llama", "LlamaConfig", "LlamaMLP", "silu", LLAMA, GATED),
    "llama-bias": Dense(
        "llama", "LlamaConfig", "LlamaMLP", "silu", LLAMA, {**GATED, "mlp_bias": True}
    ),
    "qwen3": Dense("qwen3", "Qwen3Config", "Qwen3MLP", "silu", LLAMA, GATED),
    "olmo2": Dense("olmo2", "Olmo2Config", "Olmo2MLP", "silu", LLAMA, GATED),
    "cohere2": Dense("cohere2", "Cohere2Config", "Cohere2MLP", "silu", LLAMA, GATED),
    "gemma": Dense("gemma", "GemmaConfig", "GemmaMLP", "gelu_tanh", LLAMA, GATED),
    "gemma2": Dense("gemma2", "Gemma2Config", "Gemma2MLP", "gelu_tanh", LLAMA, GATED),
    "phi": Dense("phi", "PhiConfig", "PhiMLP", "gelu_tanh", names(None, "fc1", "fc2"), GATED),
    "phi3": Dense(
        *("phi3", "Phi3Config", "Phi3MLP", "silu"),
        fused("gate_up_proj", "down_proj"),
        {**GATED, "pad_token_id": 0},
    ),
    "gpt2": Dense(
        *("gpt2", "GPT2Config", "GPT2MLP", "gelu_tanh", conv1d), {"n_embd": D}, before=(F,)
    ),
    "gpt-j": Dense(
        *("gptj", "GPTJConfig", "GPTJMLP", "gelu_tanh", names(None, "fc_in", "fc_out")),
        {"n_embd": D, "n_head": 2, "rotary_dim": 4},
        before=(F,),
    ),
    "gpt-neox": Dense(
        *("gpt_neox", "GPTNeoXConfig", "GPTNeoXMLP", "gelu"),
        names(None, "dense_h_to_4h", "dense_4h_to_h"),
        HIDDEN,
    ),
    "starcoder2": Dense(
        *("starcoder2", "Starcoder2Config", "Starcoder2MLP", "gelu_tanh"),
        names(None, "c_fc", "c_proj"),
        GATED,
    ),
    "falcon": Dense(
        *("falcon", "FalconConfig", "FalconMLP", "gelu"),
        names(None, "dense_h_to_4h", "dense_4h_to_h"),
        {"hidden_size": D, "ffn_hidden_size": F, "num_attention_heads": 2},
    ),
    "mpt": Dense(
        *("mpt", "MptConfig", "MptMLP", "gelu", names(None, "up_proj", "down_proj")),
        {"d_model": D, "n_heads": 2},
        call=with_residual,
    ),
    "bloom": Dense(
        *("bloom", "BloomConfig", "BloomMLP", "gelu_tanh"),
        names(None, "dense_h_to_4h", "dense_4h_to_h"),
        {"hidden_size": D, "n_head": 2},
        call=with_residual,
    ),
    "clip": Dense(
        *("clip", "CLIPTextConfig", "CLIPMLP", "quick_gelu", names(None, "fc1", "fc2")), HIDDEN
    ),
    "vit": Dense("vit", "ViTConfig", "ViTMLP", "gelu", names(None, "fc1", "fc2"), HIDDEN),
    "nemotron": Dense(
        *("nemotron", "NemotronConfig", "NemotronMLP", "relu2"),
        names(None, "up_proj", "down_proj"),
        GATED,
    ),
    "modernbert": Dense(
        *("modernbert", "ModernBertConfig", "ModernBertMLP", "gelu", fused("Wi", "Wo")), HIDDEN
    ),
    "t5": Dense(
        *("t5", "T5Config", "T5DenseActDense", "relu", names(None, "wi", "wo")),
        {"d_model": D, "d_ff": F, "feed_forward_proj": "relu"},
    ),
    "t5-v1.1": Dense(
        *("t5", "T5Config", "T5DenseGatedActDense", "gelu_tanh", names("wi_0", "wi_1", "wo")),
        {"d_model": D, "d_ff": F, "feed_forward_proj": "gated-gelu"},
    ),
    "moonshine": Dense(
        *("moonshine", "MoonshineConfig", "MoonshineDecoderMLP", "silu"),
        fused("fc1", "fc2", gate_first=False),
        {"hidden_size": D, "intermediate_size": F},
        after=("silu",),
    ),
    "falcon-h1": Dense(
        *("falcon_h1", "FalconH1Config", "FalconH1MLP"),
        fc.Activation("silu", gate_multiplier=0.7),
        LLAMA,
        {**GATED, "mlp_multipliers": [0.7, 1.3]},
        call=lambda block, x: block(x) / 1.3,  # the factor of the output is outside of the block
    ),
    "deepseek-v4": Dense(
        *("deepseek_v4", "DeepseekV4Config", "DeepseekV4MLP"),
        fc.Activation("silu", limit=1.0),
        LLAMA,
        {"hidden_size": D, "moe_intermediate_size": F, "swiglu_limit": 1.0},
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name):
    row, rng = BLOCKS[name], generator(name)
    config = configuration(row.module, row.config, **row.arguments)
    block = fill(block_of(row.module, row.block, *row.before, config, *row.after), rng)
    layer = fc.FFN(fc.FFNWeights(**row.arrays(Tensors(block.state_dict()))), row.activation)
    compare(block, layer, row.arrays, rng.standard_normal((2, 5, D)), rng, call=row.call)


def test_bert():
    """Two modules; the second also adds the residual and normalizes, which fc.FFN does not do."""
    rng = generator("bert")
    config = configuration("bert", "BertConfig", **HIDDEN)
    block = torch.nn.ModuleDict(
        {
            "intermediate": block_of("bert", "BertIntermediate", config),
            "output": block_of("bert", "BertOutput", config).dense,
        }
    )
    arrays = names(None, "intermediate.dense", "output")
    layer = fc.FFN(fc.FFNWeights(**arrays(Tensors(fill(block, rng).state_dict()))), "gelu")
    x = rng.standard_normal((2, 5, D))
    compare(block, layer, arrays, x, rng, call=lambda b, x: b["output"](b["intermediate"](x)))


def test_apertus():
    """Its activation has two parameters of its own."""
    rng = generator("apertus")
    config = configuration("apertus", "ApertusConfig", **GATED, dtype=torch.float32)
    block = fill(block_of("apertus", "ApertusMLP", config), rng)
    numbers = dict(block.act_fn.named_parameters())
    block.act_fn.beta.data.fill_(0.5)
    block.act_fn.eps.data.fill_(-0.01)
    alphas = {name: float(tensor.detach().reshape(())) for name, tensor in numbers.items()}
    arrays = names(None, "up_proj", "down_proj")
    weights = fc.FFNWeights(**arrays(Tensors(block.state_dict())))
    layer = fc.FFN(weights, fc.Activation("xielu", **alphas, beta=0.5, eps=-0.01))
    x = rng.standard_normal((2, 5, D))
    without = tuple(f"act_fn.{name}" for name in numbers)
    compare(block, layer, arrays, x, rng, without=without)
    grads = {name: tensor.grad.numpy().reshape(()) for name, tensor in numbers.items()}
    y, saved = layer.forward(x)
    found = layer.backward(np.ones_like(y), saved).activation
    for tensor in block.parameters():
        tensor.grad = None
    block(torch.from_numpy(x)).sum().backward()
    grads = {name: tensor.grad.numpy().reshape(()) for name, tensor in numbers.items()}
    for name, grad in grads.items():
        near(np.asarray(getattr(found, name)), grad, name)
