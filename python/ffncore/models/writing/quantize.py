"""A quantised copy of a checkpoint: as a folder of safetensors, one such file, or a GGUF file.

Everything is checked before anything is written, one tensor is in memory at a time, and what is
written appears under its name when it is complete. Tests:
tests/models/writing/test_quantize_checkpoint.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...runtime.progress import bar, steps
from ..files.checkpoint import Checkpoint
from ..finding import stack_of
from ..loading import layers
from .atomic import complete
from .matrices import Layer, Matrix, layers_of, matrices_of
from .rounding import Rounding, Sums, check_formats
from .to_gguf import GgufPlan
from .to_safetensors import write_file, write_folder


@dataclass(frozen=True)
class Written:
    """What has been written.

    formats  from gate, up and down to formats
    sums     weights, bytes and errors by field; "gate and up" where both are in one tensor
    before   bytes of the files that were read
    after    bytes of the files that were written
    """

    formats: Mapping[str, str]
    sums: Mapping[str, Sums]
    before: int
    after: int


def quantize_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    formats: str | Mapping[str, str],
    *,
    method: str = "rtn",
    family: str | None = None,
) -> Written:
    """Write a quantised copy.

    path     as for fc.load
    out      a name that ends with .safetensors or .gguf, or that of a folder; nothing may have it
    formats  a name of fc.formats() for all matrices, or names by gate, up and down
    method   "rtn" or "hqq"
    family   as for fc.load

    Raises ValueError, TypeError and FileNotFoundError, also for what a format cannot hold; then
    there is no out.
    """
    target, rounding = Path(out), check_formats(formats, method)
    with Checkpoint(path, mapped=True) as checkpoint:
        found = layers_of(checkpoint, family)
        files = {checkpoint.stored(name)[0].path for name in checkpoint}
        before = sum(file.stat().st_size for file in files)
        if target.suffix == ".gguf":
            _to_gguf(target, checkpoint, found, rounding, family)
        else:
            _to_safetensors(target, checkpoint, found, rounding)
    written = [target] if target.is_file() else list(target.glob("*.safetensors"))
    return Written(
        rounding.formats, rounding.sums, before, sum(file.stat().st_size for file in written)
    )


def _to_safetensors(
    target: Path, checkpoint: Checkpoint, found: list[Layer], rounding: Rounding
) -> None:
    chosen: dict[str, tuple[Matrix, str]] = {}
    for name, matrix in matrices_of(found).items():
        place = checkpoint.place(name)
        format = rounding.format_of(matrix.fields, place)
        if format is not None:
            rounding.check(place, matrix.shape[-1], format)
            chosen[name] = matrix, format
    folder = target.suffix != ".safetensors"
    with complete(target, folder=folder) as path:
        step = steps(len(chosen), "quantize", "tensor")
        if folder:
            write_folder(path, checkpoint, chosen, rounding, step)
        else:
            write_file(path, checkpoint, list(checkpoint), chosen, rounding, step)


def _to_gguf(
    target: Path, checkpoint: Checkpoint, found: list[Layer], rounding: Rounding, family: str | None
) -> None:
    stack = stack_of(checkpoint, family, None)
    mine = [layer for layer in found if layer.found.prefix == stack]
    told = next(info for info in layers(checkpoint, family) if info.prefix == stack)
    plan = GgufPlan(checkpoint, mine, told.activation or "", rounding)
    with complete(target, folder=False) as path:
        plan.write(path, bar(plan.tensors, "quantize", "tensor"))
