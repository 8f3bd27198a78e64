"""Trains a mixture of experts on Python's manual, with a backward pass written by hand.

    python examples/moe_training.py [--picture FILE] [--steps N]        (or: make moe)

The model reads 8 characters and predicts the next one. The text is CPython's language reference,
which is a part of every Python, for help(). The model is trained twice from the same start: without
and with the auxiliary loss that balances the experts. The loss and the load of the experts are
printed, and drawn at the end. Every gradient is written out below, in numpy; ffncore computes the
experts and the routing.

    x = 8 embeddings [T, d];  u = norm(x);  h = x + MoE(u);  logits = norm(h) W^T + b

T tokens in a batch, d channels, E experts of f hidden units, k of them for each token, V
characters. Tests: tests/examples/test_moe_training.py.
"""

import argparse
import math
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics

# The products in numpy are small, and its waiting threads would take cores from those of ffncore.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import ffncore as fc

BARS = "▁▂▃▄▅▆▇█"
EPS = 1e-6  # under the root of the norm, as in LLaMA models
PICTURE = Path(__file__).parents[1] / "docs" / "moe_training.png"
ROUTER_STD = 0.02  # initializer_range of most models; at first, all experts have similar weights


@dataclass(frozen=True)
class Config:
    context: int = 8  # characters that the model reads
    channels: int = 16  # of each character; d = context * channels
    d_ff: int = 64  # f
    n_experts: int = 16  # E
    top_k: int = 2  # k
    batch: int = 512  # T
    learning_rate: float = 2e-3
    aux: float = 0.0  # factor of the load-balancing loss


# ---- the text


def read_text():
    """The text, with each paragraph once, however it is indented.

    Topics repeat each other, and the text that is held out must be new.
    """
    paragraphs = [p for name in sorted(topics) for p in topics[name].split("\n\n")]
    return "\n\n".join({" ".join(p.split()): p for p in paragraphs}.values())


def encode(text):
    """The character numbers of the first nine tenths, those of the rest, and V."""
    alphabet = sorted(set(text))
    number = {character: i for i, character in enumerate(alphabet)}
    ids = np.array([number[character] for character in text])
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:], len(alphabet)


def windows(ids, starts, context):
    """The characters to read [T, context], and the next ones [T]."""
    return ids[starts[:, None] + np.arange(context)], ids[starts + context]


def unigram_entropy(ids, others):
    """The loss on others of a model that knows only how frequent each character is in ids."""
    share = np.bincount(ids, minlength=others.max() + 1) + 1.0
    return float(-np.log(share / share.sum())[others].mean())


# ---- the model


def new_parameters(config, vocabulary, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    d, f, n = config.context * config.channels, config.d_ff, config.n_experts

    def normal(*shape):
        """Entries have variance 1 / fan-in, so that W x is as large as x."""
        return (rng.standard_normal(shape) / math.sqrt(shape[-1])).astype(dtype)

    return {
        "embedding": rng.standard_normal((vocabulary, config.channels)).astype(dtype),
        "router": (ROUTER_STD * rng.standard_normal((n, d))).astype(dtype),
        "gate": normal(n, f, d),
        "up": normal(n, f, d),
        "down": normal(n, d, f),
        "output": normal(vocabulary, d),
        "bias": np.zeros(vocabulary, dtype),
    }


def norm(x):
    """x / rms(x) along d, and 1 / rms(x) [T, 1] for the backward pass."""
    scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS)
    return x * scale, scale


def norm_backward(grad, y, scale):
    return scale * (grad - y * (grad * y).mean(axis=-1, keepdims=True))


def cross_entropy(logits, targets):
    """The mean of -log softmax(logits)[target], and its gradient (p - one-hot) / T [T, V]."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    rows = np.arange(len(targets))
    loss = -np.log(p[rows, targets]).mean()
    p[rows, targets] -= 1
    p /= len(targets)
    return float(loss), p


def forward(p, read, config):
    """Maps read [T, context] to logits [T, V]; also returns what the backward pass needs."""
    x = p["embedding"][read].reshape(len(read), -1)  # [T, d]
    u, u_scale = norm(x)
    router_logits = u @ p["router"].T  # [T, E]
    # The weights of the softmax are not normalized, as in OLMoE. An expert's gradient grows with
    # its weight; so without the auxiliary loss, experts with a good start get ever more tokens.
    routing = fc.route(router_logits, config.top_k, norm_topk_prob=False)  # [T, k]
    # FFNWeights holds these arrays without a copy, so the next call sees Adam's changes in place.
    experts = fc.FFNWeights(gate=p["gate"], up=p["up"], down=p["down"])
    y, moe_saved = fc.moe_forward(u, routing, experts, activation="silu")  # [T, d]
    v, v_scale = norm(x + y)
    logits = v @ p["output"].T + p["bias"]
    return logits, (u, u_scale, router_logits, routing, moe_saved, v, v_scale)


def backward(p, grad_logits, read, saved, config, grads):
    """Computes grads, with the names and shapes of p, from the gradient of the logits [T, V]."""
    u, u_scale, router_logits, routing, moe_saved, v, v_scale = saved

    # logits = v W^T + b
    np.matmul(grad_logits.T, v, out=grads["output"])
    np.sum(grad_logits, axis=0, out=grads["bias"])
    grad_h = norm_backward(grad_logits @ p["output"], v, v_scale)  # [T, d]

    # h = x + MoE(u): the gradients of the experts are written to the arrays that Adam reads
    into = {name: grads[name] for name in ("gate", "up", "down")}
    moe = fc.moe_backward(grad_h, moe_saved, out=into)
    grad_router_logits = fc.route_backward(moe.routing_weights, routing)  # [T, E]
    if config.aux:
        grad_router_logits += fc.load_balancing_loss_backward(
            config.aux, router_logits, routing, convention="megatron"
        )
    np.matmul(grad_router_logits.T, u, out=grads["router"])

    # u reaches the loss through the experts and through the router, x through u and past it
    grad_u = moe.x + grad_router_logits @ p["router"]
    grad_x = grad_h + norm_backward(grad_u, u, u_scale)

    # A row of the embedding gets the sum over the places that read it: a product with one-hot rows.
    places = np.arange(len(p["embedding"]))[:, None] == read.reshape(-1)  # [V, T * context]
    rows = grad_x.reshape(read.size, -1)  # [T * context, channels]
    np.matmul(places.astype(rows.dtype), rows, out=grads["embedding"])


def losses(p, read, targets, config, grads=None):
    """The cross-entropy, aux * load-balancing loss (1 if the load is even), and the routing.

    The gradient of the sum of both losses is written to grads, if given.
    """
    logits, saved = forward(p, read, config)
    loss, grad_logits = cross_entropy(logits, targets)
    router_logits, routing = saved[2:4]
    balance = fc.load_balancing_loss(router_logits, routing, convention="megatron")
    if grads is not None:
        backward(p, grad_logits, read, saved, config, grads)
    return loss, config.aux * balance, routing


# ---- training


class Adam:
    """Algorithm 1 of Kingma and Ba (2015), in place. The step size has the bias corrections."""

    def __init__(self, p, rate, beta1=0.9, beta2=0.99, eps=1e-8):
        self.p, self.rate, self.beta1, self.beta2, self.eps = p, rate, beta1, beta2, eps
        self.mean = {name: np.zeros_like(a) for name, a in p.items()}
        self.square = {name: np.zeros_like(a) for name, a in p.items()}
        self.scratch = {name: np.empty_like(a) for name, a in p.items()}
        self.t = 0

    def step(self, grads, factor=1.0):
        """p -= factor * rate * mean / (sqrt(square) + eps)"""
        self.t += 1
        correction = math.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        for name, grad in grads.items():
            mean, square, s = self.mean[name], self.square[name], self.scratch[name]
            mean *= self.beta1
            mean += np.multiply(grad, 1 - self.beta1, out=s)
            square *= self.beta2
            np.multiply(grad, grad, out=s)
            s *= 1 - self.beta2
            square += s
            np.sqrt(square, out=s)
            s += self.eps
            np.divide(mean, s, out=s)
            s *= self.rate * factor * correction
            self.p[name] -= s


def train(config, ids, held_out, vocabulary, *, steps, every, seed=0):
    """Trains new parameters. Returns rows of (step, loss, validation loss, shares [E]).

    The loss (nats a character) and the experts' shares of the slots are means since the last row.
    """
    p = new_parameters(config, vocabulary, seed)
    grads = {name: np.empty_like(a) for name, a in p.items()}
    adam = Adam(p, config.learning_rate)
    rng = np.random.default_rng(seed + 1)
    check = np.linspace(0, len(held_out) - config.context - 1, 4096).astype(int)
    check_read, check_targets = windows(held_out, check, config.context)
    rows, total, counts = [], 0.0, np.zeros(config.n_experts, int)
    print("  step   loss  valid  busiest  variation  load of the experts")
    for step in range(1, steps + 1):
        starts = rng.integers(len(ids) - config.context, size=config.batch)
        read, targets = windows(ids, starts, config.context)
        loss, _, routing = losses(p, read, targets, config, grads)
        adam.step(grads, 1 - (step - 1) / steps)  # the step size falls to 0
        total, counts = total + loss, counts + routing.counts
        if step % every == 0:
            valid, share = losses(p, check_read, check_targets, config)[0], counts / counts.sum()
            rows.append((step, total / every, valid, share))
            print(f"{step:6} {numbers(*rows[-1][1:])}  {bars(share)}", flush=True)
            total, counts = 0.0, np.zeros_like(counts)
    return rows


# ---- what is printed and drawn


def numbers(loss, valid, share):
    """A row as text. The coefficient of variation is 0 if all experts have the same load."""
    variation = share.std() / share.mean()
    return f"{loss:6.3f} {valid:6.3f} {share.max():8.0%} {variation:10.2f}"


def bars(share):
    """A bar for each expert, of half the height for a share of 1 / E."""
    heights = np.minimum(share * len(share) * len(BARS) / 2, len(BARS) - 1)
    return "".join(BARS[int(height)] for height in heights)


def summarize(runs, entropy):
    """Prints the last rows. An expert counts as idle below a quarter of an even share."""
    print(f"\nat the end (a guess by the frequency of each character has a loss of {entropy:.3f})")
    print("  auxiliary loss   loss  valid  busiest  variation  idle experts")
    for name, rows in runs.items():
        share = rows[-1][3]
        idle = (share * len(share) < 0.25).sum()
        print(f"  {name:14} {numbers(*rows[-1][1:])} {idle:6} of {len(share)}")


def draw(runs, entropy, path):
    try:
        import matplotlib
    except ImportError:
        print("\nno picture: matplotlib is missing; pip install matplotlib brings it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, *right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for color, axes, (name, rows) in zip(("tab:red", "tab:blue"), right, runs.items(), strict=True):
        steps, loss, valid, share = zip(*rows, strict=True)
        left.plot(steps, loss, color=color, linestyle=":", label=f"{name}: training")
        left.plot(steps, valid, color=color, label=f"{name}: validation")
        colors = plt.get_cmap("viridis")(np.linspace(0, 1, len(share[0])))
        axes.stackplot(steps, np.transpose(share), colors=colors, edgecolor="white", linewidth=0.5)
        axes.set(title=f"share of each expert, {name} auxiliary loss", xlabel="step", ylim=(0, 1))
        axes.margins(x=0)
    left.axhline(entropy, color="gray", linewidth=0.8, label="guess by character frequency")
    left.set(title="loss, nats a character", xlabel="step")
    left.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"\npicture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="steps between two lines")
    parser.add_argument("--aux", type=float, default=0.1, help="factor of the auxiliary loss")
    args = parser.parse_args()

    ids, held_out, vocabulary = encode(read_text())
    config = Config()
    print(
        f"{len(ids)} characters to train on, {len(held_out)} held out, {vocabulary} distinct ones"
    )
    print(f"{config.n_experts} experts, {config.top_k} for each token")
    runs = {}
    for name, aux in (("without", 0.0), ("with", args.aux)):
        print(f"\n{name} auxiliary loss")
        start = time.perf_counter()
        options = replace(config, aux=aux)
        runs[name] = train(
            options, ids, held_out, vocabulary, steps=args.steps, every=min(args.every, args.steps)
        )
        print(f"{time.perf_counter() - start:.1f} s")
    entropy = unigram_entropy(ids, held_out)
    summarize(runs, entropy)
    draw(runs, entropy, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
