"""LayerInfo: a feed-forward layer of a checkpoint, as models.layers lists it.

Tests: tests/models/test_models.py, tests/models/test_towers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...layers.around import Around

_UNKNOWN = Around()


@dataclass(frozen=True)
class LayerInfo:
    """A feed-forward layer of a checkpoint, described from the headers of the files.

    family      a Family, or a MoEFamily
    prefix      of the tensors' names, with its dot; "" if there is none
    layer       the number of the layer
    d_model     the last dimension of x and y; 0 if it is not known
    d_ff        the number of hidden units, of each expert; 0 if it is not known
    activation  as config.json names it, which may be one that ffncore does not have; None if it is
                not known
    dtype       of the matrices, or their formats, such as "q4_k, q6_k"; "" if it is not known
    parameters  their number, with biases, all experts and the router; 0 if the layer has a problem
    gated       whether the layer has a gate
    n_experts   the number of experts; None for a dense layer
    nbytes      the bytes of the layer's tensors in the files
    packing     the name of the quantisation, such as "HQQ", if the layer is quantised in a way that
                fc.load does not read
    problem     the error of fc.load, if it refuses the layer for another reason than an activation
                that ffncore does not have
    model_type  in config.json, of the layer's stack
    tower       the stack of a model with several: "text", "vision", "audio", "encoder", "decoder"
                and so on; "" if the names do not tell
    around      an Around: norms, residual multiplier and so on, which the layer does not compute
    parts       names of other blocks in the layer, for part= of fc.load
    shared_ff   the number of hidden units of the shared expert; 0 if there is none
    bits        of the file for each weight of the matrices, with the scales; 0 if it is not known
    """

    family: Any
    prefix: str
    layer: int
    d_model: int
    d_ff: int
    activation: str | None
    dtype: str
    parameters: int
    gated: bool
    n_experts: int | None = None
    nbytes: int = 0
    packing: str | None = None
    problem: str | None = None
    model_type: str | None = None
    tower: str = ""
    around: Around = _UNKNOWN
    parts: tuple[str, ...] = ()
    shared_ff: int = 0
    bits: float = 0.0

    @property
    def ratio(self) -> float:
        """d_ff / d_model; 0 if it is not known."""
        return self.d_ff / self.d_model if self.d_model else 0.0

    @property
    def matched_ratio(self) -> float:
        """d_ff / d_model of a layer without a gate that has as many matrix elements.

        For a layer with a gate, which has three matrices instead of two, it is 1.5 times ratio.
        """
        return self.ratio * (1.5 if self.gated else 1.0)
