"""Layer objects, which hold weights and call functions: FFN, MoE, Router."""

from .ffn import FFN
from .moe import MoE
from .moe_gradients import MoELayerGrads, MoELayerSaved
from .router import Router, RouterGrads

__all__ = ["FFN", "MoE", "MoELayerGrads", "MoELayerSaved", "Router", "RouterGrads"]
