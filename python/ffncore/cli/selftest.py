"""`python -m ffncore selftest`: does this installation compute the right numbers?

For each instruction set and dtype the forward and the backward pass are compared with the float64
reference. Packed weights, and every further instruction set, have to give the same bits. Each
summed dimension of the sizes is longer than a block of 512 in one case, and no size is a multiple
of a vector. Tests: tests/cli/test_cli.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from typing import Any

import numpy as np

import ffncore as fc

from ..arrays.dtypes import as_dtype

# Relative to the largest entry: the rounding errors of the sums and of the activation's polynomial.
# The kernels' own tests are much stricter; a wrong kernel has errors of 1e-3 and more.
TOLERANCE = {"float32": 1e-5, "float64": 1e-13, "float16": 2e-3, "bfloat16": 2e-2}
CASES = (
    # d, f, tokens, gated, activation
    (37, 531, 19, True, "silu"),
    (523, 45, 70, False, "gelu"),
)
HELP = """\
Checks every instruction set of this machine in a few seconds.

For each instruction set and dtype it runs a gated and a plain layer, forward
and backward, and compares the results with ffncore.reference, the
specification in numpy. Packed weights, a token alone and the other instruction
sets have to give the same bits. The exit status is 0 if all checks pass, and 1
if one fails.
"""
EXAMPLES = ("selftest",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace | None = None) -> int:  # noqa: ARG001 (as for every command)
    """Prints a line for each instruction set and dtype; returns 0 if all checks pass, else 1."""
    start = time.perf_counter()
    failures = 0
    first_bits: dict[Any, list[bytes]] = {}
    forced = os.environ.get("FFNCORE_ISA")
    dtypes = [np.dtype(name) for name in ("float32", "float64", "float16")]
    with contextlib.suppress(TypeError):  # needs ml_dtypes, which is optional
        dtypes.append(as_dtype("dtype", "bfloat16"))
    for isa in fc.available_isas():
        with fc.using_isa(isa):
            for dtype in dtypes:
                worst, bits, problems = 0.0, [], []
                for case in CASES:
                    error, case_bits, case_problems = _check(dtype, *case)
                    worst = max(worst, error)
                    bits += case_bits
                    problems += case_problems
                if first_bits.setdefault(dtype, bits) != bits:
                    problems.append(f"bits differ from {fc.available_isas()[0]}")
                if not worst <= TOLERANCE[dtype.name]:
                    problems.append(f"error above {TOLERANCE[dtype.name]:.0e}")
                failures += bool(problems)
                state = "; ".join(problems) if problems else "ok"
                print(f"{isa:>7} {dtype}: largest error {worst:.1e}  {state}")
    seconds = time.perf_counter() - start
    chosen = f" (FFNCORE_ISA={forced})" if forced else ""
    print(
        f"selftest {'failed' if failures else 'passed'} in {seconds:.1f} s; "
        f"ffncore {fc.__version__}{chosen}"
    )
    return 1 if failures else 0


def _check(
    dtype: np.dtype[Any], d: int, f: int, tokens: int, gated: bool, activation: str
) -> tuple[float, list[bytes], list[str]]:
    """The largest error, the bits of every result, and sentences about what else is wrong."""
    rng = np.random.default_rng(d)

    def array(*shape: int) -> Any:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(dtype)

    weights = fc.FFNWeights(
        gate=array(f, d) if gated else None,
        up=array(f, d),
        down=array(d, f),
        b_gate=array(f) if gated else None,
        b_up=array(f),
        b_down=array(d),
    )
    x, grad_y = rng.standard_normal((2, tokens, d)).astype(dtype)
    y, saved = fc.ffn_forward(x, weights, activation=activation)
    results = {"y": y, **fc.ffn_backward(grad_y, saved).arrays()}
    expected = {"y": fc.reference.ffn(x, weights, activation=activation)}
    expected |= fc.reference.ffn_backward(grad_y, x, weights, activation=activation)
    problems = []
    if not np.array_equal(y, fc.ffn(x, fc.pack(weights), activation=activation)):
        problems.append("packed weights give other bits")
    if not np.array_equal(y[:1], fc.ffn(x[:1], weights, activation=activation)):
        problems.append("a token alone gives other bits")
    error = 0.0
    for name, result in results.items():
        scale = np.abs(expected[name]).max()
        worst = float(np.abs(result.astype(np.float64) - expected[name]).max() / scale)
        error = max(error, worst if worst == worst else float("inf"))  # NaN counts as wrong
    return error, [result.tobytes() for result in results.values()], problems
