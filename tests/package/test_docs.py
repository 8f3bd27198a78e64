"""The documentation: the Python code on each page of the site runs, every public name has an entry
and a docstring, and the examples in docstrings run.
"""

import doctest
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from support_checkpoints import write

import ffncore as fc

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="not run from the source tree")
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# Those whose code needs a GPU.
WITHOUT = ("gpu.md",)


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WITHOUT])
def test_code_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("ml_dtypes")
    monkeypatch.chdir(tmp_path)
    names = {}
    before = fc.get_num_threads()
    np.random.seed(0)  # noqa: NPY002 (the short form reads better on a first page)
    try:
        for number, code in enumerate(blocks(page)):
            exec(compile(code, f"{page}, block {number + 1}", "exec"), names)
    finally:
        fc.set_num_threads(before)


def test_every_public_name_has_its_entry():
    pages = "".join((DOCS / page).read_text("utf-8") for page in PAGES if page.startswith("api/"))
    told = set(re.findall(r"^::: ffncore\.(\w+)$", pages, re.MULTILINE))
    assert told - {"reference"} == set(fc.__all__) - {"reference", "__version__"}


def test_every_page_is_in_the_navigation():
    config = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    assert sorted(re.findall(r"- (\S+\.md)$", config, re.MULTILINE)) == PAGES


def public_members():
    for name in fc.__all__:
        value = getattr(fc, name)
        if name in ("__version__", "reference"):
            continue
        yield name, value
        if inspect.isclass(value):
            for member, own in vars(value).items():
                kinds = (property, classmethod, staticmethod)
                if not member.startswith("_") and (
                    inspect.isfunction(own) or isinstance(own, kinds)
                ):
                    yield f"{name}.{member}", getattr(value, member)


def test_every_public_name_has_a_docstring():
    assert [name for name, value in public_members() if not inspect.getdoc(value)] == []


# ---- examples


def examples():
    members = [*public_members(), ("models", fc.models), ("models.layers", fc.models.layers)]
    members += [(f"reference.{n}", getattr(fc.reference, n)) for n in fc.reference.__all__]
    for name, value in members:
        found = doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")
        if found and not isinstance(value, dict):
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
def test_examples_in_docstrings_run(found, names):
    for example in found:
        exec(compile(example.source, "example", "single"), names)
