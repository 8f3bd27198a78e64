"""Options of fc.route for tests, by the model families that have them."""

import numpy as np
from support import normal

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]

# Every option occurs at least once.
CASES = {
    "mixtral": {},
    "olmoe": {"norm_topk_prob": False},
    "gpt-oss": {"score_fn": "softmax_topk"},
    "gpt-oss scaled": {"score_fn": "softmax_topk", "routed_scaling_factor": 1.7},
    "sigmoid": {"score_fn": "sigmoid"},
    "llama 4": {"score_fn": "sigmoid", "select_on": "logits", "norm_topk_prob": False},
    "lfm2": {"score_fn": "sigmoid", "norm_eps": 1e-6, "bias": True},
    "kolibri": {"score_fn": "sigmoid", "select_on": "logits", "bias": True,
                "norm_topk_prob": False},
    "ernie": {"norm_min": 1e-12, "bias": True},
    "minimum": {"score_fn": "sigmoid", "norm_min": 1.5, "norm_eps": 0.1},
    "softmax, eps": {"norm_eps": 0.25, "routed_scaling_factor": 2.0},
    "softmax, minimum": {"norm_min": 0.3, "norm_eps": 0.01},
    "softmax_topk, bias": {"score_fn": "softmax_topk", "bias": True},
    "longcat": {"norm_topk_prob": False, "bias": True, "routed_scaling_factor": 6.0},
    "deepseek v4": {"score_fn": "sqrtsoftplus", "norm_eps": 1e-20, "bias": True,
                    "routed_scaling_factor": 1.5},
    "sqrtsoftplus, logits": {"score_fn": "sqrtsoftplus", "select_on": "logits",
                             "norm_topk_prob": False},
}  # fmt: skip
GROUPS = {
    "deepseek v2": {"norm_topk_prob": False, "group_score": "max", "group_mask_value": 0.0,
                    "routed_scaling_factor": 16.0},
    "deepseek v3": {"score_fn": "sigmoid", "norm_eps": 1e-20, "bias": True,
                    "routed_scaling_factor": 2.5},
    "deepseek v3, mask 0": {"score_fn": "sigmoid", "norm_eps": 1e-20, "bias": True,
                            "group_mask_value": 0.0},
    "mistral 4": {"group_mask_value": 0.0, "norm_eps": 1e-20},
    "logits": {"score_fn": "softmax_topk"},
}  # fmt: skip
WEIGHTING = ("score_fn", "norm_topk_prob", "norm_eps", "norm_min", "routed_scaling_factor")


def options_of(case, rng, experts, dtype):
    options = dict(case)
    if options.pop("bias", False):
        options["e_score_correction_bias"] = normal(rng, experts, dtype=dtype) * dtype.type(0.1)
    return options


def weighting(options):
    return {name: value for name, value in options.items() if name in WEIGHTING}
