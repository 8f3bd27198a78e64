"""Around: what stands around a feed-forward block in its model, and is not computed by the layer.

    y = x + m post(layer(pre(x)))        norms pre and post, residual multiplier m
    y = x + attention(pre(x)) + layer(pre(x))                     parallel

fc.load keeps it as layer.around, because whoever puts layers together needs it. The tables are in
models/families/around.py. Tests: tests/models/test_around.py.
"""

from __future__ import annotations

from dataclasses import dataclass

# What `norms` means, as inspect prints it.
NORMS = {
    "pre": "a norm of its input",
    "post": "a norm of the sum of residual and output",
    "output": "a norm of its output",
    "pre and output": "norms of its input and of its output",
    "": "unknown norms",
}


@dataclass(frozen=True)
class Around:
    """What a model computes around a feed-forward block; a layer object does not compute it.

    norms                "pre": the block reads norm(x). "post": the result is norm(x + y).
                         "output": the result is x + norm(y). "pre and output": both of its ends.
                         "": not known
    parallel             whether the block and attention read the same residual
    residual_multiplier  the result is x + residual_multiplier * y
    notes                what else stands around the block, a clause each
    """

    norms: str = ""
    parallel: bool = False
    residual_multiplier: float = 1.0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [NORMS[self.norms]]
        if self.parallel:
            words.append("parallel to attention")
        if self.residual_multiplier != 1:
            words.append(f"residual multiplier {self.residual_multiplier:g}")
        return ", ".join([*words, *self.notes])
