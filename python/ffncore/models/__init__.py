"""Checkpoints of released models: fc.load and fc.load_all read layers, models.layers lists them.

FAMILIES and MOE_FAMILIES are the table of model families: how they name and store their layers.
REFUSED has model types that cannot be read, and why.

>>> for info in fc.models.layers("path/to/model"):
...     print(info.layer, info.d_model, info.d_ff)
"""

from .all_layers import AllLayers, load_all
from .families import FAMILIES, MOE_FAMILIES, REFUSED, Family, LayerInfo, MoEFamily
from .loading import layers, load, ranges

__all__ = [
    "FAMILIES",
    "MOE_FAMILIES",
    "REFUSED",
    "AllLayers",
    "Family",
    "LayerInfo",
    "MoEFamily",
    "layers",
    "load",
    "load_all",
    "ranges",
]
