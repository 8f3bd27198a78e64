"""What stands around the block of each model: norms, residual multipliers, parallel attention.

A layer object does not compute these; fc.load keeps them as layer.around, and LayerInfo.around has
them. A model_type that is not in the table has a norm of the block's input. Tests:
tests/models/test_around.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ...layers.around import Around
from ..files.config import Config

_NORMS: dict[str, Iterable[str]] = {
    "post": (
        *("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "deberta"),
        *("deberta-v2", "layoutlm", "ernie", "roformer", "splinter", "data2vec-text"),
        *("albert", "distilbert", "openai-gpt", "gte", "new", "nomic_bert", "rembert"),
        *("nystromformer", "bart", "marian", "plbart", "blenderbot-small"),
    ),
    "output": ("olmo2", "olmo3", "exaone4", "flex_olmo", "olmo_hybrid"),
    "pre and output": (
        *("gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "glm4", "afmoe"),
        *("glm4v_text", "glm_ocr_text", "kolibri1", "vaultgemma", "gemma4_vision"),
    ),
}
_NORM_OF = {model_type: norms for norms, types in _NORMS.items() for model_type in types}

# Attention and block read the same residual.
_PARALLEL = {"phi", "gptj", "codegen", "cohere", "cohere2", "cohere2_moe"}

# Model types whose config.json may say so.
_PARALLEL_KEYS = {
    "gpt_neox": "use_parallel_residual",
    "falcon": "parallel_attn",
    "stablelm": "use_parallel_residual",
}

_RESIDUAL_KEYS = dict.fromkeys(
    ("granite", "granitemoe", "granitemoeshared", "granitemoehybrid", "hyperclovax"),
    "residual_multiplier",
)

# Keys of config.json whose values are shown.
_SHOWN_KEYS = {"minimax": ("mlp_alpha_factor", "mlp_beta_factor")}

# Model types whose norms are behind the sum if config.json says so.
_POST_UNLESS = {"opt": "do_layer_norm_before"}

_NOTES: dict[str, tuple[str, ...]] = {
    "gemma3n_text": ("AltUp and Laurel around the whole layer",),
    "gemma4_text": (
        "each branch has norms of its own, and the router reads the residual without them",
        "the result of the layer is multiplied by layer_scalar",
    ),
    "longcat_flash": ("its output joins two sublayers later",),
    "minimax": ("the residual is its input after the norm, and residual and output have factors",),
    "dinov2": ("a layer scale multiplies the output",),
    "dinov2_with_registers": ("a layer scale multiplies the output",),
    "internvl_vision": ("a layer scale multiplies the output",),
    "deepseek_v4": ("hyper-connections around the block",),
    "hy_v4": ("hyper-connections around the block",),
}


def around_of(config: Config) -> Around:
    """What stands around the blocks of this model."""
    name = config.model_type if isinstance(config.model_type, str) else ""
    if not config.knows:
        return Around()
    parallel = name in _PARALLEL
    if name in _PARALLEL_KEYS:
        parallel = config.flag(_PARALLEL_KEYS[name])
    multiplier = 1.0
    if name in _RESIDUAL_KEYS:
        multiplier = config.number(_RESIDUAL_KEYS[name])
    if name == "minicpm3":
        layers = config.integer("num_hidden_layers", 1)
        multiplier = config.number("scale_depth") / math.sqrt(layers)
    norms = _NORM_OF.get(name, "pre")
    if name in _POST_UNLESS and not config.flag(_POST_UNLESS[name]):
        norms = "post"
    shown = [f"{key} {config.number(key):g}" for key in _SHOWN_KEYS.get(name, ())]
    return Around(norms, parallel, multiplier, (*_NOTES.get(name, ()), *shown))
