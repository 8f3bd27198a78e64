"""Trains a layer of one bit and one of three levels on the outputs of a float layer.

    python examples/qat.py [--picture FILE] [--steps N]        (or: make qat)

Rounding the weights of a layer to one bit or to -1, 0 and +1 ruins it, so such weights are trained
as such. The float layer (the teacher) and the trained one (the student) have the same form,

    y = gelu(x up^T) down^T        x [T, d], up [f, d], down [d, f]

The student computes with w_hat, what its float weights w (the latent weights) become in the format.
The gradient of w_hat goes through fc.fake_quantize_backward to w, where Adam changes it. After each
step the latent weights are clipped, so that all of them can still change their sign: a weight far
from 0 would keep it, whatever its gradient. In the end fc.quantize packs the latent weights, and
the numbers of its codes are w_hat, bit by bit. Every gradient is passed on by hand, in numpy.
Tests: tests/examples/test_qat.py.
"""

import argparse
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# The products in numpy are small, and its waiting threads would take cores from those of ffncore.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from moe_training import Adam

import ffncore as fc

ACTIVATION = "gelu"
LINE = 4  # points of the picture for each line that is printed
PICTURE = Path(__file__).parents[1] / "docs" / "qat.png"

# What each format is called, and the error that training has to reach.
FORMATS = {"q1_0": ("1 bit", 0.50), "q2_0": ("ternary", 0.45)}


@dataclass(frozen=True)
class Config:
    d: int = 128  # one group of q1_0: the smallest layer that it can have
    f: int = 512
    batch: int = 512  # rows of new inputs in each step
    held_out: int = 1024  # rows on which the error is measured
    learning_rate: float = 3e-4
    # Weights near 0 change their signs to and fro as long as steps are as large as the weights. A
    # step size that falls ever faster than the weights can follow ends this.
    power: int = 4
    clip: float = 1.5  # of latent weights, in standard deviations of the teacher's


def normal(rng, *shape):
    """Entries have variance 1 / fan-in, so that outputs are as large as inputs."""
    return (rng.standard_normal(shape) / math.sqrt(shape[-1])).astype("f4")


def layer(arrays):
    return fc.FFNWeights(up=arrays["up"], down=arrays["down"])


def relative_error(y, expected):
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


class Task:
    """A teacher, and rows of inputs that no student is trained on."""

    def __init__(self, config, seed=0):
        rng = np.random.default_rng(seed)
        self.config = config
        self.arrays = {
            "up": normal(rng, config.f, config.d),
            "down": normal(rng, config.d, config.f),
        }
        self.teacher = layer(self.arrays)
        self.x = rng.standard_normal((config.held_out, config.d)).astype("f4")
        self.y = fc.ffn(self.x, self.teacher, activation=ACTIVATION)

    def error(self, w):
        """The error of a layer's outputs on the rows that are held out."""
        return relative_error(fc.ffn(self.x, w, activation=ACTIVATION), self.y)


# ---- training


def step(latent, fmt, x, expected, grads):
    """The loss |y - expected|^2 / T, and its gradients of the latent weights, in grads."""
    faked = {name: fc.fake_quantize(w, fmt) for name, w in latent.items()}
    w_hat = layer({name: w for name, (w, _) in faked.items()})
    y, saved = fc.ffn_forward(x, w_hat, activation=ACTIVATION)
    error = y - expected
    through = fc.ffn_backward(2 / len(x) * error, saved, needs=("up", "down")).arrays()
    for name, (_, fake_saved) in faked.items():
        grads[name] = fc.fake_quantize_backward(through[name], fake_saved).weights
    return float((error * error).sum() / len(x))


def train(task, fmt, *, steps, every, seed=1):
    """Trains a student from the teacher's weights. Returns them, and rows of (step, error)."""
    config, rng = task.config, np.random.default_rng(seed)
    latent = {name: w.copy() for name, w in task.arrays.items()}
    limit = {name: config.clip * float(w.std()) for name, w in latent.items()}
    adam = Adam(latent, config.learning_rate)
    grads = {}
    rows = [(0, task.error(hardened(latent, fmt)))]
    for number in range(1, steps + 1):
        x = rng.standard_normal((config.batch, config.d)).astype("f4")
        expected = fc.ffn(x, task.teacher, activation=ACTIVATION)
        step(latent, fmt, x, expected, grads)
        adam.step(grads, (1 - (number - 1) / steps) ** config.power)
        for name, w in latent.items():
            np.clip(w, -limit[name], limit[name], out=w)
        if number % every == 0 or number == steps:
            rows.append((number, task.error(hardened(latent, fmt))))
        if number % (LINE * every) == 0 or number == steps:
            print(f"{number:6} {rows[-1][1]:7.3f}", flush=True)
    return latent, rows


def hardened(latent, fmt):
    """The layer with w_hat."""
    return layer({name: fc.fake_quantize(w, fmt)[0] for name, w in latent.items()})


def compare(task, latent, fmt):
    """Packs the trained layer. Returns it, and how many of its numbers differ in their bits from
    those of the training; the outputs of both have to be the same, too.
    """
    packed, trained = fc.quantize(layer(latent), fmt), hardened(latent, fmt)
    pairs = zip(packed.dequantize().arrays().values(), trained.arrays().values(), strict=True)
    differ = sum(int((a.view("u4") != b.view("u4")).sum()) for a, b in pairs)
    y, expected = (fc.ffn(task.x, w, activation=ACTIVATION) for w in (fc.pack(packed), trained))
    return packed, differ + int((y.view("u4") != expected.view("u4")).sum())


# ---- what is drawn


def draw(runs, path):
    """runs: from formats to rows of (step, error)."""
    try:
        import matplotlib
    except ImportError:
        print("\nno picture: matplotlib is missing; pip install matplotlib brings it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    places = ("tab:red", -13), ("tab:blue", -15)  # the color, and the label's place above the end
    for (fmt, rows), (color, above) in zip(runs.items(), places, strict=True):
        name = FORMATS[fmt][0]
        steps, errors = zip(*rows, strict=True)
        axes.plot(steps, errors, color=color)
        axes.axhline(errors[0], color=color, linestyle=":", linewidth=1)
        for told, error, offset in (
            ("rounded to nearest", errors[0], 4),
            ("trained", errors[-1], above),
        ):
            axes.annotate(
                f"{name}, {told}: {error:.2f}",
                (steps[-1], error),
                (0, offset),
                textcoords="offset points",
                ha="right",
                color=color,
            )
    axes.set(
        title="A layer of one bit or three levels, trained on the outputs of a float layer",
        xlabel="training step",
        ylabel="relative error of the output, held-out rows",
        ylim=(0, 0.9),
    )
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"\npicture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--steps", type=int, default=1500, help="for each format")
    parser.add_argument("--every", type=int, default=25, help="steps between two points")
    args = parser.parse_args()

    task = Task(Config())
    d, f = task.config.d, task.config.f
    print(f"a layer {d} -> {f} -> {d} with {ACTIVATION}, {task.teacher.nbytes:,} bytes in float32")
    runs, wrong = {}, 0
    for fmt, (name, goal) in FORMATS.items():
        rounded = task.error(fc.quantize(task.teacher, fmt))
        mean = task.error(fc.quantize(task.teacher, fmt, scale="tensor"))
        print(f"\n{name} ({fmt}): rounded to nearest, the error of the output is {rounded:.3f}")
        print(f"(with the mean magnitude of each matrix as its scale {mean:.3f})")
        print("  step   error on held-out rows")
        start = time.perf_counter()
        latent, runs[fmt] = train(task, fmt, steps=args.steps, every=args.every)
        packed, differ = compare(task, latent, fmt)
        error = runs[fmt][-1][1]
        print(f"trained in {time.perf_counter() - start:.1f} s: {error:.3f}, to reach {goal:.2f}")
        print(
            f"packed: {packed.nbytes:,} bytes, {differ} numbers differ from those of the training"
        )
        wrong += differ
    draw(runs, args.picture)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
