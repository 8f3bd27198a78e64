"""Rows of the towers that read images or sound, and of models that are such a tower alone. row.py
describes the fields. Tests: tests/models/test_towers.py, tests/models/test_families.py.
"""

from __future__ import annotations

from .names import gated, plain
from .row import Family, Names

VISION = (
    Family(
        "clip",
        ("clip_vision_model", "clip_text_model", "siglip_vision_model", "siglip_text_model")
        + ("siglip2_vision_model", "siglip2_text_model"),
        "layers.{}.",
        (plain("mlp.", "fc1", "fc2", biases=True),),
        equal_towers=True,
    ),
    Family(
        "vit",
        ("vit", "deit"),
        "encoder.layer.{}.",
        (
            plain("", "intermediate.dense", "output.dense", biases=True),
            plain("mlp.", "fc1", "fc2", biases=True, layer="layers.{}."),
        ),
    ),
    Family(
        "dinov2",
        ("dinov2", "dinov2_with_registers"),
        "layer.{}.",
        tuple(
            form
            for layer in ("layer.{}.", "layers.{}.")
            for form in (
                plain("mlp.", "fc1", "fc2", biases=True, layer=layer),
                # The code of gated layers does not read the key of the activation.
                Names(
                    "mlp.",
                    gate_up="weights_in",
                    down="weights_out",
                    biases=True,
                    activation="silu",
                    layer=layer,
                ),
                gated("mlp.", biases=True, activation="silu", layer=layer),
            )
        ),
    ),
    Family(
        "idefics3_vision",  # the names of clip beside a language model
        ("idefics3_vision", "idefics2_vision", "smolvlm_vision", "glmasr_encoder")
        + ("kosmos_2_vision_model", "minimax_m3_vl_vision", "janus_vision_model"),
        "layers.{}.",
        (plain("mlp.", "fc1", "fc2", biases=True),),
    ),
    Family(
        "step3p5_vision",
        ("step3p5_vision",),
        "resblocks.{}.",
        (
            plain("mlp.", "c_fc", "c_proj", biases=True),
            plain("mlp.", "fc1", "fc2", biases=True, layer="layers.{}."),
        ),
    ),
    Family(
        "internvl_vision",
        ("internvl_vision",),
        "encoder.layer.{}.",
        (
            plain("mlp.", "fc1", "fc2", biases=True),
            plain("mlp.", "fc1", "fc2", biases=True, layer="layers.{}."),
        ),
    ),
    Family(
        "llama4_vision",
        ("llama4_vision_model",),
        "layers.{}.",
        (plain("mlp.", "fc1", "fc2", biases=True),),
    ),
    Family(
        "qwen3_vision",
        ("qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_5_vision", "qwen3_5_moe_vision")
        + ("qwen3_omni_moe_vision_encoder",),
        "blocks.{}.",
        (plain("mlp.", "linear_fc1", "linear_fc2", biases=True),),
    ),
    Family(
        "qwen2_vision",
        ("qwen2_vl_vision",),
        "blocks.{}.",
        (plain("mlp.", "fc1", "fc2", biases=True),),
    ),
    Family(
        "qwen2_5_vision",
        ("qwen2_5_vl_vision", "glm_ocr_vision", "exaone4_5_vision"),
        "blocks.{}.",
        (gated("mlp.", biases=True),),
    ),
    Family("glm4v_vision", ("glm4v_vision",), "blocks.{}.", (gated("mlp."),)),
    Family("got_ocr2_vision", ("got_ocr2_vision",), "layers.{}.", (plain("mlp.", "lin1", "lin2"),)),
    Family("ovis2_vision", ("ovis2_vision",), "layers.{}.", (gated("ffn."),)),
    Family(
        "kimi_vision",
        ("kimi_k25_vision",),
        "blocks.{}.",
        (
            plain("mlp.", "fc0", "fc1", biases=True),
            plain("mlp.", "fc1", "fc2", biases=True, layer="layers.{}."),
        ),
    ),
    Family("pixtral", ("pixtral",), "layers.{}.", (gated("feed_forward."),)),
    Family(
        "gemma4_vision",
        ("gemma4_vision",),
        "layers.{}.",
        (
            Names(
                "mlp.",
                gate="gate_proj",
                up="up_proj",
                down="down_proj",
                weight=".linear.weight",
                bias=".linear.bias",
            ),
        ),
        activation_keys=("hidden_activation",),
        refuses={
            "mlp.up_proj.input_max": "its linear layers clip their inputs and outputs "
            "(use_clipped_linears), which fc.FFN does not compute"
        },
    ),
)
