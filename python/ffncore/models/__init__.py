"""Checkpoints of released models: fc.load reads single layers, models.layers lists them.

FAMILIES and MOE_FAMILIES are the table of model families: how they name and store their layers.
REFUSED has model types that cannot be read, and why.

>>> for info in fc.models.layers("path/to/model"):
...     print(info.layer, info.d_model, info.d_ff)
"""

from .families import FAMILIES, MOE_FAMILIES, REFUSED, Family, LayerInfo, MoEFamily
from .loading import layers, load, ranges

__all__ = [
    "FAMILIES",
    "MOE_FAMILIES",
    "REFUSED",
    "Family",
    "LayerInfo",
    "MoEFamily",
    "layers",
    "load",
    "ranges",
]
