"""Layer objects: FFN, MoE and Router hold weights and options, and call the public functions."""

from .ffn import FFN
from .moe import MoE
from .moe_gradients import MoELayerGrads, MoELayerSaved
from .router import Router, RouterGrads

__all__ = ["FFN", "MoE", "MoELayerGrads", "MoELayerSaved", "Router", "RouterGrads"]
