"""The examples in the docstrings of all public names run."""

import doctest
import inspect

import numpy as np
import pytest
from support_checkpoints import write

import ffncore as fc


def members():
    """The public functions, classes, methods and properties, by name."""
    places = [("", fc, fc.__all__), ("models.", fc.models, ["layers"])]
    places.append(("reference.", fc.reference, fc.reference.__all__))
    places.append(("memory.", fc.memory, fc.memory.__all__))
    for prefix, module, names in places:
        for name in names:
            value = getattr(module, name)
            yield prefix + name, value
            if inspect.isclass(value) and value.__module__.startswith("ffncore"):
                for member in vars(value):
                    if not member.startswith("_"):
                        yield f"{prefix}{name}.{member}", getattr(value, member)


def examples():
    for name, value in (*members(), ("models", fc.models)):
        text = None if isinstance(value, (str, dict, tuple)) else inspect.getdoc(value)
        found = doctest.DocTestParser().get_examples(text or "")
        if found:
            yield pytest.param(found, id=name)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The variables that examples use: sizes are d_model 4, d_ff 8, 16 experts and 5 tokens."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype("f4") / 2

    folder = tmp_path / "path" / "to" / "model"
    folder.mkdir(parents=True)
    biased = {"intermediate.dense": normal(8, 4), "output.dense": normal(4, 8)}
    tensors = {f"encoder.layer.3.{stem}.weight": matrix for stem, matrix in biased.items()}
    tensors |= {f"encoder.layer.3.{s}.bias": normal(len(m)) for s, m in biased.items()}
    write(folder, tensors, {"model_type": "bert", "hidden_act": "gelu"})
    x, gate, up, down = normal(5, 4), normal(8, 4), normal(8, 4), normal(4, 8)
    weights = fc.FFNWeights(gate=gate, up=up, down=down)
    experts = fc.FFNWeights(gate=normal(16, 8, 4), up=normal(16, 8, 4), down=normal(16, 4, 8))
    logits = normal(5, 16)
    routing = fc.route(logits, 2)
    _, saved = fc.ffn_forward(x, weights, activation="silu")
    _, moe_saved = fc.moe_forward(x, routing, experts, activation="silu")
    before = fc.get_num_threads()
    made = {"np": np, "fc": fc, "ffncore": fc, "x": x, "gate": gate, "up": up, "down": down}
    made |= {"gate_up": np.concatenate([gate, up]), "weights": weights, "experts": experts}
    made |= {"grad_y": normal(5, 4), "saved": saved, "moe_saved": moe_saved, "r": normal(16, 4)}
    made |= {"logits": logits, "routing": routing, "bias": normal(16), "ids": routing.experts}
    made |= {"routing_weights": routing.weights, "grads": fc.moe_backward(x, moe_saved)}
    yield made
    fc.set_num_threads(before)


@pytest.mark.parametrize("found", list(examples()))
def test_examples_run(found, names):
    for example in found:
        exec(compile(example.source, "example", "single"), names)
