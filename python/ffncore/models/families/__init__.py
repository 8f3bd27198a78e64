"""The table of model families: how they name, store and route their layers, one row each."""

from .dense import DENSE
from .info import LayerInfo
from .refused import REFUSED
from .row import TABLE, Family, MoEFamily, Names, row_named
from .sigmoid import SIGMOID
from .softmax import SOFTMAX
from .vision import VISION

FAMILIES: tuple[Family, ...] = (*DENSE, *VISION)
MOE_FAMILIES: tuple[MoEFamily, ...] = (*SOFTMAX, *SIGMOID)

TABLE.update({row.name: row for row in (*FAMILIES, *MOE_FAMILIES)})

__all__ = [
    "FAMILIES",
    "MOE_FAMILIES",
    "REFUSED",
    "Family",
    "LayerInfo",
    "MoEFamily",
    "Names",
    "row_named",
]
