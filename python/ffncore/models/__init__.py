"""Checkpoints of released models: fc.load and fc.load_all read layers, models.layers lists them.

FAMILIES and MOE_FAMILIES are tables of model families: how they name and store their layers.

>>> for info in fc.models.layers("path/to/model"):
...     print(info.layer, info.d_model, info.d_ff)
"""

from .all_layers import AllLayers, load_all
from .families import FAMILIES, Family, LayerInfo
from .loading import layers, load, ranges
from .mixture_families import MOE_FAMILIES, MoEFamily

__all__ = [
    "FAMILIES",
    "MOE_FAMILIES",
    "AllLayers",
    "Family",
    "LayerInfo",
    "MoEFamily",
    "layers",
    "load",
    "load_all",
    "ranges",
]
