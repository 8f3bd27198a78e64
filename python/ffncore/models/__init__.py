"""Checkpoints of released models: fc.load reads single layers, models.layers lists them.

FAMILIES and MOE_FAMILIES are tables of model families: how they name and store their layers.

>>> for info in fc.models.layers("path/to/model"):
...     print(info.layer, info.d_model, info.d_ff)
"""

from .families import FAMILIES, Family, LayerInfo
from .loading import layers, load, ranges
from .mixture_families import MOE_FAMILIES, MoEFamily

__all__ = [
    "FAMILIES",
    "MOE_FAMILIES",
    "Family",
    "LayerInfo",
    "MoEFamily",
    "layers",
    "load",
    "ranges",
]
