"""Every public object can be copied and sent to another process, and computes the same bits."""

import concurrent.futures
import copy
import inspect
import io
import multiprocessing
import pickle
import types
import typing

import numpy as np
import pytest
from support import all_biases, make_experts, make_weights, same_bits
from support_copying import ALL, CASES, draw, layer_saved, saved, use_all

import ffncore as fc
from ffncore import models, reference
from ffncore.arrays.memory import Memory
from ffncore.models import all_layers
from ffncore.values import copied

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda v, n=n: pickle.loads(pickle.dumps(v, n)) for n in PROTOCOLS},
}


def is_same(a, b):
    if isinstance(a, np.ndarray):
        return same_bits(a, b)
    return type(a) is type(b) and a == b


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert is_same(found[name], value), name


class Seen(pickle.Pickler):
    """Pickles an object without keeping the bytes, and remembers its parts."""

    def __init__(self, value):
        super().__init__(io.BytesIO(), protocol=2)
        self.arrays, self.types = {}, set()
        self.dump(value)

    def reducer_override(self, value):
        if isinstance(value, np.ndarray):
            self.arrays[id(value)] = value
        elif type(value).__module__.partition(".")[0] == "ffncore":
            self.types.add(type(value))
        return NotImplemented


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_computes_the_same_bits(name, way):
    case = ALL[name]
    value = case.make()
    made = WAYS[way](value)
    assert type(made) is type(value)
    assert repr(made) == repr(value) or type(value).__repr__ is object.__repr__
    assert_same(case.use(made), case.use(value))


@pytest.mark.parametrize("name", ALL)
def test_whose_arrays_a_copy_has(name):
    value = ALL[name].make()
    own = Seen(value).arrays
    if not isinstance(value, list | Memory):
        assert Seen(copy.copy(value)).arrays.keys() == own.keys()
    for made in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        others = Seen(made).arrays.values()
        assert len(others) == len(own)
        assert not any(np.may_share_memory(a, b) for a in others for b in own.values())


def test_another_process_computes_the_same_bits():
    """All of them in one."""
    values = {name: case.make() for name, case in ALL.items()}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        found = pool.submit(use_all, values).result(timeout=300)
    for name, expected in use_all(values).items():
        assert_same(found[name], expected)


# ---- no type is forgotten


def classes_of(hint):
    """The classes of ffncore in an annotation."""
    if isinstance(hint, type) and hint.__module__.startswith("ffncore"):
        yield hint
    for part in typing.get_args(hint):
        yield from classes_of(part)


def public(namespace):
    return [
        value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        for name, value in vars(namespace).items()
        if not name.startswith("_") and getattr(value, "__module__", "ffncore") is not None
    ]


def given_to_users():
    """The classes in the annotations of public functions, and in those of these classes."""
    exported = [getattr(fc, name) for name in fc.__all__ if not name.startswith("_")]
    left = [v for v in exported if isinstance(v, type)]
    functions = [*exported, *public(reference), models.load, models.layers]
    found = set()
    while left or functions:
        for function in functions:
            if inspect.isfunction(function) and function.__module__.startswith("ffncore"):
                hint = typing.get_type_hints(inspect.unwrap(function)).get("return")
                left += classes_of(hint)
        new = set(left) - found
        found |= new
        left, functions = [], [member for kind in new for member in public(kind)]
    return found


def test_every_class_that_users_hold_is_tried():
    reached = set().union(*(Seen(case.make()).types for case in ALL.values()))
    assert {fc.Routing, fc.Saved, models.LayerInfo} <= given_to_users()
    # For with statements, and an iterator over open files: not objects to keep.
    passing = {fc.num_threads, all_layers.AllLayers}
    missing = (given_to_users() | reached) - CASES.keys() - passing
    assert not missing, "a type without a case in support_copying.CASES"


# ---- memory


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [None, 3])
def test_packed_weights_stay_aligned(way, n, rng):
    make = (lambda *sizes: make_experts(rng, n, *sizes)) if n else lambda *s: make_weights(rng, *s)
    for d, f, alignment in ((3, 5, 64), (256, 700, 2**21)):
        p = fc.pack(make(d, f))
        for value in (p,) if n is None else (p, p.expert(1)):
            made = WAYS[way](value)
            assert np.array_equal(made._buffer, value._buffer)
            if value is p:
                assert made._buffer.ctypes.data % alignment == 0
            assert made._buffer.ctypes.data % 64 == 0
            assert made._buffer.flags.writeable


def test_a_copy_is_filled_again(rng):
    w, other = (make_weights(rng, 5, 7, dtype=np.float32) for _ in range(2))
    p = fc.pack(w)
    for way, is_shared in ((copy.copy, True), (copy.deepcopy, False)):
        made = way(p)
        fc.pack(other, out=made)
        assert same_bits(made.unpack().up, other.up)
        assert same_bits(p.unpack().up, other.up if is_shared else w.up)
        fc.pack(w, out=p)


def test_buffers_out_of_band():
    """Protocol 5: large arrays are separate from the pickle, and may come back read-only."""
    for name in ("PackedWeights-large", "Saved-large", "MoE-full"):
        value, buffers = ALL[name].make(), []
        stream = pickle.dumps(value, 5, buffer_callback=buffers.append)
        assert len(stream) < 20_000
        assert buffers
        made = pickle.loads(stream, buffers=[bytes(b.raw()) for b in buffers])
        assert_same(ALL[name].use(made), ALL[name].use(value))


def test_what_is_shared_stays_shared():
    parts = layer_saved()
    for way in (copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))):
        made = way(parts)
        assert made.x is made.shared.x is made.router.x
        assert made.x is not parts.x
        w = fc.FFNWeights(up=draw(4, 4), down=draw(4, 4))
        first, second = way([fc.FFN(w, "silu"), fc.FFN(w, "relu")])
        assert first.weights is second.weights
        array = draw(4, 4)
        tied = way(fc.FFNWeights(gate=array, up=array, down=draw(4, 4)))
        assert tied.gate is tied.up


def test_a_deep_copy_does_not_see_later_changes(rng):
    w = make_weights(rng, 5, 7, biases=all_biases(True), dtype=np.float32)
    x, grad = draw(6, 5), draw(6, 5, seed=1)
    value = fc.ffn_forward(x, w, activation="silu", save="input")[1]
    expected = fc.ffn_backward(grad, value).arrays()
    made = copy.deepcopy(value)
    for array in (x, *w.arrays().values()):
        array[...] = np.nan
    assert_same(fc.ffn_backward(grad, made).arrays(), expected)


def test_a_copy_of_a_frozen_value_is_frozen():
    for name in ("Routing-route", "Saved-input", "PackedWeights-block"):
        for way in WAYS.values():
            with pytest.raises(AttributeError, match="cannot be changed"):
                way(ALL[name].make()).dtype = None


def test_x_whose_shape_is_changed_in_place_afterwards():
    x = draw(2, 3, 6)
    value = saved(x=x)
    x.resize((6, 6), refcheck=False)
    made = copy.deepcopy(value)
    assert made.x.shape == (6, 6)
    grad = draw(2, 3, 6, seed=1)
    assert_same(fc.ffn_backward(grad, made).arrays(), fc.ffn_backward(grad, value).arrays())


# ---- a pickle may contain anything


def changed(name, **changes):
    """The object of a case, remade from its state with changes."""
    value = ALL[name].make()
    state = value._state()
    assert changes.keys() <= state.keys()
    return copied._remake(type(value), state | changes)


def core(**changes):
    names = ("score_fn", "on_logits", "norm", "eps", "least", "factor", "n_group", "topk_group")
    values = dict(
        zip((*names, "group", "mask"), ALL["Part-one"].make()._state()["core"], strict=True)
    )
    return tuple((values | changes).values())


def memory(name):
    state = ALL[name].make()._state()
    return state["memory" if "memory" in state else "panels"]


TAMPERED = {
    "ids too large": ("Routing-own", {"experts": np.full((7, 2), 5)}),
    "weights of a shape": ("Routing-own", {"weights": draw(7, 3)}),
    "parts of fewer slots": ("Routing-route", {"parts": ()}),
    "parts of more slots": ("Routing-route", {"parts": ALL["Routing-route"].make()._saved * 2}),
    "parts of other tokens": ("Routing-route", {"parts": ALL["Routing-sampled"].make()._saved}),
    "another number of experts": ("Routing-route", {"n_experts": 6}),
    "a part's ids": ("Part-one", {"experts": np.full((7, 2), 5, np.int32)}),
    "a part's tokens": ("Part-one", {"experts": np.zeros((6, 2), np.int32)}),
    "an unknown score_fn": ("Part-one", {"core": core(score_fn=9)}),
    "groups": ("Part-one", {"core": core(n_group=3)}),
    "no core": ("Part-one", {"core": core()[:4]}),
    "packed: larger": ("PackedWeights-block", {"sizes": (600, 900, True, True, True, True)}),
    "packed: gated": ("PackedWeights-block", {"sizes": (6, 9, False, False, True, True)}),
    "packed: fewer bytes": ("PackedWeights-block", {"memory": memory("PackedWeights-an expert")}),
    "packed: another dtype": ("PackedWeights-block", {"dtype": "float64"}),
    "packed: no dtype": ("PackedWeights-block", {"dtype": "int8"}),
    "packed: more experts": (
        "PackedWeights-experts",
        {"sizes": (*ALL["PackedWeights-experts"].make()._sizes[:6], 50, 64)},
    ),
    "panels of others": ("Saved-preactivations", {"panels": memory("Saved-plain")}),
    "panels of another dtype": ("Saved-16 bits", {"panels": memory("Saved-plain")}),
    "x of more tokens": ("Saved-preactivations", {"x": draw(100, 6), "shape": (100, 6)}),
    "x of another size": ("Saved-input", {"x": draw(7, 5), "shape": (7, 5)}),
    "x of another dtype": ("Saved-input", {"x": draw(7, 6, dtype=np.float64)}),
    "a shape that does not fit": ("Saved-input", {"shape": (8, 6)}),
    "weights of experts": ("Saved-input", {"weights": ALL["FFNWeights-experts"].make()}),
    "no weights": ("Saved-input", {"weights": ALL["FFNWeights-partial"].make()}),
    "an activation that does not fit": (
        "Saved-plain",
        {"activation": fc.Activation("silu", limit=1.0)},
    ),
    "saved ids": ("MoESaved-preactivations", {"ids": np.full((7, 2), 9, np.int32)}),
    "saved ids of others": ("MoESaved-preactivations", {"ids": np.zeros((7, 2), np.int32)}),
    "saved ids, fewer": ("MoESaved-input", {"ids": np.zeros((6, 2), np.int32)}),
    "a routing of others": ("MoESaved-input", {"routing": ALL["Routing-groups"].make()}),
    "moe panels": ("MoESaved-preactivations", {"panels": memory("Saved-plain")}),
    "an option": ("Activation-silu", {"alpha": float("nan")}),
    "an option of others": ("Activation-quick_gelu", {"eps": -0.5}),
    "weights that do not fit": ("FFNWeights-block", {"down": draw(6, 8)}),
}


@pytest.mark.parametrize("tampering", TAMPERED)
def test_a_state_that_does_not_fit_raises(tampering):
    name, changes = TAMPERED[tampering]
    with pytest.raises((ValueError, TypeError)):
        changed(name, **changes)
    changed(name)


# ---- on a GPU


def gpu_values(gpu):
    x, logits = gpu.array(draw(7, 6)), gpu.array(draw(7, 5))
    w = gpu.weights(make_weights(np.random.default_rng(0), 6, 9, dtype=np.float32))
    experts = gpu.weights(make_experts(np.random.default_rng(0), 5, 6, 9, dtype=np.float32))
    routing = fc.route(logits, 2)
    for save in ("preactivations", "input"):
        _, dense = fc.ffn_forward(x, w, activation="xielu", save=save)
        _, mixture = fc.moe_forward(x, routing, experts, activation="silu", save=save)
        yield from ((dense, "x"), (mixture, "x"))
    yield from ((w, "gate"), (experts, "gate"), (routing, "experts"), (routing._saved[0], "logits"))
    yield gpu.routing(fc.route(draw(7, 5), 2)), "experts"
    grads = fc.ffn_backward(x, dense)
    yield from ((grads, "x"), (grads.weights, "gate"))
    yield fc.ffn_backward(x, dense, needs=("down",)).weights, "down"
    yield fc.ffn_backward(x, dense, needs=("activation",)), "activation"
    yield fc.moe_backward(x, mixture), "x"
    yield fc.FFN(w, "silu"), "gate"


def test_memory_of_a_gpu_is_not_copied(gpu):
    for value, name in gpu_values(gpu):
        inner = value.weights if isinstance(value, fc.FFN) else value
        kind = type(inner).__name__
        sentence = (
            rf"{kind}\.{name} is a {'torch tensor' if gpu.name == 'torch' else 'CuPy array'}; "
            rf"expected numpy arrays for copy\.deepcopy and pickle"
        )
        for way in (copy.deepcopy, pickle.dumps, lambda v: pickle.dumps(v, 0)):
            with pytest.raises(TypeError, match=sentence):
                way(value)


def test_a_copy_on_a_gpu_shares_its_arrays(gpu):
    for value, name in gpu_values(gpu):
        made = copy.copy(value)
        assert type(made) is type(value)
        if not isinstance(value, fc.FFN):
            assert getattr(made, name) is getattr(value, name)
    x, w = draw(7, 6), make_weights(np.random.default_rng(0), 6, 9, dtype=np.float32)
    _, value = fc.ffn_forward(gpu.array(x), gpu.weights(w), activation="silu")
    grad = gpu.array(draw(7, 6, seed=1))
    found, expected = (fc.ffn_backward(grad, s).x.numpy_array for s in (copy.copy(value), value))
    assert same_bits(found, expected)


def test_namespaces_are_walked():
    """public() finds functions, methods and properties; otherwise the tests above test nothing."""
    names = {f.__name__ for f in public(fc.FFNWeights) if isinstance(f, types.FunctionType)}
    assert {"expert", "from_gate_up", "shape"} <= names
