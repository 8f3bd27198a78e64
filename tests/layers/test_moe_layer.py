"""fc.MoE: every option against the float64 reference and against central differences."""

import numpy as np
import pytest
from support import BFLOAT16, TOLERANCE, all_biases, make_experts, make_weights, normal

import ffncore as fc
from ffncore import reference

E, D, F, K = 6, 5, 7, 2
B, S = 2, 4  # tokens: two leading dimensions
XIELU = fc.Activation("xielu", alpha_p=0.2, alpha_n=-0.3, beta=0.4, eps=-0.1)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def part(arrays, prefix):
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


class Case:
    """The arrays of a layer by name, and its other options."""

    def __init__(
        self,
        *with_arrays,
        latent=D,
        null=0,
        shared=None,
        route=None,
        router=None,
        activation="silu",
        **options,
    ):
        self.with_arrays, self.latent, self.null, self.shared = with_arrays, latent, null, shared
        self.route, self.router, self.activation = route, router or {}, activation
        self.options = options
        if route is None and "top_k" not in self.router:
            self.router = {"top_k": K, **self.router}

    def arrays(self, rng, dtype=np.float64, gated=True):
        sizes = {"latent_in": (self.latent, D), "latent_out": (D, self.latent)}
        sizes |= {"b_latent_in": (self.latent,), "b_latent_out": (D,)}
        sizes |= {"router_bias": (E + self.null,), "per_expert_scale": (E + self.null,)}
        sizes |= {"shared_gate": (D,), "output_bias": (D,)}
        biases = all_biases(gated)
        experts = make_experts(rng, E, self.latent, F, gated=gated, biases=biases)
        found = {"router_weight": normal(rng, E + self.null, D)}
        found |= {f"experts.{n}": a for n, a in experts.arrays().items()}
        if self.shared is not None:
            shared = make_weights(rng, D, 3, gated=gated)
            found |= {f"shared.{n}": a for n, a in shared.arrays().items()}
        found |= {name: normal(rng, *sizes[name]) for name in self.with_arrays}
        return {name: array.astype(dtype) for name, array in found.items()}

    def layer(self, arrays):
        experts, shared = part(arrays, "experts."), part(arrays, "shared.")
        router = fc.Router(
            arrays["router_weight"],
            bias=arrays.get("router_bias"),
            per_expert_scale=arrays.get("per_expert_scale"),
            route=self.route,
            **self.router,
        )
        rest = ("latent_in", "latent_out", "b_latent_in", "b_latent_out")
        return fc.MoE(
            fc.FFNWeights(**experts),
            self.activation,
            router,
            shared=None if self.shared is None else fc.FFN(fc.FFNWeights(**shared), self.shared),
            n_null_experts=self.null,
            **{n: arrays.get(n) for n in (*rest, "shared_gate", "output_bias")},
            **self.options,
        )

    def passes(self, **options):
        """A function for check_gradients: the layer on x (and router_x) and its arrays."""

        def layer(x, router_x=None, **arrays):
            made = self.layer(arrays)
            y, saved = made.forward(x, router_x=router_x, **options)
            return y, lambda grad_y: made.backward(grad_y, saved).arrays()

        return layer

    def expected(self, arrays, x, routing):
        """The layer in plain numpy, in float64, for a given routing."""
        a = {name: array.astype(np.float64) for name, array in arrays.items()}
        x = x.astype(np.float64)
        ids, p = routing.experts, routing.weights.astype(np.float64)
        inner = x @ a["latent_in"].T + a.get("b_latent_in", 0) if "latent_in" in a else x
        y = reference.moe(
            inner,
            ids,
            p,
            part(a, "experts."),
            activation=self.activation,
            apply_router_weight_on_input=self.options.get("apply_router_weight_on_input", False),
        )
        if "latent_out" in a:
            y = y @ a["latent_out"].T + a.get("b_latent_out", 0)
        if self.options.get("null_experts", "identity") == "identity":
            y = y + np.where(ids >= E, p, 0).sum(-1)[..., None] * x
        if self.shared is not None:
            term = reference.ffn(x, part(a, "shared."), activation=self.shared)
            y = y + term * (sigmoid(x @ a["shared_gate"])[..., None] if "shared_gate" in a else 1)
        return y * self.options.get("combine", 1.0) + a.get("output_bias", 0)


SIGMOID = {
    "score_fn": "sigmoid",
    "e_score_correction_bias": np.linspace(-0.3, 0.4, E, dtype=np.float32),
    "n_group": 3,
    "topk_group": 2,
    "norm_eps": 1e-20,
    "routed_scaling_factor": 2.5,
}
LATENT = ("latent_in", "latent_out")

CASES = {
    "softmax": Case(),
    "softmax-all-logits": Case("router_bias", router={"norm_topk_prob": False}),
    "sigmoid-groups": Case(router=SIGMOID, shared="silu"),
    "router-bias": Case("router_bias", router={"score_fn": "softmax_topk"}),
    "per-expert-scale": Case("per_expert_scale"),
    "scale-softcap": Case(router={"logit_scale": 0.7, "logit_softcap": 1.5}),
    "sparsemixer": Case(route=fc.sparsemixer, router={"jitter_eps": 0.3}),
    "capacity": Case(
        "per_expert_scale", route=fc.switch_capacity, router={"capacity": 2, "top_k": 2}
    ),
    "own-route": Case(route=lambda logits: fc.route(logits, 3, score_fn="sqrtsoftplus")),
    "on-input": Case(
        router={"score_fn": "sigmoid", "select_on": "logits", "norm_topk_prob": False, "top_k": 1},
        shared="silu",
        apply_router_weight_on_input=True,
    ),
    "shared-gate": Case("shared_gate", shared="gelu_tanh"),
    "combine": Case(shared="silu", combine=0.5),
    "latent": Case(*LATENT, latent=3, shared="relu2", activation="relu2"),
    "latent-biases": Case(*LATENT, "b_latent_in", "b_latent_out", latent=8),
    "output-bias": Case("output_bias", combine=0.7),
    "identity": Case(null=3, router={"norm_topk_prob": False, "top_k": 4}),
    "identity-latent": Case(*LATENT, null=3, latent=4),
    "skip": Case("router_bias", null=2, null_experts="skip", router={"top_k": 4}),
    "xielu": Case(activation=XIELU, shared=XIELU),
    "everything": Case(
        *LATENT,
        *("b_latent_in", "b_latent_out", "router_bias", "per_expert_scale"),
        *("shared_gate", "output_bias"),
        latent=4,
        null=2,
        shared="tanh",
        combine=0.6,
        apply_router_weight_on_input=True,
        router={"logit_scale": 1.3, "logit_softcap": 2.0, "top_k": 3},
    ),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cases
def test_forward(case, gated, dtype, rng):
    arrays = case.arrays(rng, dtype, gated)
    layer = case.layer(arrays)
    x = normal(rng, B, S, D, dtype=dtype)
    y, routing = layer(x, return_routing=True)
    assert y.dtype == dtype
    assert routing.weights.dtype == (np.float64 if dtype == np.float64 else np.float32)
    expected = case.expected(arrays, x, routing)
    error = np.abs(y.astype(np.float64) - expected).max() / max(1, np.abs(expected).max())
    assert error <= 2 * TOLERANCE[np.dtype(dtype)]
    again, saved = layer.forward(x, save="input")
    assert again.tobytes() == y.tobytes()
    assert saved.routing.experts.tobytes() == routing.experts.tobytes()
    out = np.empty_like(x)
    assert layer(x, out=out) is out
    assert out.tobytes() == y.tobytes()
    assert layer.packed()(x).tobytes() == y.tobytes()


@cases
def test_gradients(case, gated, rng):
    arrays = case.arrays(rng, gated=gated)
    # The random direction reaches every entry; single ones tell which is wrong.
    fc.check_gradients(case.passes(), {"x": normal(rng, B, S, D), **arrays}, samples=16)


def test_gradients_of_xielu(gated, rng):
    case = CASES["xielu"]
    arrays = case.arrays(rng, gated=gated)
    layer = case.layer(arrays)
    x, grad_y = normal(rng, 2, B, S, D)
    _, saved = layer.forward(x)
    grads = layer.backward(grad_y, saved)
    routing = saved.routing
    found = reference.moe_backward(
        grad_y, x, routing.experts, routing.weights, layer.experts, activation=XIELU
    )
    shared = reference.ffn_backward(grad_y, x, layer.shared.weights, activation=XIELU)
    for numbers, expected in ((grads.activation, found), (grads.shared_activation, shared)):
        assert numbers.alpha_p == pytest.approx(expected["alpha_p"], rel=1e-11)
        assert numbers.alpha_n == pytest.approx(expected["alpha_n"], rel=1e-11)
    twice = layer.backward(grad_y, saved, out=grads, accumulate=True)
    assert twice.activation.alpha_p == pytest.approx(2 * found["alpha_p"], rel=1e-11)


def test_router_reads_what_it_is_told(rng):
    case = CASES["per-expert-scale"]
    arrays = case.arrays(rng)
    x, router_x = normal(rng, B, S, D), normal(rng, B, S, D)
    jitter = 1 + 0.1 * normal(rng, B, S, D)
    layer = case.layer(arrays)
    expected = layer.router(router_x * jitter)
    y, routing = layer(x, router_x=router_x, jitter=jitter, return_routing=True)
    assert np.array_equal(routing.experts, expected.experts)
    np.testing.assert_allclose(y, case.expected(arrays, x, expected), rtol=1e-12, atol=1e-12)

    passes = case.passes(jitter=jitter)
    fc.check_gradients(passes, {"x": x, "router_x": router_x, **arrays})
    fc.check_gradients(passes, {"x": x, **arrays})


def test_experts_chosen_already(rng):
    case = Case(router={"score_fn": "sqrtsoftplus", "top_k": 2})
    arrays = case.arrays(rng)
    ids = rng.permuted(np.tile(np.arange(E), (B, S, 1)), axis=-1)[..., :2]
    x = normal(rng, B, S, D)
    _, routing = case.layer(arrays)(x, experts=ids, return_routing=True)
    assert np.array_equal(routing.experts, ids)
    fc.check_gradients(case.passes(experts=ids), {"x": x, **arrays})


def test_routing_given(rng):
    case = CASES["shared-gate"]
    arrays = case.arrays(rng)
    ids = rng.integers(-1, E, (B, S, 3))
    x = normal(rng, B, S, D)

    def layer(x, weights, **arrays):
        made = case.layer(arrays)
        routing = fc.Routing(experts=ids, weights=weights, n_experts=E)
        y, saved = made.forward(x, routing=routing)
        assert saved.logits is None

        def backward(grad_y):
            grads = made.backward(grad_y, saved)
            return {**grads.arrays(), "weights": grads.routing_weights}

        return y, backward

    weights = normal(rng, B, S, 3)
    used = {name: a for name, a in arrays.items() if name != "router_weight"}
    wrt = ("x", "weights", *used)
    fc.check_gradients(layer, {"x": x, "weights": weights, **arrays}, wrt=wrt)
    without = fc.MoE(case.layer(arrays).experts, "silu", None)
    with pytest.raises(ValueError, match="the layer has no router; expected routing="):
        without(x)
    routing = fc.Routing(experts=ids, weights=weights)
    y = reference.moe(x, ids, weights, without.experts, activation="silu")
    np.testing.assert_allclose(without(x, routing=routing), y, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_loss_on_logits(rng):
    case = CASES["scale-softcap"]
    arrays = case.arrays(rng)
    g = normal(rng, B, S, E)

    def layer(x, **arrays):
        made = case.layer(arrays)
        y, saved = made.forward(x)
        both = np.concatenate([y, saved.logits], axis=-1)

        def backward(grad):
            dy, dz = grad[..., :D].copy(), grad[..., D:].copy()
            return made.backward(dy, saved, grad_logits=dz).arrays()

        return both, backward

    fc.check_gradients(layer, {"x": normal(rng, B, S, D), **arrays})
    made = case.layer(arrays)
    x = normal(rng, B, S, D)
    ids, weights = made.router(x).experts, made.router(x).weights
    _, saved = made.forward(x, routing=fc.Routing(experts=ids, weights=weights))
    with pytest.raises(ValueError, match="grad_logits is given, but forward got a routing"):
        made.backward(x, saved, grad_logits=g)


@cases
def test_needs(case, rng):
    layer = case.layer(case.arrays(rng))
    x, grad_y = normal(rng, 2, B, S, D)
    _, saved = layer.forward(x)
    everything = layer.backward(grad_y, saved)
    full = everything.arrays()
    assert set(full) == {"x", *layer.parameters()}
    for name in full:
        only = layer.backward(grad_y, saved, needs=(name,))
        assert list(only.arrays()) == [name]
        assert only.arrays()[name].tobytes() == full[name].tobytes()
    some = layer.backward(grad_y, saved, needs=("experts",)).arrays()
    assert list(some) == [n for n in full if n.startswith("experts.")]
    assert not layer.backward(grad_y, saved, needs=()).arrays()


@cases
def test_out_and_accumulate(case, dtype, rng):
    layer = case.layer(case.arrays(rng, dtype))
    x, grad_y = normal(rng, 2, B, S, D, dtype=dtype)
    _, saved = layer.forward(x)
    grads = layer.backward(grad_y, saved)
    for name, array in grads.arrays().items():
        like = x if name == "x" else layer.parameters()[name]
        assert (array.shape, array.dtype) == (like.shape, like.dtype), name
    out = {name: np.full_like(a, 7) for name, a in grads.arrays().items()}
    filled = layer.backward(grad_y, saved, out=out).arrays()
    for name, array in grads.arrays().items():
        assert filled[name] is out[name]
        assert filled[name].tobytes() == array.tobytes(), name
    wide = np.float64 if dtype == np.float64 else np.float32
    master = {name: np.ones(a.shape, wide) for name, a in out.items()}
    layer.backward(grad_y, saved, out=master, accumulate=True)
    for name, array in grads.arrays().items():
        expected = array.astype(np.float64) + 1
        scale = max(1, np.abs(expected).max())
        assert np.abs(master[name] - expected).max() <= TOLERANCE[np.dtype(dtype)] * scale, name


@pytest.mark.parametrize("weights_dtype", [np.dtype(np.float16), *BFLOAT16], ids=str)
def test_float32_beside_16_bits(weights_dtype, rng):
    case = CASES["everything"]
    arrays = case.arrays(rng, weights_dtype)
    layer = case.layer(arrays)
    x, grad_y = normal(rng, 2, B, S, D, dtype=np.float32)
    y, saved = layer.forward(x)
    assert y.dtype == np.float32
    expected = case.expected(arrays, x, saved.routing)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    for name, array in layer.backward(grad_y, saved).arrays().items():
        assert array.dtype == (np.float32 if name == "x" else weights_dtype)
    # A router and biases in float32.
    mixed = arrays | {
        name: arrays[name].astype(np.float32)
        for name in ("router_weight", "router_bias", "output_bias", "experts.b_up")
    }
    narrow_x = x.astype(weights_dtype)
    same = case.layer(mixed)(narrow_x)
    assert same.dtype == weights_dtype
    assert same.tobytes() == case.layer(arrays)(narrow_x).tobytes()


def test_a_token_alone_is_routed_as_among_others(rng):
    layer = CASES["sigmoid-groups"].layer(CASES["sigmoid-groups"].arrays(rng, np.float32))
    x = normal(rng, 300, D, dtype=np.float32)
    routing = layer(x, return_routing=True)[1]
    for t in (0, 7, 299):
        alone = layer(x[t : t + 1], return_routing=True)[1]
        assert alone.weights.tobytes() == routing.weights[t : t + 1].tobytes()


def test_no_tokens(rng):
    layer = CASES["everything"].layer(CASES["everything"].arrays(rng))
    x = np.zeros((0, D))
    y, saved = layer.forward(x)
    assert y.shape == (0, D)
    grads = layer.backward(y, saved).arrays()
    assert grads["x"].shape == (0, D)
    assert not any(a.any() for a in grads.values())


def test_packed_layer_has_the_gradients_of_what_is_not_packed(rng):
    layer = CASES["everything"].layer(CASES["everything"].arrays(rng))
    packed = layer.packed()
    x, grad_y = normal(rng, 2, B, S, D)
    (_, saved), (_, saved_packed) = layer.forward(x), packed.forward(x)
    grads = layer.backward(grad_y, saved).arrays()
    found = packed.backward(grad_y, saved_packed).arrays()
    kernels = ("experts.", "shared.")
    assert list(found) == [name for name in grads if not name.startswith(kernels)]
    for name, array in found.items():
        assert array.tobytes() == grads[name].tobytes(), name


def test_repr(rng):
    case = CASES["everything"]
    layer = case.layer(case.arrays(rng))
    assert repr(layer) == (
        "MoE(6 experts, 5 -> 7 -> 5, silu, gated, float64, latent 4, 2 identity, shared 3)"
    )
    assert repr(layer.packed()).endswith("shared 3, packed)")
    assert repr(layer.router) == "Router(5 -> 8, logit_scale=1.3, logit_softcap=2.0, top_k=3)"
    saved = layer.forward(normal(rng, 3, D))[1]
    assert repr(saved).startswith("MoELayerSaved(x=(3, 5), Routing(")
    assert "router_weight=(8, 5)" in repr(layer.backward(normal(rng, 3, D), saved))
