"""ffncore and torch on a GPU: eager (cuBLAS), torch.compile, and grouped_mm for mixtures.

    python bench/gpu.py [--json FILE] [--seconds 180] [--only SUBSTRING]

It writes JSON lines and prints a table. A case is a shape, a number of tokens, a dtype and a mode:
"forward", or "train", which is a forward and a backward pass with all gradients. All sides have the
same random numbers. Weights and inputs come from a ring of copies that is larger than the L2 cache,
so that no call finds its operands in the cache. A round runs every side once, as a batch of calls
between two events. The time of a side is the median over the rounds, and `vs` is the median of a
peer's time over ffncore's. A pass has 6 T d f FLOPs, a backward pass counts as two passes, and the
bytes are those of the weights, read once.

torch has no single call for a mixture. Its peer sorts the tokens by expert, multiplies with
grouped_mm and adds up, as transformers' "grouped_mm" experts do. There is none for float32 weights.
"""

import argparse
import functools
import json
import statistics
import time

import torch
import torch.nn.functional as F

import ffncore as fc

ROUNDS = 7
BATCH_SECONDS = 0.02  # long against the microsecond that events resolve; clocks settle
RING_BYTES = 256 << 20  # the L2 cache of an H200 has 60 MB

DENSE = {"square-4096": (4096, 4096), "llama-3.1-8b": (4096, 14336)}  # d, f
MIXTURES = {  # d, f, experts, k
    "qwen3-30b-a3b": (2048, 768, 128, 8),
    "mixtral-8x7b": (4096, 14336, 8, 2),
}
HALF, SINGLE = torch.bfloat16, torch.float32
# The most important cases come first, because time may run out.
CASES = [
    ("llama-3.1-8b", 8192, HALF),
    ("qwen3-30b-a3b", 8192, HALF),
    ("square-4096", 4096, SINGLE),
    ("llama-3.1-8b", 1, HALF),
    ("qwen3-30b-a3b", 1, HALF),
    ("mixtral-8x7b", 8192, HALF),
    ("llama-3.1-8b", 16, HALF),
    ("qwen3-30b-a3b", 8, HALF),
    ("square-4096", 4096, HALF),
    ("qwen3-30b-a3b", 32768, HALF),
    ("llama-3.1-8b", 512, HALF),
    ("llama-3.1-8b", 1, SINGLE),
    ("llama-3.1-8b", 512, SINGLE),
]


def normal(*shape, dtype, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


# ---- a dense layer


class Dense:
    def __init__(self, tokens, d, f, dtype):
        self.x = normal(tokens, d, dtype=dtype)
        self.grad = normal(tokens, d, dtype=dtype)
        self.gate_up = normal(2 * f, d, dtype=dtype, scale=d**-0.5)
        self.down = normal(d, f, dtype=dtype, scale=f**-0.5)
        self.own = fc.FFNWeights.from_gate_up(self.gate_up, self.down)
        leaves = (self.x, self.gate_up, self.down)
        self.leaves = [leaf.detach().requires_grad_() for leaf in leaves]

    def ours(self, train):
        if not train:
            return fc.ffn(self.x, self.own, activation="silu")
        _, saved = fc.ffn_forward(self.x, self.own, activation="silu")
        return fc.ffn_backward(self.grad, saved)

    def torch(self, train, layer):
        if not train:
            return layer(self.x, self.gate_up, self.down)
        y = layer(*self.leaves)
        return torch.autograd.grad(y, self.leaves, self.grad)


def dense_layer(x, gate_up, down):
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


# ---- a mixture


class Mixture:
    def __init__(self, tokens, d, f, experts, k, dtype):
        self.x = normal(tokens, d, dtype=dtype)
        self.grad = normal(tokens, d, dtype=dtype)
        self.gate_up = normal(experts, 2 * f, d, dtype=dtype, scale=d**-0.5)
        self.down = normal(experts, d, f, dtype=dtype, scale=f**-0.5)
        self.own = fc.FFNWeights.from_gate_up(self.gate_up, self.down)
        self.ids = torch.rand(tokens, experts, device="cuda").argsort(1)[:, :k].to(torch.int32)
        self.factors = torch.rand(tokens, k, device="cuda")
        self.routing = fc.Routing(experts=self.ids, weights=self.factors, n_experts=experts)
        leaves = (self.x, self.factors, self.gate_up, self.down)
        self.leaves = [leaf.detach().requires_grad_() for leaf in leaves]

    def ours(self, train):
        if not train:
            return fc.moe(self.x, self.routing, self.own, activation="silu")
        _, saved = fc.moe_forward(self.x, self.routing, self.own, activation="silu")
        return fc.moe_backward(self.grad, saved)

    def torch(self, train, layer):
        if not train:
            return layer(self.x, self.factors, self.gate_up, self.down, self.ids)
        y = layer(*self.leaves, self.ids)
        return torch.autograd.grad(y, self.leaves, self.grad)


grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def grouped_layer(x, factors, gate_up, down, ids):
    tokens, k = ids.shape
    experts = gate_up.shape[0]
    order = torch.argsort(ids.reshape(-1), stable=True)
    counts = torch.histc(ids.reshape(-1).float(), bins=experts, min=0, max=experts - 1)
    ends = torch.cumsum(counts, 0).to(torch.int32)
    rows = x[order // k]
    gate, up = grouped_mm(rows, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    rows = grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    slots = torch.empty_like(rows).index_copy(0, order, rows).view(tokens, k, -1)
    return (slots * factors.to(x.dtype)[..., None]).sum(1)


# ---- timing


def bytes_of(case):
    arrays = (case.x, case.gate_up, case.down)
    return sum(array.numel() * array.element_size() for array in arrays)


def batch(run, ring, calls):
    """Seconds per call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for i in range(calls):
        run(ring[i % len(ring)])
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def measure(sides, ring):
    """The seconds of each side in each round, and why a side that failed is left out."""
    ready, failed = {}, {}
    for name, run in sides.items():
        try:
            once = max(min(batch(run, ring, 2) for _ in range(3)), 1e-6)
            ready[name] = (run, max(len(ring), round(BATCH_SECONDS / once)))
        except Exception as error:  # a peer may have no kernel for the types, or no memory
            if name == "ffncore":
                raise
            failed[name] = str(error).strip().splitlines()[0][:200]
    rounds = [
        {name: batch(run, ring, calls) for name, (run, calls) in ready.items()}
        for _ in range(ROUNDS)
    ]
    return rounds, failed


def machine():
    device = torch.cuda.get_device_properties(0)
    a = normal(8192, 8192, dtype=torch.bfloat16)
    b = normal(8192, 8192, dtype=torch.bfloat16)
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    product = min(batch(lambda _: a @ b, [0], 10) for _ in range(3))
    copy = min(batch(lambda _: to.copy_(source), [0], 10) for _ in range(3))
    c, d = a.float(), b.float()
    single = min(batch(lambda _: c @ d, [0], 2) for _ in range(3))
    return {
        "device": device.name,
        "multiprocessors": device.multi_processor_count,
        "l2_bytes": device.L2_cache_size,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "ffncore": fc.__version__,
        "cublas_bf16_tflops": round(2 * 8192**3 / product / 1e12, 1),
        "cublas_f32_tflops": round(2 * 8192**3 / single / 1e12, 1),
        "copy_tb_s": round(2 * source.numel() / copy / 1e12, 2),
    }


def cases():
    """Shape, tokens, dtype, mode, a function that makes the arrays, FLOPs and weights of a pass."""
    for name, tokens, dtype in CASES:
        if name in DENSE:
            d, f = DENSE[name]
            make = functools.partial(Dense, tokens, d, f, dtype)
            rows, hit = tokens, 1
        else:
            d, f, experts, k = MIXTURES[name]
            make = functools.partial(Mixture, tokens, d, f, experts, k, dtype)
            rows, hit = tokens * k, min(experts, tokens * k)
        for mode in ("forward", "train") if tokens >= 512 else ("forward",):
            yield name, tokens, dtype, mode, make, 6 * rows * d * f, 3 * d * f * hit


def run_case(name, tokens, dtype, mode, make, flops, elements):
    first = make()
    copies = max(1, min(8, -(-RING_BYTES // bytes_of(first))))
    ring = [first, *(make() for _ in range(copies - 1))]
    train = mode == "train"
    layer = grouped_layer if isinstance(first, Mixture) else dense_layer
    compiled = torch.compile(layer, dynamic=False)
    sides = {
        "ffncore": lambda case: case.ours(train),
        "eager": lambda case: case.torch(train, layer),
        "compile": lambda case: case.torch(train, compiled),
    }
    if isinstance(first, Mixture) and grouped_mm is None:
        sides = {"ffncore": sides["ffncore"]}
    with torch.set_grad_enabled(train):
        rounds, failed = measure(sides, ring)
    seconds = {side: statistics.median(r[side] for r in rounds) for side in rounds[0]}
    passes = 3 if train else 1
    return {
        "shape": name,
        "tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "mode": mode,
        "seconds": seconds,
        "tflops": passes * flops / seconds["ffncore"] / 1e12,
        "weights_tb_s": elements * first.x.element_size() / seconds["ffncore"] / 1e12,
        "vs": {
            side: statistics.median(r[side] / r["ffncore"] for r in rounds)
            for side in seconds
            if side != "ffncore"
        },
        "failed": failed,
    }


def line(row):
    vs = "  ".join(f"{row['vs'][s]:7.2f}" if s in row["vs"] else "      -" for s in PEERS)
    return (
        f"{row['shape']:14} {row['tokens']:6} {row['dtype']:9} {row['mode']:8}"
        f"{row['seconds']['ffncore'] * 1e6:10.0f} {row['tflops']:8.1f} {row['weights_tb_s']:6.2f}"
        f"  {vs}"
    )


PEERS = ("eager", "compile")
HEADER = (
    f"{'shape':14} {'tokens':>6} {'dtype':9} {'mode':8}{'us':>10} {'TFLOP/s':>8} {'TB/s':>6}"
    f"  {'eager':>7}  {'compile':>7}"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", default="gpu.jsonl", metavar="FILE", help="the results (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=180,
        metavar="S",
        help="start no case later (default: %(default)s)",
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only shapes with this in their name"
    )
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(1)
    began, rows = time.monotonic(), []
    with open(options.json, "w", encoding="utf-8") as file:  # noqa: PTH123
        facts = machine()
        file.write(json.dumps(facts) + "\n")
        for case in cases():
            if options.only not in case[0]:
                continue
            if time.monotonic() - began > options.seconds:
                print(f"no time left for {case[0]}, {case[1]} tokens, {case[3]}")
                continue
            row = run_case(*case)
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(line(row), *row["failed"].values(), flush=True)
            torch.cuda.empty_cache()
    print()
    print(json.dumps(facts))
    print(HEADER)
    for row in rows:
        print(line(row))


if __name__ == "__main__":
    main()
