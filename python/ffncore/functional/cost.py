"""fc.cost: the arithmetic, the memory traffic and the plan of a call, without making it.

    forward   6 T d f FLOPs with a gate, 4 T d f without
    backward  2 T d f for dh, 2 T d f for dx per input matrix (gate, up), 2 T d f for the gradient
              of each matrix, and with save="input" gate and up again

Bytes are the least that has to be moved: each weight matrix once per pass that needs it, and the
gradients of the matrices once. Biases are not counted. Tests: tests/functional/test_cost.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import _core
from ..arrays.dtypes import FLOAT32, as_dtype, is_narrow
from ..arrays.scalars import check_names
from ..arrays.shapes import check_size
from ..values.activation import KINDS, Activation, as_core
from ..values.gradients import GRADIENTS
from ..values.packed import PackedWeights, check_block
from ..values.saved import keeps_preactivations
from ..values.weights import NAMES, FFNWeights

_OPERATIONS = ("ffn", "ffn_forward", "ffn_backward")


@dataclass(frozen=True)
class Cost:
    """The cost of one call, as fc.cost returns it.

    flops           FLOPs of the matrix products, 2 for each multiply-add
    activations     the number of elements that go through an activation
    bytes           the least number of bytes to move: weights, and gradients of weights
    extra_bytes     bytes of workspace, beyond inputs, outputs and saved activations
    token_chunk     the plan: the number of tokens whose hidden units are held at once
    ff_chunk        the plan: the number of hidden units that are held at once
    token_slice     the plan: the number of tokens of x that are held packed at once
    tokens_in_rows  the plan: whether the weights are packed into panels and tokens are broadcast,
                    instead of the other way round

    >>> fc.cost(512, weights).intensity
    """

    flops: float
    activations: float
    bytes: float
    extra_bytes: int
    token_chunk: int
    ff_chunk: int
    token_slice: int
    tokens_in_rows: bool

    @property
    def intensity(self) -> float:
        """FLOPs per byte. A call is limited by memory if this is below the machine's FLOPs per
        byte of read bandwidth, and by arithmetic if it is above.
        """
        return self.flops / self.bytes if self.bytes else 0.0

    def __str__(self) -> str:
        panels = "weights" if self.tokens_in_rows else "tokens"
        return (
            f"{self.flops / 1e9:.3f} GFLOP, {self.bytes / 1e6:.3f} MB, "
            f"{self.intensity:.1f} FLOP/byte; chunks of {self.token_chunk} tokens x "
            f"{self.ff_chunk} hidden units, slices of {self.token_slice} tokens, "
            f"{panels} in panels, {self.extra_bytes / 2**20:.1f} MiB of workspace"
        )


def cost(
    tokens: int,
    weights: FFNWeights | PackedWeights | None = None,
    *,
    d_model: int | None = None,
    d_ff: int | None = None,
    gated: bool = True,
    packed: bool = False,
    dtype: npt.DTypeLike = "float32",
    x_dtype: npt.DTypeLike | None = None,
    activation: str | Activation = "silu",
    op: str = "ffn",
    save: str = "preactivations",
    needs: Iterable[str] | None = None,
) -> Cost:
    """Compute the cost of one call: FLOPs, bytes to move, workspace and plan.

    The layer is described by its weights, or by d_model, d_ff, gated, packed and dtype.

    tokens      the number of tokens of x
    weights     FFNWeights or PackedWeights of one layer
    d_model     the last dimension of x, if weights is None
    d_ff        the number of hidden units, if weights is None
    gated       whether the layer has a gate, if weights is None
    packed      whether the weights are packed, if weights is None
    dtype       the dtype of the weights, if weights is None
    x_dtype     the dtype of x: that of the weights (the default), or float32 with 16-bit weights
    activation  as for fc.ffn; only xielu, which has trainable parameters, makes a difference
    op          "ffn", "ffn_forward" or "ffn_backward"
    save        as for fc.ffn_forward
    needs       as for fc.ffn_backward. Default: all gradients; without weights also those of
                biases, which are not counted

    Returns a Cost.

    Raises ValueError for values and names that are not known, and TypeError for types and dtypes.

    >>> print(fc.cost(512, d_model=4096, d_ff=14336, op="ffn_backward"))
    """
    if op not in _OPERATIONS:
        raise ValueError(f"op is {op!r}; expected one of {', '.join(_OPERATIONS)}")
    keep = keeps_preactivations(save)
    if weights is not None:
        if d_model is not None or d_ff is not None:
            raise ValueError(
                "weights and d_model or d_ff are given; expected weights, or d_model and d_ff"
            )
        layer = check_block(weights)
        d_ff, d_model = layer.shape
        gated, packed = layer.gated, isinstance(layer, PackedWeights)
        stored = layer.dtype
    else:
        stored = as_dtype("dtype", dtype)
    element = stored if x_dtype is None else as_dtype("x_dtype", x_dtype)
    if element is not stored and not (element is FLOAT32 and is_narrow(stored)):
        raise TypeError(f"x_dtype is {element.name}; expected {stored.name} to match the weights")
    sizes = _count("tokens", tokens, 0), _count("d_model", d_model, 1), _count("d_ff", d_ff, 1)
    check_size(sizes[0], max(sizes[1:]), "tokens and the layer's dimensions")
    check_size(sizes[1], sizes[2], "d_model and d_ff")
    core = as_core(activation, gated, element)
    if op == "ffn_backward":
        exist = _gradients(weights, gated, packed, trainable=core.kind == KINDS["xielu"])
        wanted = _wanted(needs, exist, packed)
        flags = [gradient in wanted for gradient in GRADIENTS]
        answer = _core.backward_cost(
            element.name, stored.name, *sizes, gated, packed, core, not keep, flags
        )
    else:
        if needs is not None:
            raise ValueError(f"needs is given and op is {op!r}; expected op='ffn_backward'")
        keep = keep and op == "ffn_forward"
        answer = _core.forward_cost(element.name, stored.name, *sizes, gated, packed, core, keep)
    return Cost(
        flops=float(answer["flops"]),
        activations=float(answer["activations"]),
        bytes=float(answer["bytes"]),
        extra_bytes=int(answer["extra_bytes"]),
        token_chunk=int(answer["token_chunk"]),
        ff_chunk=int(answer["ff_chunk"]),
        token_slice=int(answer["token_slice"]),
        tokens_in_rows=bool(answer["tokens_in_rows"]),
    )


def _gradients(
    weights: FFNWeights | PackedWeights | None, gated: bool, packed: bool, trainable: bool
) -> tuple[str, ...]:
    """The names of the gradients that the call can compute."""
    if packed:
        return ("x",)
    absent = set() if gated else {"gate", "b_gate"}
    if isinstance(weights, FFNWeights):
        absent = {name for name in NAMES if getattr(weights, name) is None}
    if not trainable:
        absent.add("activation")
    return tuple(name for name in GRADIENTS if name not in absent)


def _wanted(needs: object, exist: tuple[str, ...], packed: bool) -> tuple[str, ...]:
    if needs is None:
        return exist
    wanted = check_names("needs", needs, GRADIENTS)
    for name in wanted:
        if name in exist:
            continue
        if packed:
            raise ValueError(f"needs has {name!r}, but packed weights give only the gradient of x")
        if name == "activation":
            raise ValueError("needs has 'activation', but only xielu has trainable parameters")
        raise ValueError(f"needs has {name!r}, but the weights have no {name}")
    return wanted


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected an integer")
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least}")
    return int(value)
