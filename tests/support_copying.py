"""An object of every public type of the package, and something that is computed with it.

    Case(make, use)    make() returns the object; use(object) a dict of arrays and numbers

The numbers are fixed, so that another process can compute with an object that it was sent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from support import BFLOAT16, all_biases, make_experts, make_weights, normal

import ffncore as fc
from ffncore import reference
from ffncore.arrays import memory
from ffncore.encodings.grid import Grid
from ffncore.functional.block import Surroundings
from ffncore.functional.routing import backward_of_part
from ffncore.layers.around import Around
from ffncore.layers.router import RouterSaved
from ffncore.models import families
from ffncore.values import packed, routing_options
from ffncore.values.routing import Part

D, F, E, K, T = 6, 9, 5, 2, 7
F2, F4, F8 = (np.dtype(f"f{n}") for n in (2, 4, 8))
NARROW = (BFLOAT16 or [F2])[0]


def draw(*shape, seed=0, dtype=F4):
    return normal(np.random.default_rng(seed), *shape, dtype=dtype)


def block(**options):
    return make_weights(np.random.default_rng(1), D, F, **{"dtype": F4, **options})


def experts(d=D, **options):
    return make_experts(np.random.default_rng(2), E, d, F, **{"dtype": F4, **options})


def norm():
    return fc.Norm("layer", gain=draw(D), bias=draw(D, seed=1), gain_offset=1)


def block_saved():
    return fc.ffn_forward(
        draw(T, D), block(), activation="silu", norm=norm(), out_norm=norm(), residual=draw(T, D)
    )[1]


def block_gradients(kept=None):
    return fc.ffn_backward(draw(T, D, seed=3), kept or block_saved())


def attention_saved():
    q, memory = draw(2, T, D), draw(2, 3, D)
    return fc.persistent_attention_forward(q, q, q, memory, memory, causal=True)[1]


def attention_gradients(kept=None):
    return fc.persistent_attention_backward(draw(2, T, D, seed=3), kept or attention_saved())


def with_norm(given):
    return {"activation": "silu", "norm": given}


@dataclass
class Case:
    make: Callable[[], Any]
    use: Callable[[Any], dict[str, Any]]


# ---- weights


def fused():
    return fc.FFNWeights.from_gate_up(draw(2 * F, D), draw(D, F), layout="interleaved")


def run_block(w):
    x = draw(T, D, dtype=w.dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    return {"y": y, **fc.ffn_backward(y, saved).arrays()}


def run_experts(w):
    x = draw(T, w.d_model, dtype=w.dtype)
    routing = fc.route(draw(T, E, seed=3), K)
    y, saved = fc.moe_forward(x, routing, w, activation="silu")
    return {"y": y, **fc.moe_backward(y, saved).arrays()}


def with_float32_biases():
    arrays = block(dtype=NARROW).arrays()
    return fc.FFNWeights(**arrays, b_up=draw(F, seed=4), b_down=draw(D, seed=5))


def large():
    """Weights that are larger than a huge page."""
    return make_weights(np.random.default_rng(6), 512, 600, dtype=F4)


def run_large(w):
    return {"y": fc.ffn(draw(3, 512), w, activation="silu")}


# ---- routing


def routed(**options):
    return fc.route(draw(T, E, seed=7), K, **options)


def deepseek():
    bias = draw(8, seed=8)
    options = {"n_group": 4, "topk_group": 2, "norm_eps": 1e-20, "routed_scaling_factor": 2.5}
    logits = draw(2, T, 8, seed=7, dtype=F8)
    return fc.route(
        logits, K, score_fn="sigmoid", e_score_correction_bias=bias.astype(F8), **options
    )


def sampled():
    rng = np.random.default_rng(9)
    draws = {"gumbel": rng.gumbel(size=(T, 2, E)), "uniform": rng.random((T, 2))}
    return fc.sparsemixer(draw(T, E, dtype=F8), jitter_eps=0.1, **draws)


def own_routing():
    ids = np.random.default_rng(10).integers(-1, E, (T, K))
    return fc.Routing(experts=ids, weights=draw(T, K), n_experts=E)


def use_routing(routing):
    found = {"experts": routing.experts, "weights": routing.weights, "counts": routing.counts}
    if routing._saved is not None:
        found["grad"] = fc.route_backward(
            draw(*routing.weights.shape).astype(routing.weights.dtype), routing
        )
    return found


# ---- what passes save, and their gradients


def saved(w=None, *, x=None, activation="silu", save="preactivations"):
    x = draw(T, D, seed=11) if x is None else x
    return fc.ffn_forward(x, block() if w is None else w, activation=activation, save=save)[1]


def moe_saved(w=None, *, activation="silu", on_input=False, save="preactivations", x=None):
    x = draw(T, D, seed=11) if x is None else x
    w = experts(biases=all_biases(True)) if w is None else w
    options = {"activation": activation, "apply_router_weight_on_input": on_input}
    return fc.moe_forward(x, own_routing(), w, save=save, **options)[1]


def use_saved(saved):
    backward = fc.moe_backward if isinstance(saved, fc.MoESaved) else fc.ffn_backward
    grads = backward(draw(*saved.x.shape, seed=12).astype(saved.x.dtype), saved)
    numbers = {} if grads.activation is None else grads.activation._asdict()
    return {"gate": saved.gate, "up": saved.up, **grads.arrays(), **numbers}


def gradients(saved, **options):
    backward = fc.moe_backward if isinstance(saved, fc.MoESaved) else fc.ffn_backward
    return backward(draw(T, D, seed=13), saved, **options)


def use_grads(grads):
    """Complete gradients, to which a backward pass can add."""
    found = {name: array + 1 for name, array in grads.arrays().items()}
    numbers = getattr(grads, "activation", None)
    return found if numbers is None else found | numbers._asdict()


# ---- layers


def router(**options):
    return fc.Router(draw(E + 1, D, seed=14), top_k=K, score_fn="sigmoid", **options)


def full_router():
    extra = {name: draw(E + 1, seed=15) for name in ("bias", "per_expert_scale")}
    return router(logit_softcap=3.0, e_score_correction_bias=draw(E + 1, seed=16), **extra)


def layer(router=full_router):
    """A layer with every part that it can have."""
    return fc.MoE(
        experts(d=4),
        fc.Activation("xielu", alpha_p=0.3),
        router(),
        shared=fc.FFN(block(gated=False), "gelu", "shared"),
        shared_gate=draw(D, seed=17),
        combine=0.7,
        latent_in=draw(4, D, seed=18),
        latent_out=draw(D, 4, seed=19),
        output_bias=draw(D, seed=20),
        n_null_experts=1,
    )


def layer_saved():
    return layer().forward(draw(2, T, D, seed=21))[1]


def layer_gradients(saved=None, **options):
    saved = layer_saved() if saved is None else saved
    return layer().backward(draw(2, T, D, seed=22), saved, **options)


def use_layer(layer):
    x = draw(T, layer.d_model, dtype=layer.dtype)
    y, saved = layer.forward(x)
    return {"y": y, "call": layer(x), **layer.backward(y, saved).arrays()}


def use_router(router):
    routing, kept = router.forward(draw(T, D))
    grads = router.backward(draw(T, K), kept)
    return {**use_routing(routing), "grad_x": grads.x, "grad_weight": grads.weight}


def router_gradients(saved=None):
    saved = full_router().forward(draw(T, D))[1] if saved is None else saved
    return full_router().backward(draw(T, K, seed=23), saved)


# ---- rows, reports


# The rows in the old pickles.
ROWS = ("bert", "gpt2", "llama", "gemma", "mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3")
ROWS += ("gpt_oss", "granitemoe", "llama4")


def rows():
    return [families.row_named(name) for name in ROWS]


def layer_infos():
    sizes = {"d_model": 4, "d_ff": 8, "activation": "silu", "dtype": "float32", "parameters": 96}
    return [fc.models.LayerInfo(row, "model.", 0, gated=True, **sizes) for row in rows()]


def report():
    def fn(x, up, down):
        return fc.ffn_forward(x, fc.FFNWeights(up=up, down=down), activation="gelu")

    arrays = {"x": draw(2, 3, dtype=F8), "up": draw(4, 3, dtype=F8), "down": draw(3, 4, dtype=F8)}
    return fc.check_gradients(fn, arrays)


def itself(value):
    """Objects that are compared by ==."""
    return {"value": value}


def items(value):
    return dict(enumerate(value))


def fake_saved(**options):
    return fc.fake_quantize(draw(3, 256), "q1_0", **options)[1]


def use_fake_saved(saved):
    return fc.fake_quantize_backward(draw(3, 256), saved)._asdict()


CASES = {
    fc.FFNWeights: {
        "block": Case(lambda: block(biases=all_biases(True)), run_block),
        "plain": Case(lambda: block(gated=False), run_block),
        "16 bits": Case(with_float32_biases, run_block),
        "fused": Case(fused, run_block),
        "experts": Case(lambda: experts(biases=("b_down",)), run_experts),
        "quantised": Case(lambda: fc.quantize(block(biases=all_biases(True)), "int8"), run_block),
        "partial": Case(
            lambda: gradients(saved(), needs=("x", "down")).weights, lambda w: w.arrays()
        ),
    },
    fc.PackedWeights: {
        "block": Case(lambda: fc.pack(block(biases=all_biases(True))), run_block),
        "16 bits": Case(lambda: fc.pack(with_float32_biases()), run_block),
        "experts": Case(lambda: fc.pack(experts(biases=("b_up",))), run_experts),
        "an expert": Case(lambda: fc.pack(experts(biases=("b_up",))).expert(3), run_block),
        "large": Case(lambda: fc.pack(large()), run_large),
    },
    fc.QuantizedTensor: {
        name: Case(
            lambda name=name: fc.quantize(draw(3, 4, 256), name),
            lambda q: {"w": q.dequantize(), **q.parts()},
        )
        for name in ("q4_k", "q2_0", "tq1_0", "int8", "int4", "fp8_e4m3")
    },
    fc.FakeQuantizeSaved: {
        "own scales": Case(lambda: fake_saved(), use_fake_saved),
        "trained": Case(lambda: fake_saved(scale=np.full((3, 2), 0.5, F4)), use_fake_saved),
    },
    Grid: {"one": Case(lambda: fake_saved().grid, lambda grid: {"scales": grid.scales})},
    fc.FakeQuantizeGrads: {
        "one": Case(
            lambda: fc.fake_quantize_backward(draw(3, 256), fake_saved(scale=0.5)),
            lambda g: g._asdict(),
        )
    },
    fc.FormatInfo: {"one": Case(lambda: fc.formats()["q4_0"], lambda i: i._asdict())},
    fc.Activation: {
        name: Case(
            lambda name=name, options=options: fc.Activation(name, **options),
            lambda a: {"itself": a, "h": fc.activation(draw(9), draw(9), activation=a)},
        )
        for name, options in {
            "silu": {"alpha": 1.7, "limit": 0.5, "up_offset": 1.0},
            "quick_gelu": {},
            "xielu": {"alpha_p": 0.3},
        }.items()
    },
    fc.Routing: {
        "route": Case(routed, use_routing),
        "groups": Case(deepseek, use_routing),
        "chosen": Case(lambda: routed(experts=own_routing().experts), use_routing),
        "sparsemixer": Case(lambda: fc.sparsemixer(draw(T, E), jitter_eps=0.1), use_routing),
        "sampled": Case(sampled, use_routing),
        "capacity": Case(lambda: fc.switch_capacity(draw(T, E), capacity=2, top_k=2), use_routing),
        "own": Case(own_routing, use_routing),
    },
    Part: {
        "one": Case(lambda: routed()._saved[0], lambda p: {"grad": backward_of_part(p, draw(T, K))})
    },
    fc.Saved: {
        "preactivations": Case(lambda: saved(block(biases=all_biases(True))), use_saved),
        "input": Case(lambda: saved(save="input"), use_saved),
        "quantised": Case(lambda: saved(fc.quantize(block(), "int8")), use_saved),
        "plain": Case(lambda: saved(block(gated=False), activation="xielu"), use_saved),
        "packed": Case(lambda: saved(fc.pack(block())), use_saved),
        "float32 beside 16 bits": Case(lambda: saved(with_float32_biases()), use_saved),
        "16 bits": Case(lambda: saved(block(dtype=NARROW), x=draw(T, D, dtype=NARROW)), use_saved),
        "leading dimensions": Case(lambda: saved(x=draw(3, 30, D).swapaxes(0, 1)), use_saved),
        "no tokens": Case(lambda: saved(x=draw(0, D)), use_saved),
        "large": Case(
            lambda: saved(make_weights(np.random.default_rng(0), D, 4096, dtype=F4), x=draw(80, D)),
            use_saved,
        ),
    },
    fc.MoESaved: {
        "preactivations": Case(moe_saved, use_saved),
        "input": Case(lambda: moe_saved(save="input"), use_saved),
        "packed": Case(lambda: moe_saved(fc.pack(experts())), use_saved),
        "on input": Case(lambda: moe_saved(on_input=True, activation="xielu"), use_saved),
    },
    fc.FFNGrads: {
        "all": Case(lambda: gradients(saved()), use_grads),
        "some": Case(lambda: gradients(saved(), needs=("down",)), use_grads),
        "none": Case(lambda: gradients(saved(), needs=()), use_grads),
        "xielu": Case(lambda: gradients(saved(activation="xielu")), use_grads),
    },
    fc.MoEGrads: {
        "all": Case(lambda: gradients(moe_saved(activation="xielu")), use_grads),
        "some": Case(lambda: gradients(moe_saved(), needs=("routing_weights", "up")), use_grads),
    },
    fc.FFN: {
        "raw": Case(lambda: fc.FFN(block(), "silu", "a name"), use_layer),
        "packed": Case(lambda: fc.FFN(block(), "silu").packed(), use_layer),
    },
    fc.MoE: {
        "full": Case(layer, use_layer),
        "packed": Case(lambda: layer().packed(), use_layer),
        "simple": Case(
            lambda: fc.MoE(experts(), "silu", fc.Router(draw(E, D), top_k=K)), use_layer
        ),
    },
    fc.Router: {
        "simple": Case(router, use_router),
        "full": Case(full_router, use_router),
        "capacity": Case(
            lambda: fc.Router(draw(E, D), route=fc.switch_capacity, capacity=3, top_k=K),
            use_router,
        ),
    },
    RouterSaved: {
        "full": Case(
            lambda: full_router().forward(draw(T, D))[1],
            lambda s: {"grad": router_gradients(s).x, **use_routing(s.routing)},
        )
    },
    # input_scale is younger than the old pickles.
    fc.RouterGrads: {
        "full": Case(
            router_gradients, lambda g: {n: a for n, a in vars(g).items() if n != "input_scale"}
        )
    },
    fc.MoELayerSaved: {
        "full": Case(layer_saved, lambda s: use_grads(layer_gradients(s))),
        "packed": Case(
            lambda: layer().packed().forward(draw(T, D))[1],
            lambda s: layer().packed().backward(draw(T, D), s).arrays(),
        ),
    },
    fc.MoELayerGrads: {
        "all": Case(layer_gradients, use_grads),
        "some": Case(lambda: layer_gradients(needs=("x", "shared.up")), use_grads),
    },
    fc.PersistentAttentionSaved: {
        "causal": Case(attention_saved, lambda s: attention_gradients(s)._asdict())
    },
    fc.PersistentAttentionGrads: {"causal": Case(attention_gradients, items)},
    fc.PositionalLambdaGrads: {
        "three": Case(
            lambda: fc.positional_lambda_backward(
                draw(3, 4), draw(3, 2), draw(5, 4), draw(3, 5, 2)
            ),
            items,
        )
    },
    fc.Norm: {"layer": Case(norm, lambda n: {"y": fc.ffn(draw(T, D), block(), **with_norm(n))})},
    fc.NormGrads: {
        "layer": Case(
            lambda: fc.layer_norm_backward(draw(T, D), draw(T, D), draw(D), draw(D)),
            lambda g: g.arrays(),
        )
    },
    fc.BlockSaved: {"norms": Case(block_saved, lambda s: block_gradients(s).arrays())},
    fc.BlockGrads: {"norms": Case(block_gradients, lambda g: g.arrays())},
    Surroundings: {
        "norms": Case(lambda: Surroundings(norm=norm()), lambda parts: parts.parameters())
    },
    fc.ActivationGrads: {
        "xielu": Case(
            lambda: fc.activation_backward(draw(5), draw(5), draw(5), activation="xielu"), items
        )
    },
    fc.XieluGrads: {"two": Case(lambda: gradients(saved(activation="xielu")).activation, itself)},
    fc.Cost: {"ffn": Case(lambda: fc.cost(3, block()), itself)},
    fc.GradientReport: {"block": Case(report, itself)},
    fc.GradientError: {"x": Case(lambda: report()["x"], itself)},
    Around: {"granite": Case(lambda: Around("pre", residual_multiplier=0.22), itself)},
    families.LayerInfo: {"all": Case(layer_infos, items)},
    families.Family: {row.name: Case(lambda row=row: row, itself) for row in families.FAMILIES},
    families.MoEFamily: {
        row.name: Case(lambda row=row: row, itself) for row in families.MOE_FAMILIES
    },
    reference.Gradients: {
        "xielu": Case(
            lambda: reference.activation_backward(draw(5), draw(5), activation="xielu"), items
        )
    },
    reference.XieluParameters: {
        "xielu": Case(lambda: reference.xielu_parameters(fc.Activation("xielu")), itself)
    },
    routing_options.RouterCore: {
        "route": Case(
            lambda: routing_options.stored(fc.route(draw(T, E), K)._saved[0].core), itself
        )
    },
    reference.Routed: {"route": Case(lambda: reference.route(draw(T, E), K), items)},
    # Parts of the objects above.
    memory.Memory: {
        "packed": Case(lambda: packed.Memory(fc.pack(large())._buffer), lambda m: {"a": m.array})
    },
}
ALL = {
    f"{kind.__name__}-{name}": case for kind, cases in CASES.items() for name, case in cases.items()
}


def use_all(values):
    """The result of `use` by the name in ALL, for another process."""
    return {name: ALL[name].use(value) for name, value in values.items()}
